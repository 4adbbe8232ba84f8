"""Compares restorations over many clean pictures: metrics.json, table.md, a plot, contact sheets.

    python -m silo evaluate --data PHOTOS... --tasks T,... --samplers S,... --limit 20 --out DIR
    python -m silo evaluate --data FFHQ --protocol ffhq --out DIR
    python -m silo evaluate --dataset_name ORG/NAME@COMMIT ... --out DIR   (pictures from the Hub)
    accelerate launch -m silo.evaluate ...          (the pictures are shared out among processes)

Every picture's central square is degraded and restored at the prior's native size. LPIPS, FID and
KID need weights: a folder named by $SILO_METRIC_WEIGHTS. A run that was interrupted goes on where
it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from operators.catalog import TASKS, own_task
from operators.files import write_whole
from silo import __version__
from silo.allocation import keep_freed_memory
from silo.command_line import CommandParser
from silo.data import SPLITS, PhotoFile, list_photos
from silo.devices import describe_device, dtype_name
from silo.errors import BadRequest
from silo.evaluation.jobs import Store, clean_key, job_key, measurement_key
from silo.evaluation.plan import Overrides, from_axes, from_protocol
from silo.evaluation.plot import quality_against_time
from silo.evaluation.protocols import PAPER_TASKS, PROTOCOLS, Protocol, Setting
from silo.evaluation.record import Record
from silo.evaluation.report import (
    MEASUREMENT,
    Cell,
    accuracies,
    comparison,
    figures,
    method_title,
    published,
    row_title,
    summarize,
)
from silo.evaluation.runner import Runner
from silo.evaluation.search import search
from silo.evaluation.sheets import contact_sheet
from silo.folders import make_folder
from silo.hub_dataset import fetch_dataset
from silo.inception import Inception, find_inception
from silo.own_degradation import load_degradation
from silo.samplers import SAMPLERS

PLAIN_STEPS_SCALE = 0.1  # without a protocol
_WORLD = (("RANK", "0"), ("WORLD_SIZE", "1"))  # `accelerate launch` sets them for each process


def main(argv: list[str] | None = None) -> int:
    """Run the evaluation; returns 0, or 1 when some pictures could not be restored."""
    arguments = _parser().parse_args(argv)
    protocol = PROTOCOLS[arguments.protocol] if arguments.protocol else None
    settings = _plan(arguments, protocol)
    keep_freed_memory()
    rank, processes = (int(os.environ.get(name, default)) for name, default in _WORLD)
    dataset = fetch_dataset(arguments.dataset_name) if arguments.dataset_name else None
    folders: list[Path] = dataset.folders if dataset else arguments.data
    photos, others = _select(folders, arguments, protocol)
    bare = [photo.name for photo in (*photos, *others) if not photo.caption]
    if bare and any(setting.prompt is None for setting in settings):
        raise BadRequest(f"{bare[0]} has no caption: write it to {bare[0]}.txt beside the picture.")
    inception = find_inception()
    output: Path = arguments.out
    make_folder(output)
    runner = Runner(
        Store(output, Inception(inception) if inception else None),
        Record(output, rank),
        protocol.study if protocol else None,
        arguments.device,
        arguments.dtype,
        show_progress=rank == 0,
    )
    searched: list[dict[str, Any]] = []
    if arguments.search:
        best, searched = search(runner, settings, others, alone=processes == 1)
        settings = [each for pair in zip(settings, best, strict=True) for each in pair]
    runner.run(settings, photos[rank::processes])
    runner.record.refresh()
    if not runner.is_done(settings, photos):
        print("Done here; the process that ends last writes the tables.", file=sys.stderr)
        return 0
    cells = _summarize(runner, settings, photos)
    data = [folder.name for folder in folders]
    if dataset is not None:
        data = [f"{dataset.repo_id}@{dataset.commit}"]
    _write(runner, settings, photos, cells, data, arguments, protocol, searched)
    return 1 if any(cell.failed for cell in cells) else 0


def _plan(arguments: argparse.Namespace, protocol: Protocol | None) -> list[Setting]:
    """The settings to compare.

    Raises:
        BadRequest: an option says what the protocol says already.
    """
    if protocol is None:
        own = None
        if arguments.degradation is not None:
            loaded = load_degradation(arguments.degradation)
            own = own_task(arguments.tasks or loaded.name, loaded.degradation)
        overrides = Overrides(
            tasks=(arguments.tasks or ",".join(PAPER_TASKS)).split(","),
            samplers=(arguments.samplers or "silo").split(","),
            prior=arguments.prior,
            operators=arguments.operator or (),
            steps_scale=_or(arguments.steps_scale, PLAIN_STEPS_SCALE),
            steps=arguments.steps,
            eta=arguments.eta,
            seed=arguments.seed,
        )
        if arguments.captions and arguments.prompt:
            raise BadRequest("--captions takes the place of --prompt: leave one of them out.")
        return from_axes(
            overrides,
            noise_sigmas=arguments.noise_sigma or (),
            prompts=[None] if arguments.captions else arguments.prompt or [""],
            guidance_scales=arguments.guidance_scale or [1.0],
            clamp=arguments.clamp,
            keep_known=arguments.keep_known,
            own=own,
        )
    fixed = ("noise_sigma", "captions", "guidance_scale", "clamp", "keep_known")
    for name in ("degradation", *fixed):
        if getattr(arguments, name):
            option = name.replace("_", "-")
            raise BadRequest(f"--{option} is the protocol's to set: leave it or --protocol out.")
    if arguments.prompt and len(arguments.prompt) > 1:
        raise BadRequest("a protocol takes one --prompt, in place of its generic one.")
    if arguments.search and protocol.study:
        raise BadRequest("this protocol restores nothing, so there is nothing to search.")
    overrides = Overrides(
        tasks=arguments.tasks.split(",") if arguments.tasks else (),
        samplers=arguments.samplers.split(",") if arguments.samplers else (),
        prior=arguments.prior,
        operators=arguments.operator or (),
        steps_scale=_or(arguments.steps_scale, 1.0),
        steps=arguments.steps,
        eta=arguments.eta,
        prompt=arguments.prompt[0] if arguments.prompt else None,
        seed=arguments.seed,
    )
    return from_protocol(protocol, overrides)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _select(
    folders: list[Path], arguments: argparse.Namespace, protocol: Protocol | None
) -> tuple[list[PhotoFile], list[PhotoFile]]:
    """The pictures of `folders` to evaluate, and the others to search hyper-parameters on.

    The paper's protocols take the first pictures of their data sets; a split is a part of the data.
    Of either, `--limit` pictures are evenly spaced, so that every folder and shard has its share.

    Raises:
        BadRequest: two pictures share a name, none are asked for, or too few are left to search on.
    """
    if arguments.limit is not None and arguments.limit < 1:
        raise BadRequest(f"--limit {arguments.limit} leaves nothing to evaluate: set 1 or more.")
    if arguments.search < 0:
        raise BadRequest(f"--search {arguments.search}: set the number of pictures, or 0 for none.")
    split, limit = _split(arguments, protocol), arguments.limit
    photos, others = list_photos(folders, split or "all"), []
    if protocol is not None and split is None:
        photos, others = photos[: protocol.pictures], photos[protocol.pictures :]
    elif protocol is not None and limit is None:
        limit = protocol.pictures
    names = Counter(photo.name for photo in photos)
    if twice := sorted(name for name, times in names.items() if times > 1):
        raise BadRequest(f"several pictures are called {twice[0]!r}: give them names of their own.")
    count = len(photos) if limit is None else min(limit, len(photos))
    chosen = {index * len(photos) // count for index in range(count)}
    rest = [photo for index, photo in enumerate(photos) if index not in chosen]
    others = (others or rest[:: max(1, len(rest) // max(1, arguments.search))])[: arguments.search]
    if len(others) < arguments.search:
        raise BadRequest(
            f"--search {arguments.search} needs as many pictures beside those to evaluate: set a "
            "--limit."
        )
    return [photos[index] for index in sorted(chosen)], others


def _split(arguments: argparse.Namespace, protocol: Protocol | None) -> str | None:
    """The part of the data to evaluate; None for its first pictures."""
    if arguments.split is None and protocol is not None:
        return protocol.split
    return arguments.split or "held_out"


def _summarize(
    runner: Runner, settings: Sequence[Setting], photos: Sequence[PhotoFile]
) -> list[Cell]:
    """The means of every setting, and of the measurement of every row."""
    cells: dict[tuple[str, str], Cell] = {}
    for setting in settings:
        key = job_key(setting, runner.study)
        size = runner.record.rows(key, photos)[0]["size"]
        row, method = row_title(setting, settings), method_title(setting, settings)
        keys = {method: key}
        if runner.study is None:
            keys = {MEASUREMENT: measurement_key(setting, size), **keys}
        elif runner.study == "autoencoder":
            row, keys = "D(E(x))", {setting.prior: key}
        for title, key in keys.items():
            if (row, title) not in cells:
                rows = runner.record.rows(key, photos)
                cells[row, title] = summarize(row, title, key, rows, runner.store, size)
    return list(cells.values())


def _write(
    runner: Runner,
    settings: Sequence[Setting],
    photos: Sequence[PhotoFile],
    cells: Sequence[Cell],
    data: Sequence[str],
    arguments: argparse.Namespace,
    protocol: Protocol | None,
    searched: list[dict[str, Any]],
) -> None:
    """Write metrics.json, table.md, the plot and the contact sheets, and print the table."""
    output: Path = arguments.out
    metrics = {
        "protocol": arguments.protocol,
        "data": data,
        "split": _split(arguments, protocol),
        "pictures": [photo.name for photo in photos],
        "device": describe_device(runner.device),
        "dtype": dtype_name(runner.dtype),
        "versions": {
            "silo": __version__,
            **{name: version(name) for name in ("torch", "diffusers", "transformers")},
        },
        "metric_weights": runner.store.measures,
        "settings": {setting.key: setting.to_dict() for setting in settings},
        "search": searched,
        "means": [asdict(cell) for cell in cells],
        "rows": [row for cell in cells for row in runner.record.rows(cell.key, photos)],
    }
    encoded = json.dumps(metrics, indent=1, allow_nan=False).encode()
    write_whole(output / "metrics.json", encoded)
    table = _table(runner, len(photos), cells, protocol)
    write_whole(output / "table.md", table.encode())
    print(table)
    if runner.study is None:
        write_whole(output / "quality-time.svg", quality_against_time(cells).encode())
        for title in dict.fromkeys(cell.row for cell in cells):
            row = [setting for setting in settings if row_title(setting, settings) == title]
            path = output / f"{title.replace(', ', '-').replace(' ', '-')}.jpg"
            columns = _columns(runner, row, settings, photos)
            contact_sheet(path, columns, zoom=protocol is not None and protocol.zoom)


def _table(runner: Runner, pictures: int, cells: Sequence[Cell], protocol: Protocol | None) -> str:
    title = "Evaluation" if protocol is None else protocol.title[0].upper() + protocol.title[1:]
    text = f"# {title}\n\n"
    if runner.study == "operator-accuracy":
        return text + accuracies(cells)
    text += f"## Measured here\n\nMeans over {pictures} pictures.\n\n{comparison(cells)}\n"
    if protocol is not None and protocol.published is not None:
        text += f"## Published, not measured here\n\n{published(protocol.published)}\n"
    return text + f"## Every figure measured here\n\n{figures(cells)}"


def _columns(
    runner: Runner, row: Sequence[Setting], settings: Sequence[Setting], photos: Sequence[PhotoFile]
) -> list[tuple[str, list[Path | None]]]:
    """The columns of a row's contact sheet; several samples are columns of their own."""
    size = runner.record.rows(row[0].key, photos)[0]["size"]
    columns = [("clean", clean_key(size), 0), (MEASUREMENT, measurement_key(row[0], size), 0)]
    for setting in row:
        for sample in range(setting.samples):
            title = method_title(setting, settings) + (f", {sample + 1}" if sample else "")
            columns.append((title, setting.key, sample))

    def kept(key: str, photo: PhotoFile, sample: int) -> Path | None:
        is_kept = runner.store.holds(key, photo)
        return runner.store.picture(key, photo.name, sample) if is_kept else None

    return [
        (title, [kept(key, photo, sample) for photo in photos]) for title, key, sample in columns
    ]


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m silo evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    pictures = parser.add_mutually_exclusive_group(required=True)
    pictures.add_argument("--data", type=Path, nargs="+", help="folders of pictures or tar shards")
    pictures.add_argument(
        "--dataset_name",
        metavar="ORG/NAME[@REVISION]",
        help="pictures, tar shards or Parquet tables on the Hub",
    )
    parser.add_argument(
        "--split",
        choices=SPLITS,
        help="which part of the pictures; held_out by default, and with a protocol of the paper "
        "its first pictures",
    )
    parser.add_argument("--limit", type=int, help="how many pictures, evenly spaced among all")
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    parser.add_argument("--protocol", choices=tuple(PROTOCOLS), help="a comparison of the paper")
    parser.add_argument("--tasks", help=f"by default the paper's; {', '.join(TASKS)}")
    parser.add_argument(
        "--degradation",
        metavar="FILE",
        help="your own task's: FILE.py:FUNCTION (it is run), or FILE.json",
    )
    parser.add_argument("--samplers", help=f"by default silo; {', '.join(SAMPLERS)}")
    parser.add_argument("--prior", help="tiny; with a protocol: in place of its priors")
    parser.add_argument(
        "--operator", nargs="+", help="folders, Hub ids or architectures, in place of the shelf's"
    )
    parser.add_argument(
        "--steps-scale",
        type=float,
        help=f"of every sampler's published steps; {PLAIN_STEPS_SCALE}, 1 with a protocol",
    )
    parser.add_argument("--steps", type=int, help="of every sampler")
    parser.add_argument(
        "--eta", type=float, help="consistency scale, for 1,000 steps; silo-fast: for any"
    )
    parser.add_argument(
        "--clamp",
        type=float,
        help="bound on each element of the guidance gradient; no bound by default",
    )
    parser.add_argument("--noise-sigma", type=float, nargs="+", help="for pictures in [0, 1]")
    parser.add_argument(
        "--keep-known", action="store_true", help="what is measured, as `restore` does"
    )
    parser.add_argument(
        "--prompt", nargs="+", help="each for every picture; with a protocol: its generic prompt"
    )
    parser.add_argument("--captions", action="store_true", help="use each picture's caption")
    parser.add_argument("--guidance-scale", type=float, nargs="+", help="of the prompt; 1 for none")
    parser.add_argument(
        "--search",
        type=int,
        default=0,
        metavar="N",
        help="also with the guidance scales that do best on N further pictures",
    )
    parser.add_argument("--seed", type=int, help="of every picture")
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    return parser


if __name__ == "__main__":
    from silo.__main__ import main as command

    raise SystemExit(command(["evaluate", *sys.argv[1:]]))
