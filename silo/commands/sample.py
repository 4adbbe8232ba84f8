"""`python -m silo sample`: pictures drawn from a prior alone, which show what it knows.

OUT/NNNN.png are the pictures, OUT/grid.jpg has the first of them. With --data, FID and KID tell how
far they are from photos (see `silo evaluate` for the weights that this takes).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from silo.command_line import CommandParser
from silo.data import SPLITS, PhotoFile, center_crop, list_photos
from silo.devices import pick_device, pick_dtype
from silo.errors import BadRequest
from silo.folders import make_folder, require_place
from silo.images import save_png, to_pil
from silo.inception import Inception, find_inception
from silo.metrics import frechet_distance, kernel_distance
from silo.prior import LatentPrior
from silo.sampling import draw
from silo.schedule import spaced

BATCH = 8
GRID, CELL, GAP = 4, 192, 4  # pictures a side; pixels


def main(argv: list[str]) -> int:
    """Draw, and compare with photos where they are named; returns the exit code."""
    arguments = _parser().parse_args(argv)
    require_place(arguments.out)
    if arguments.number < 1:
        raise BadRequest("--number must be at least 1.")
    weights = find_inception()
    if arguments.data and weights is None:
        raise BadRequest("FID and KID need Inception's weights in $SILO_METRIC_WEIGHTS.")
    if arguments.data and arguments.number < 2:
        raise BadRequest("FID and KID compare at least two pictures: raise --number.")
    photos = list_photos(arguments.data, arguments.split) if arguments.data else []
    if len(photos) == 1:
        raise BadRequest(
            f"FID and KID compare with at least two photos, and {photos[0].name!r} is the only one "
            f"of the split {arguments.split!r}: add photos, or choose another --split."
        )
    device = pick_device(arguments.device)
    prior = LatentPrior.load(arguments.prior, device=device, dtype=pick_dtype(device))
    spaced(prior.alphas_cumprod, arguments.steps)  # raises where that many are not possible
    network = Inception(weights) if photos and weights is not None else None
    # Before anything is drawn: one of the photos may be damaged.
    theirs = None if network is None else _features(network, photos, prior.native_size)
    make_folder(arguments.out)
    shown: list[Tensor] = []
    ours: list[Tensor] = []
    for first in tqdm(range(0, arguments.number, BATCH), desc="drawing", unit="batch"):
        indices = range(first, min(first + BATCH, arguments.number))
        drawn = _draw(prior, arguments, indices).cpu()
        for index, picture in zip(indices, drawn, strict=True):
            path = arguments.out / f"{index:04d}.png"
            save_png(path, picture[None], _parameters(arguments, index))
        shown += drawn[: GRID**2 - len(shown)]
        if network is not None:
            ours.append(network.features(drawn))
    _grid(shown).save(arguments.out / "grid.jpg", quality=90)
    if theirs is not None:
        features = torch.cat(ours)
        distances = {
            "pictures": len(features),
            "photos": len(theirs),
            "fid": round(frechet_distance(features, theirs), 2),
            "kid_x1000": round(1000 * kernel_distance(features, theirs), 2),
        }
        print(json.dumps(distances, allow_nan=False))
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


def _grid(pictures: Sequence[Tensor]) -> Image.Image:
    side = GRID * (CELL + GAP) - GAP
    grid = Image.new("RGB", (side, side), "white")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, GRID)
        cell = to_pil(picture[None]).resize((CELL, CELL), Image.Resampling.LANCZOS)
        grid.paste(cell, (column * (CELL + GAP), row * (CELL + GAP)))
    return grid


def _features(network: Inception, photos: Sequence[PhotoFile], size: int) -> Tensor:
    """Features (N, 2048) of the central squares of photos, of which a batch at a time is read."""
    features = []
    for first in tqdm(range(0, len(photos), BATCH), desc="reading photos", unit="batch"):
        batch = photos[first : first + BATCH]
        squares = torch.stack([center_crop(photo.load(size), size) for photo in batch])
        features.append(network.features(squares))
    return torch.cat(features)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m silo sample", description=__doc__)
    parser.add_argument(
        "--prior", default="tiny", help="tiny (the default), sd15, rv51, a folder or a Hub id"
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    parser.add_argument("--number", type=int, default=GRID**2, help="of pictures")
    parser.add_argument("--prompt", nargs="+", default=[""], help="texts, taken in turn")
    parser.add_argument(
        "--guidance-scale", type=float, default=1.0, help="of the prompt; 1, the default, for none"
    )
    parser.add_argument(
        "--steps", type=int, default=50, help="of DDIM, for each picture; %(default)s by default"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first picture")
    parser.add_argument("--data", type=Path, nargs="+", help="photos to compare with")
    parser.add_argument(
        "--split", choices=SPLITS, default="held_out", help="part of them; %(default)s by default"
    )
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    return parser
