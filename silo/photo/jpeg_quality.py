"""How strongly a photo was compressed as a JPEG file, found from the photo alone."""

from dataclasses import dataclass, replace

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
# Of a file that was stored again so many coefficients fit the steps of the first time, and so many
# tell: by chance up to 0.8 of several hundred do, of fewer all. Finer first steps are not told.
STORED_BEFORE, LEAST_TOLD_BEFORE, LARGEST_CHANCE = 0.9, 200, 0.5


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
    """Find how a picture was stored as a JPEG file; of several times in the same blocks, the worst.

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
        upright = _coefficients(middle(torch.rot90(picture, -turns, (-2, -1))).float())
        quality, share = _find_quality(upright)
        if share >= best_share + (0 if best is None else TIED):
            best, best_share = (Compression(quality, turns), upright), share
        if best_share >= CERTAIN:
            break
    if best is None:
        return None
    found, coefficients = best
    return replace(found, quality=_quality_before(coefficients, found.quality) or found.quality)


def _coefficients(picture: Tensor) -> Tensor:
    """The coefficients (N, 64) of an upright picture's blocks without clipped pixels."""
    if min(picture.shape[-2:]) < 8:
        return picture.new_zeros(0, 64)
    clipped = F.max_pool2d(picture.abs().amax(dim=1, keepdim=True), 8) > LARGEST
    coefficients = luma_coefficients(picture)[~clipped].flatten(1)
    return coefficients[:: -(-len(coefficients) // BLOCKS) or 1]


def _find_quality(coefficients: Tensor) -> tuple[int, float]:
    """The quality of an upright picture, and the share of what tells it that fits it."""
    told = _told(coefficients, torch.tensor(MOST_ROUNDING))
    if told.sum() < LEAST_TOLD or told.any(dim=0).sum() < LEAST_POSITIONS:
        return 0, 0.0
    telling, position = coefficients[told], told.nonzero()[:, 1]
    fits = [
        _share_of_multiples(telling, steps, (ROUNDING + OF_STEP * steps).clamp(max=MOST_ROUNDING))
        for steps in (_steps(quality)[position] for quality in range(1, HIGHEST + 1))
    ]
    return _lowest(fits)


def _quality_before(coefficients: Tensor, quality: int) -> int | None:
    """The lower quality that a picture was stored with before that of `quality`, if it was."""
    off = _steps(quality) / 2 + ROUNDING  # by which the second time has moved coefficients
    told = _told(coefficients, off)
    telling, position = coefficients[told], told.nonzero()[:, 1]
    off, fits = off[position], []
    for steps in (_steps(before)[position] for before in range(1, quality)):
        tells = 2 * off < LARGEST_CHANCE * steps
        enough = tells.sum() >= LEAST_TOLD_BEFORE
        fits.append(
            _share_of_multiples(telling[tells], steps[tells], off[tells]) if enough else 0.0
        )
    before, share = _lowest(fits) if fits else (0, 0.0)
    return before if share >= STORED_BEFORE else None


def _lowest(fits: list[float]) -> tuple[int, float]:
    """The lowest of the qualities, from 1 on, that fit best, and how well it does."""
    quality = next(index for index, fit in enumerate(fits, 1) if fit >= max(fits) - TIED)
    return quality, fits[quality - 1]


def _steps(quality: int) -> Tensor:
    return Jpeg(quality).luma_steps.flatten().float()


def _told(coefficients: Tensor, off: Tensor) -> Tensor:
    """Which coefficients tell: what was rounded to zero fits all steps."""
    told = coefficients.abs() > 2 * off
    told[:, 0] = False  # the mean of a flat picture may fit any
    return told


def _share_of_multiples(coefficients: Tensor, steps: Tensor, off: Tensor) -> float:
    """The share of coefficients (N,) that are multiples, beyond what chance makes them.

    Args:
        coefficients: those that tell.
        steps: (N,), what each may be a multiple of.
        off: (N,), how far off it may be.
    """
    missed = (coefficients - steps * (coefficients / steps).round()).abs()
    chance = (2 * off / steps).clamp(max=1).mean()
    return float(((missed <= off).float().mean() - chance) / (1 - chance))
