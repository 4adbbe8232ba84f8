"""`python -m silo degrade`: a clean picture in, its measurement out."""

import argparse
from pathlib import Path

import torch

from operators.catalog import TASKS, get_task
from operators.pixel import measure
from silo.images import load_image, save_png
from silo.masks import check_size, load_mask
from silo.request import RestorationRequest


def main(argv: list[str]) -> int:
    """Degrade one picture; returns the exit code."""
    arguments = _parser().parse_args(argv)
    task = get_task(arguments.task)
    image = load_image(arguments.input).pixels
    mask = None if arguments.mask is None else load_mask(arguments.mask)
    request = RestorationRequest(
        task.name,
        image,
        simulate=True,
        mask=mask,
        noise_sigma=arguments.noise_sigma,
        seed=arguments.seed,
    )
    degradation = task.degradation.with_noise(request.effective_noise_sigma)
    operator = degradation.operator()
    # The factor must divide the size: up to factor - 1 rows and columns at the far edges go.
    height, width = (side // operator.downscale * operator.downscale for side in image.shape[-2:])
    generator = torch.Generator().manual_seed(request.seed)
    if mask is None:
        mask = operator.draw_mask(height, width, generator)
    else:
        check_size(mask, image)
    y = measure(image[..., :height, :width], degradation, generator, mask)
    parameters = {"degradation": degradation.to_dict(), "seed": request.seed}
    save_png(arguments.out, y[0], parameters)
    print(arguments.out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m silo degrade", description=__doc__)
    parser.add_argument("input", type=Path, metavar="INPUT", help="a clean picture")
    parser.add_argument("--task", required=True, help=", ".join(TASKS))
    parser.add_argument("--out", type=Path, required=True, help="the PNG file to write")
    parser.add_argument("--noise-sigma", type=float, help="for pictures in [0, 1]")
    parser.add_argument("--mask", type=Path, help="picture of INPUT's size; white = lost")
    parser.add_argument("--seed", type=int, default=0)
    return parser
