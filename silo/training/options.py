"""What the options of the training commands have in common."""

import argparse
import math
from collections.abc import Iterable

import torch

from silo.devices import pick_dtype
from silo.errors import BadRequest

_PRECISIONS = {"no": "float32", "bf16": "bfloat16"}


def check_above_zero(arguments: argparse.Namespace, names: Iterable[str]) -> None:
    """Raise BadRequest unless each of these options is above 0 and finite, or was not given."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise BadRequest(f"--{name} must be above 0, not {value}.")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add how often a run is saved, what it draws, and where it happens."""
    parser.add_argument(
        "--checkpointing_steps",
        type=int,
        default=200,
        help="save after so many steps each; %(default)s by default",
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")


def add_mixed_precision(parser: argparse._ActionsContainer) -> None:
    """Add the option that `pick_training_dtype` reads."""
    parser.add_argument(
        "--mixed_precision",
        choices=tuple(_PRECISIONS),
        help="by default what the device is good at",
    )


def pick_training_dtype(device: torch.device, mixed_precision: str | None) -> torch.dtype:
    """The number format to encode and train in.

    Args:
        device: where.
        mixed_precision: "no" for float32, "bf16", or None for bfloat16 on GPUs that have it and
            float32 elsewhere.

    Raises:
        BadRequest: the device has no such format.
    """
    if mixed_precision is not None:
        return pick_dtype(device, _PRECISIONS[mixed_precision])
    dtype = pick_dtype(device)
    return torch.float32 if dtype == torch.float16 else dtype  # where gradients would underflow
