"""How strongly a photo was compressed as a JPEG file, found from the photo alone."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from operators.jpeg import Jpeg, luma_coefficients
from silo.images import middle

HIGHEST = 92  # beyond, some steps are as small as what rounding pixels does to a coefficient
BLOCKS = 2048  # evenly spread, are looked at
# Levels that rounding pixels moves a coefficient by at most. Where steps are coarse, many blocks
# are smooth, and rounding is no noise in them: by so much of a step more, up to the last.
ROUNDING, OF_STEP, MOST_ROUNDING = 0.7, 0.03, 2.5
LARGEST = 1 - 1e-6  # of a pixel that was not cut off at black or white, which changes its block
LEAST_SHARE, TIED, CERTAIN = 0.7, 0.02, 0.9
# Fewer coefficients, or those of gradients, which have few frequencies, tell too little.
LEAST_TOLD, LEAST_POSITIONS = 40, 4


@dataclass(frozen=True)
class Compression:
    """How a picture was stored as a JPEG file.

    Attributes:
        quality: libjpeg's, 1 to 92.
        turns: the quarter turns, counter-clockwise, that it was given since.
    """

    quality: int
    turns: int


def find_compression(picture: Tensor) -> Compression | None:
    """Find how a picture was stored as a JPEG file.

    Each coefficient of its blocks' cosine transform was rounded to a multiple of a step. Of the
    qualities whose steps it fits, the lowest is it: finer steps may divide coarser ones.

    Args:
        picture: (1, 3, H, W) in [-1, 1], neither scaled nor cropped since, but for the right and
            the bottom as it was stored.

    Returns:
        None where it shows none of these.
    """
    best, best_share = None, LEAST_SHARE
    for turns in range(4):
        quality, share = _find_quality(middle(torch.rot90(picture, -turns, (-2, -1))).float())
        if share >= best_share + (0 if best is None else TIED):
            best, best_share = Compression(quality, turns), share
        if best_share >= CERTAIN:
            break
    return best


def _find_quality(picture: Tensor) -> tuple[int, float]:
    """The quality of an upright picture, and the share of what tells it that fits it."""
    if min(picture.shape[-2:]) < 8:
        return 0, 0.0
    clipped = F.max_pool2d(picture.abs().amax(dim=1, keepdim=True), 8) > LARGEST
    coefficients = luma_coefficients(picture)[~clipped].flatten(1)
    coefficients = coefficients[:: -(-len(coefficients) // BLOCKS) or 1]
    told = coefficients.abs() > 2 * MOST_ROUNDING  # what was rounded to zero fits all steps
    told[:, 0] = False  # the mean of a flat picture may fit any
    if told.sum() < LEAST_TOLD or told.any(dim=0).sum() < LEAST_POSITIONS:
        return 0, 0.0
    steps = torch.stack([Jpeg(quality).luma_steps for quality in range(1, HIGHEST + 1)])
    fits = torch.stack([_share_of_multiples(coefficients, told, each.flatten()) for each in steps])
    lowest = int((fits >= fits.max() - TIED).nonzero()[0])
    return lowest + 1, float(fits[lowest])


def _share_of_multiples(coefficients: Tensor, told: Tensor, steps: Tensor) -> Tensor:
    """How many of the told coefficients (N, 64) are multiples, beyond what chance makes them."""
    steps = steps.to(coefficients)
    off = coefficients - steps * (coefficients / steps).round()
    rounding = (ROUNDING + OF_STEP * steps).clamp(max=MOST_ROUNDING)
    chance = (2 * rounding / steps).clamp(max=1).expand_as(told)[told].mean()
    return ((off.abs() <= rounding)[told].to(chance).mean() - chance) / (1 - chance)
