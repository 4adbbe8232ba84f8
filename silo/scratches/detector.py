"""Finds the marks of a photo: the mask that somebody would have to paint."""

import functools
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
# A mark is what is likely one throughout and somewhere surely: details that resemble one are not.
LIKELY, SURE = 0.5, 0.98
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
    seen = photo.to("cpu", torch.float32)
    height, width = photo.shape[-2:]
    scale = LARGEST_SIDE / max(height, width)
    if scale < 1:
        size = max(round(height * scale), 1), max(round(width * scale), 1)
        seen = F.interpolate(seen, size, mode="bicubic", antialias=True).clamp(-1, 1)
    rows, columns = seen.shape[-2:]
    padding = (0, -columns % MULTIPLE, 0, -rows % MULTIPLE)
    log_odds = _network()(F.pad(seen, padding, mode="replicate"))[0, 0, :rows, :columns]
    found = apply_hysteresis_threshold(log_odds.sigmoid().numpy(), LIKELY, SURE)
    if not found.any():
        raise Unrestorable(
            "No scratches, dust or creases were found: mark in white what is to be filled in."
        )
    marks = torch.from_numpy(found)[None, None].float()
    marks = F.max_pool2d(marks, 2 * RIM + 1, stride=1, padding=RIM)
    return 1 - F.interpolate(marks, (height, width))


def describe(mask: Tensor) -> str:
    """How much of a photo is filled in by a mask that was found; a sentence for the user."""
    share = 1 - mask.mean().item()
    return (
        f"{share:.1%} of the photo was found to be scratched, dusty or creased, and is filled in."
    )


@functools.cache
def _network() -> ScratchNet:
    network = ScratchNet()
    network.load_state_dict(read_weights(FOLDER / WEIGHTS_NAME, network.state_dict()))
    return network.eval().requires_grad_(False)
