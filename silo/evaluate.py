"""Measures restorations over many clean pictures: metrics.json, table.md and contact sheets.

    python -m silo evaluate --data PHOTOS... --tasks T,... --limit 20 --out DIR

Every picture's central square is degraded and restored at the prior's native size; LPIPS needs
weights (see `silo.lpips`). A run that was interrupted resumes from metrics.json.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from operators.catalog import TASKS, get_task
from silo.allocation import keep_freed_memory
from silo.data import SPLITS, Photo, center_crop, iterate_photos
from silo.devices import pick_device, pick_dtype
from silo.errors import BadRequest
from silo.images import load_image, save_png, to_pil
from silo.metrics import scores
from silo.prior import LatentPrior
from silo.request import PRESETS, RestorationRequest
from silo.restorer import Restorer, Result

PAPER_TASKS = (
    "super_resolution_x8",
    "inpainting_box",
    "gaussian_blur",
    "super_resolution_x4",
    "jpeg_q10",
)
METRICS = ("psnr", "cpsnr", "lpips")


def main(argv: list[str] | None = None) -> int:
    """Run the evaluation; returns the exit code."""
    arguments = _parser().parse_args(argv)
    tasks = [get_task(name).name for name in arguments.tasks.split(",")]
    keep_freed_memory()
    device = pick_device(arguments.device)
    prior = LatentPrior.load(arguments.prior, device=device, dtype=pick_dtype(device))
    photos = _spread(list(iterate_photos(arguments.data, arguments.split)), arguments.limit)
    restorer = Restorer(prior, operator=arguments.operator)
    output: Path = arguments.out
    output.mkdir(parents=True, exist_ok=True)
    record = _Record(output / "metrics.json")
    progress = tqdm(total=len(tasks) * len(photos), unit="picture")
    for task in tasks:
        for photo in photos:
            request = RestorationRequest(
                task=task,
                image=center_crop(photo, prior.native_size)[None],
                simulate=True,
                preset=arguments.preset,
                steps=arguments.steps,
                eta=arguments.eta,
                keep_known=arguments.keep_known,
                clamp=arguments.clamp,
                prompt=photo.caption if arguments.captions else "",
                guidance_scale=arguments.guidance_scale,
                seed=arguments.seed,
            )
            if not record.holds(task, photo.name):
                result = _run(restorer, request)
                record.add(task, photo.name, result)
                save_png(output / f"{task}.{photo.name}.png", _strip(result), result.parameters)
            progress.update()
        _contact_sheet(output, task, [photo.name for photo in photos])
    table = _table(record.rows, tasks)
    (output / "table.md").write_text(table)
    print(table)
    return 0


class _Record:
    """The rows measured so far, on disk after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []

    def holds(self, task: str, picture: str) -> bool:
        return any(row["task"] == task and row["picture"] == picture for row in self.rows)

    def add(self, task: str, picture: str, result: Result) -> None:
        restoration, measurement = scores(result)
        self.rows.append(
            {
                "task": task,
                "picture": picture,
                "seconds": round(result.seconds, 2),
                "nfe": result.nfe,
                "restoration": asdict(restoration),
                "measurement": asdict(measurement),
                "parameters": result.parameters,
            }
        )
        aside = self.path.with_suffix(".partial")
        aside.write_text(json.dumps(self.rows, indent=1))
        os.replace(aside, self.path)


def _run(restorer: Restorer, request: RestorationRequest) -> Result:
    for event in restorer.restore(request):
        if isinstance(event, Result):
            return event
    raise BadRequest("the sampler ended without a result")


def _spread(photos: list[Photo], limit: int | None) -> list[Photo]:
    """`limit` photos, evenly spaced, so that every folder and shard has its share."""
    count = len(photos) if limit is None else min(limit, len(photos))
    return [photos[index * len(photos) // count] for index in range(count)]


def _table(rows: list[dict[str, Any]], tasks: list[str]) -> str:
    """Means over the pictures; each metric as restoration / measurement."""
    lines = [
        "| task | pictures | PSNR | CPSNR | LPIPS | seconds | NFE |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in tasks:
        own = [row for row in rows if row["task"] == task]
        cells = [
            f"{_mean(own, 'restoration', m)} / {_mean(own, 'measurement', m)}" for m in METRICS
        ]
        seconds, nfe = mean(row["seconds"] for row in own), own[0]["nfe"]
        lines.append(f"| {task} | {len(own)} | {' | '.join(cells)} | {seconds:.1f} | {nfe} |")
    return "\n".join(lines) + "\n\nEach metric: restoration / measurement. Means over pictures.\n"


def _mean(rows: list[dict[str, Any]], kind: str, metric: str) -> str:
    values = [row[kind][metric] for row in rows]
    if None in values:
        return "not available"
    return f"{mean(values):.3f}" if metric == "lpips" else f"{mean(values):.2f}"


def _strip(result: Result) -> Tensor:
    """Clean, measurement and restoration side by side: (1, 3, H, 3 W)."""
    clean = result.clean
    assert clean is not None, "evaluation simulates the damage"
    return torch.cat([clean, result.measurement, result.images[:1]], dim=-1)


def _contact_sheet(output: Path, task: str, names: list[str], columns: int = 2) -> None:
    """All strips of a task on one sheet, `columns` strips wide, at half size."""
    strips = [load_image(output / f"{task}.{name}.png").pixels for name in names]
    width, height = strips[0].shape[-1] // 2, strips[0].shape[-2] // 2
    rows = -(-len(strips) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for index, strip in enumerate(strips):
        place = (index % columns * width, index // columns * height)
        sheet.paste(to_pil(strip).resize((width, height), Image.Resampling.LANCZOS), place)
    sheet.save(output / f"{task}.jpg", quality=90)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m silo evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders or tar shards")
    parser.add_argument("--split", choices=SPLITS, default="held_out")
    parser.add_argument("--tasks", default=",".join(PAPER_TASKS), help=", ".join(TASKS))
    parser.add_argument("--limit", type=int, help="how many pictures, evenly spaced among all")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prior", default="tiny")
    parser.add_argument("--operator", help="folder or Hub id, in place of the shelf's")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="balanced")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--eta", type=float)
    parser.add_argument("--clamp", type=float)
    parser.add_argument("--keep-known", action="store_true", help="with a mask: as `restore` does")
    parser.add_argument("--captions", action="store_true", help="use each picture's caption")
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
