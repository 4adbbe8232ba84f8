"""`python -m silo degrade`: a clean picture in, its measurement out.

At the same seed it is the measurement that `restore --simulate` makes, for a picture that needs no
fitting to the prior's grid. A mask that was drawn, not given, is written beside it as
NAME_mask.png, white where the picture is lost. Files of those names are replaced, as `restore`
replaces them, but never an input.
"""

import argparse
import sys
from pathlib import Path

from operators.catalog import TASKS, Task, get_task, own_task
from operators.pixel import measure
from silo.command_line import CommandParser
from silo.errors import BadRequest
from silo.images import load_image, require_png, save_png
from silo.masks import load_mask
from silo.measured import measurement_generator
from silo.own_degradation import load_degradation
from silo.request import RestorationRequest


def main(argv: list[str]) -> int:
    """Degrade one picture; returns the exit code."""
    arguments = _parser().parse_args(argv)
    require_png(arguments.out)
    task = _task(arguments)
    loaded = load_image(arguments.input)
    mask = None if arguments.mask is None else load_mask(arguments.mask)
    request = RestorationRequest(
        task.name,
        loaded.pixels,
        simulate=True,
        degradation=None if task.name in TASKS else task.degradation,
        mask=mask,
        noise_sigma=arguments.noise_sigma,
        seed=arguments.seed,
    )
    degradation = task.degradation.with_noise(request.effective_noise_sigma)
    operator = degradation.operator()
    # The factor must divide the size: up to factor - 1 rows and columns at the far edges go.
    height, width = (
        side // operator.downscale * operator.downscale for side in request.image.shape[-2:]
    )
    generator = measurement_generator(request.seed)
    drawn = operator.draw_mask(height, width, generator) if mask is None else None
    written = [arguments.out]
    if drawn is not None:
        written.append(arguments.out.with_stem(arguments.out.stem + "_mask"))
    _check_inputs_stay(arguments, written)
    y = measure(
        request.image[..., :height, :width],
        degradation,
        generator,
        drawn if mask is None else mask,
    )
    save_png(arguments.out, y, {"degradation": degradation.to_dict(), "seed": request.seed})
    if drawn is not None:
        save_png(written[-1], (1 - 2 * drawn).expand(-1, 3, -1, -1))
    print(*written, sep="\n")
    for line in loaded.notices:
        print(line, file=sys.stderr)
    return 0


def _task(arguments: argparse.Namespace) -> Task:
    if arguments.degradation is None:
        return get_task(arguments.task)
    own = load_degradation(arguments.degradation)
    return own_task(own.name, own.degradation)


def _check_inputs_stay(arguments: argparse.Namespace, written: list[Path]) -> None:
    """Raise BadRequest if a file to be written is one that was read."""
    for given in (arguments.input, arguments.mask):
        for path in written:
            if given is not None and path.resolve() == given.resolve():
                raise BadRequest(f"{path} is one of the inputs: name another file with --out.")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m silo degrade", description=__doc__)
    parser.add_argument("input", type=Path, metavar="INPUT", help="a clean picture")
    damage = parser.add_mutually_exclusive_group(required=True)
    damage.add_argument("--task", help=", ".join(TASKS))
    damage.add_argument(
        "--degradation", metavar="FILE", help="your own: FILE.py:FUNCTION (it is run), or FILE.json"
    )
    parser.add_argument("--out", type=Path, required=True, help="the PNG file to write")
    parser.add_argument(
        "--noise-sigma",
        type=float,
        help="standard deviation of the noise to add, where white is 1; the task's by default",
    )
    parser.add_argument("--mask", type=Path, help="picture of INPUT's size; white = lost")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the noise and the mask; 0 by default"
    )
    return parser
