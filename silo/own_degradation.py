"""Degradations of one's own: loaded from FILE.py:FUNCTION or FILE.json, checked before use."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from operators.degradation import Degradation
from operators.errors import OperatorError
from operators.function import FUNCTION, register
from silo.errors import BadDegradation

LARGEST_VALUE = 1.5  # overshoot is fine, another range of values is not
# Of results that should be equal: batches of other sizes take other paths through the kernels.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class OwnDegradation:
    """A degradation from a file.

    Attributes:
        name: what to call the task: the function's name, or the file's.
        degradation: its description.
        source: the text of the Python file; None for JSON.
    """

    name: str
    degradation: Degradation
    source: str | None


def load_degradation(place: str) -> OwnDegradation:
    """Load "FILE.py:FUNCTION", which runs that file, or "FILE.json", a `Degradation.to_dict()`.

    Raises:
        BadDegradation: there is no such file or function, or the file cannot be run or read.
    """
    file, colon, function = place.rpartition(":")
    if not colon or function.endswith(".json"):
        return _from_json(Path(place))
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise BadDegradation(
            f"There is no Python file {file}: pass --degradation FILE.py:FUNCTION or FILE.json."
        )
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        source = content.decode()
    except UnicodeDecodeError as error:
        raise BadDegradation(
            f"{path} is not UTF-8, as the model card is: save it as UTF-8."
        ) from error
    found: Any = getattr(_run(content, path, sha256), function, None)
    if not callable(found):
        raise BadDegradation(f"{path} defines no function {function}: check its name.")
    try:
        operator = register(cast(Callable[..., Tensor], found), function, sha256)
    except (OperatorError, ValueError) as error:
        raise BadDegradation(f"{path}: {error}") from error
    parameters = {"name": operator.name, "sha256": operator.sha256}
    return OwnDegradation(function, Degradation(FUNCTION, parameters), source)


def check_degradation(degradation: Degradation, size: int) -> None:
    """Try a degradation on a few made-up pictures of `size` x `size` pixels.

    It has to return finite images of the right shape and range, the same ones for the same
    generator, each from its own image alone, and must leave its input as it is.

    Raises:
        BadDegradation: it does not; the message says what to change.
    """
    pictures, others = _pictures(3, size, seed=0), _pictures(3, size, seed=1)
    given = pictures.clone()
    first = _apply(degradation, pictures)
    _check_result(degradation, first, size)
    if not torch.equal(pictures, given):
        raise BadDegradation("The degradation changes the images it is given: work on a copy.")
    again = _apply(degradation, pictures)
    if not torch.allclose(first, again, atol=TOLERANCE):
        raise BadDegradation(
            "The degradation gives another result each time: draw its random numbers from the "
            "generator that a function of (images, generator) is given."
        )
    mixed = _apply(degradation, torch.cat([pictures[:1], others[1:]]))
    if not torch.allclose(first[:1], mixed[:1], atol=TOLERANCE):
        raise BadDegradation(
            "The degradation of one image depends on the others of its batch: treat each image by "
            "itself, for example with means over the last three dimensions only."
        )
    alone = _apply(degradation, pictures[:1])
    if not degradation.operator().random and not torch.allclose(first[:1], alone, atol=TOLERANCE):
        raise BadDegradation(
            "The degradation of an image is another one in a batch than alone: treat each image by "
            "itself."
        )


def _apply(degradation: Degradation, pictures: Tensor) -> Tensor:
    operator = degradation.operator()
    size = pictures.shape[-1]
    mask = operator.draw_mask(size, size, torch.Generator().manual_seed(0))
    return operator.forward(pictures, mask, torch.Generator().manual_seed(0))


def _check_result(degradation: Degradation, result: object, size: int) -> None:
    if not isinstance(result, Tensor) or not result.is_floating_point():
        kind = result.dtype if isinstance(result, Tensor) else type(result).__name__
        raise BadDegradation(
            f"The degradation returns {kind}: return a floating-point tensor of images."
        )
    side = size // degradation.operator().downscale
    if tuple(result.shape) != (3, 3, side, side):
        raise BadDegradation(
            f"The degradation makes {tuple(result.shape)} of images (3, 3, {size}, {size}): return "
            f"(3, 3, {side}, {side}), scaled back up where it scales down."
        )
    if not torch.isfinite(result).all():
        raise BadDegradation(
            "The degradation returns values that are not finite: look for a division by zero."
        )
    largest = result.abs().max().item()
    if largest > LARGEST_VALUE:
        raise BadDegradation(
            f"The degradation returns values up to {largest:g}: return images in [-1, 1]."
        )


def _pictures(count: int, size: int, seed: int) -> Tensor:
    """Smooth colours with some texture, (count, 3, size, size) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    smooth = F.interpolate(coarse, (size, size), mode="bilinear", align_corners=False)
    fine = torch.rand(count, 3, size, size, generator=generator) * 2 - 1
    return 0.8 * smooth + 0.2 * fine


def _run(content: bytes, path: Path, sha256: str) -> ModuleType:
    """Run the very bytes that were hashed: the import system might run what it compiled before."""
    module = ModuleType(f"degradation_{sha256[:12]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for what it defines
    try:
        exec(compile(content, path, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:  # whatever somebody's file raises
        del sys.modules[module.__name__]
        raise BadDegradation(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    return module


def _from_json(path: Path) -> OwnDegradation:
    try:
        described = Degradation.from_dict(json.loads(path.read_bytes()))
    except OSError as error:
        raise BadDegradation(
            f"There is no file {path}: pass --degradation FILE.py:FUNCTION or FILE.json."
        ) from error
    except (ValueError, RecursionError) as error:  # also malformed JSON, OperatorError
        raise BadDegradation(f"{path} describes no degradation: {error}") from error
    return OwnDegradation(path.stem, described, None)
