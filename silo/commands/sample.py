"""`python -m silo sample`: pictures drawn from a prior alone, which show what it knows.

OUT/NNNN.png are the pictures, OUT/grid.jpg has the first of them. With --data, FID and KID tell how
far they are from photos (see `silo evaluate` for the weights that this takes).
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from silo.command_line import CommandParser
from silo.data import SPLITS, center_crop, iterate_photos
from silo.devices import pick_device, pick_dtype
from silo.errors import BadRequest
from silo.images import save_png, to_pil
from silo.inception import Inception, find_inception
from silo.metrics import frechet_distance, kernel_distance
from silo.prior import LatentPrior
from silo.sampling import draw

BATCH = 8
GRID, CELL, GAP = 4, 192, 4  # pictures a side; pixels


def main(argv: list[str]) -> int:
    """Draw, and compare with photos where they are named; returns the exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.number < 1:
        raise BadRequest("--number must be at least 1.")
    weights = find_inception()
    if arguments.data and weights is None:
        raise BadRequest("FID and KID need Inception's weights in $SILO_METRIC_WEIGHTS.")
    if arguments.data and arguments.number < 2:
        raise BadRequest("FID and KID compare at least two pictures: raise --number.")
    device = pick_device(arguments.device)
    prior = LatentPrior.load(arguments.prior, device=device, dtype=pick_dtype(device))
    arguments.out.mkdir(parents=True, exist_ok=True)
    pictures = []
    for index in tqdm(range(0, arguments.number, BATCH), desc="drawing", unit="batch"):
        seeds = range(index, min(index + BATCH, arguments.number))
        pictures.append(_draw(prior, arguments, seeds))
    drawn = torch.cat(pictures).cpu()
    for index, picture in enumerate(drawn):
        save_png(arguments.out / f"{index:04d}.png", picture[None], _parameters(arguments, index))
    _grid(drawn[: GRID**2]).save(arguments.out / "grid.jpg", quality=90)
    if arguments.data and weights is not None:
        photos = iterate_photos(arguments.data, arguments.split, prior.native_size)
        squares = torch.stack([center_crop(photo, prior.native_size) for photo in photos])
        network = Inception(weights)
        ours, theirs = _features(network, drawn), _features(network, squares)
        distances = {
            "pictures": len(drawn),
            "photos": len(squares),
            "fid": round(frechet_distance(ours, theirs), 2),
            "kid_x1000": round(1000 * kernel_distance(ours, theirs), 2),
        }
        print(json.dumps(distances))
    return 0


def _draw(prior: LatentPrior, arguments: argparse.Namespace, seeds: range) -> Tensor:
    """Pictures of a batch; those of one prompt are drawn together."""
    pictures: dict[int, Tensor] = {}
    for offset, text in enumerate(arguments.prompt):
        mine = [seed for seed in seeds if seed % len(arguments.prompt) == offset]
        if mine:
            prompt = prior.embed(text, "", arguments.guidance_scale if text else 1.0)
            generators = [torch.Generator().manual_seed(arguments.seed + seed) for seed in mine]
            drawn = draw(prior, prompt, arguments.steps, generators)
            pictures |= dict(zip(mine, drawn, strict=True))
    return torch.stack([pictures[seed] for seed in seeds])


def _parameters(arguments: argparse.Namespace, index: int) -> dict[str, object]:
    return {
        "prior": arguments.prior,
        "prompt": arguments.prompt[index % len(arguments.prompt)],
        "guidance_scale": arguments.guidance_scale,
        "steps": arguments.steps,
        "seed": arguments.seed + index,
    }


def _grid(pictures: Tensor) -> Image.Image:
    side = GRID * (CELL + GAP) - GAP
    grid = Image.new("RGB", (side, side), "white")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, GRID)
        cell = to_pil(picture[None]).resize((CELL, CELL), Image.Resampling.LANCZOS)
        grid.paste(cell, (column * (CELL + GAP), row * (CELL + GAP)))
    return grid


def _features(network: Inception, images: Tensor) -> Tensor:
    return torch.cat([network.features(part) for part in images.split(BATCH)])


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m silo sample", description=__doc__)
    parser.add_argument("--prior", default="tiny")
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    parser.add_argument("--number", type=int, default=GRID**2, help="of pictures")
    parser.add_argument("--prompt", nargs="+", default=[""], help="texts, taken in turn")
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the first picture")
    parser.add_argument("--data", type=Path, nargs="+", help="photos to compare with")
    parser.add_argument("--split", choices=SPLITS, default="held_out")
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    return parser
