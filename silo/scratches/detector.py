"""Finds the marks of a photo: the mask that somebody would have to paint."""

import functools
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from skimage.filters import apply_hysteresis_threshold
from torch import Tensor

from operators.pretrained import WEIGHTS_NAME, read_weights
from silo.errors import Unrestorable
from silo.scratches.network import MULTIPLE, ScratchNet

FOLDER = Path(__file__).parent / "embedded"
LARGEST_SIDE = 1536  # px, of what is looked at: larger scans show their scratches still
# px: large photos are looked at as small as this, too. The network knows marks of up to 6 pixels.
SMALLER_SIDES, TIMES_SMALLER = (768, 384), 5 / 3
# A mark is what is likely one throughout and somewhere surely: details that resemble one are not.
# More of them do where a photo is seen smaller.
LIKELY, SURE = 0.5, 0.98
LIKELY_WIDE, SURE_WIDE = 0.6, 0.99
RIM = 1  # px around a mark, which is soft there: what is left of it would be carried into the hole


@torch.no_grad()
def find_scratches(photo: Tensor) -> Tensor:
    """Mark scratches, hairs, dust, creases and lost patches.

    Args:
        photo: (1, 3, H, W) in [-1, 1].

    Returns:
        (1, 1, H, W), 1 = known, 0 = a mark or its rim.

    Raises:
        Unrestorable: nothing is found.
    """
    height, width = photo.shape[-2:]
    seen = photo.to("cpu", torch.float32)
    marks: Tensor | None = None  # on the largest view
    likely, sure = LIKELY, SURE
    for view in _views(seen):
        rows, columns = view.shape[-2:]
        padding = (0, -columns % MULTIPLE, 0, -rows % MULTIPLE)
        log_odds = _network()(F.pad(view, padding, mode="replicate"))[0, 0, :rows, :columns]
        found = apply_hysteresis_threshold(log_odds.sigmoid().numpy(), likely, sure)
        found = torch.from_numpy(found)[None, None].float()
        with_rim = F.max_pool2d(found, 2 * RIM + 1, stride=1, padding=RIM)
        marks = (
            with_rim
            if marks is None
            else torch.maximum(marks, F.interpolate(with_rim, marks.shape[-2:]))
        )
        likely, sure = LIKELY_WIDE, SURE_WIDE
    assert marks is not None, "a photo has a view"
    if not marks.any():
        raise Unrestorable(
            "No scratches, dust or creases were found: mark in white what is to be filled in."
        )
    return 1 - F.interpolate(marks, (height, width))


def describe(mask: Tensor) -> str:
    """How much of a photo is filled in by a mask that was found; a sentence for the user."""
    share = 1 - mask.mean().item()
    return (
        f"{share:.1%} of the photo was found to be scratched, dusty or creased, and is filled in."
    )


def _views(photo: Tensor) -> Iterator[Tensor]:
    """A photo (1, 3, H, W) as large as it is looked at, then smaller and smaller."""
    height, width = photo.shape[-2:]
    own = max(height, width)
    largest = min(own, LARGEST_SIDE)
    smaller = [side for side in SMALLER_SIDES if largest >= TIMES_SMALLER * side]
    for side in (largest, *smaller):
        if side == own:
            yield photo
            continue
        size = max(round(height * side / own), 1), max(round(width * side / own), 1)
        yield F.interpolate(photo, size, mode="bicubic", antialias=True).clamp(-1, 1)


@functools.cache
def _network() -> ScratchNet:
    network = ScratchNet()
    network.load_state_dict(read_weights(FOLDER / WEIGHTS_NAME, network.state_dict()))
    return network.eval().requires_grad_(False)
