"""Puts what is known back around a hole, and carries its tones on into what is painted there."""

import math
from types import EllipsisType

import torch
import torch.nn.functional as F
from torch import Tensor

# At each level; with 32 restorations are the same to 0.05 dB. Large ones take seconds.
RELAXATIONS, LARGE, OF_LARGE = 12, 2**20, 4
# Beside what is known, what that is carried on to is as good as the detail that is painted; so many
# restored pixels further in, by 1 / e less so. From so many on all detail counts. Of a restoration
# that was scaled up the square of that counts: what is known is finer than what is painted.
LEAST_DETAIL, DEPTH, DEEP = 0.5, 4.0, 16
MARGIN = 16  # pixels of what is known around holes that are looked at


def keep_known(
    restored: Tensor, measurement: Tensor, mask: Tensor, *, magnified: float = 1.0
) -> Tensor:
    """The measurement where it is known; in the hole what is restored, on the tones around it.

    What a restoration is off by at the rim of a hole, it is off by inside, too: that is carried on
    into the hole by a membrane (Pérez, Gangnet and Blake, "Poisson image editing", 2003), and so
    leaves no seam. Near the rim, and so in all of a scratch, detail counts less.

    Args:
        restored: (B, 3, H, W) in [-1, 1].
        measurement: (1, 3, H, W), whose known pixels carry the measurement's noise.
        mask: (1, 1, H, W), 1 = known, 0 = hole.
        magnified: by how much the restoration was scaled up, whose detail is as much coarser.
    """
    if not mask.any():
        return restored
    filled = measurement.to(restored).repeat(len(restored), 1, 1, 1)
    if mask.all():
        return filled
    window = _around_holes(mask)
    measurement, restored, mask = filled[window], restored[window], mask.to(restored)[window]
    detail = restored - membrane(restored, mask)
    painted = membrane(measurement, mask) + _weight(mask, magnified) * detail
    filled[window] = torch.where(mask > 0, measurement, painted.clamp(-1, 1))
    return filled


def membrane(pixels: Tensor, mask: Tensor) -> Tensor:
    """The pixels where they are known; elsewhere about the mean of those around each.

    Args:
        pixels: (B, C, H, W).
        mask: (1, 1, H, W), 1 = known, 0 = not; something is known.
    """
    if bool((mask > 0).all()):
        return pixels
    height, width = pixels.shape[-2:]
    padding = (0, width % 2, 0, height % 2)
    share = F.avg_pool2d(F.pad(mask, padding), 2)
    sums = F.avg_pool2d(F.pad(pixels * mask, padding), 2)
    coarse = membrane(sums / share.clamp(min=1e-6), (share > 0).to(mask))
    found = F.interpolate(coarse, scale_factor=2, mode="bilinear")[..., :height, :width]
    for _ in range(RELAXATIONS if mask.numel() <= LARGE else OF_LARGE):
        found = _around(torch.where(mask > 0, pixels, found))
    return torch.where(mask > 0, pixels, found)


def _around_holes(mask: Tensor) -> tuple[slice | EllipsisType, ...]:
    """The part of a picture that holds all that is unknown, and what is known around."""
    unknown = (mask == 0).any(dim=1)[0]
    places = [unknown.any(dim=along).nonzero().flatten().tolist() for along in (1, 0)]
    return ..., *(slice(max(each[0] - MARGIN, 0), each[-1] + 1 + MARGIN) for each in places)


def _around(pixels: Tensor) -> Tensor:
    """The mean of the four pixels beside each; at the rim a pixel stands in for those beyond."""
    padded = F.pad(pixels, (1, 1, 1, 1), mode="replicate")
    above_and_below = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1]
    return (above_and_below + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]) / 4


def _weight(mask: Tensor, magnified: float) -> Tensor:
    """How much of the painted detail counts in each place, (1, 1, H, W)."""
    height, width = (math.ceil(side / magnified) for side in mask.shape[-2:])
    known = mask if magnified == 1 else F.adaptive_avg_pool2d(mask, (height, width))
    depth = torch.zeros_like(known)
    for _ in range(DEEP):
        depth += 1 - known
        known = F.max_pool2d(known, 3, stride=1, padding=1)
    weight = 1 - (1 - LEAST_DETAIL) * torch.exp(-depth / DEPTH)
    if magnified == 1:
        return weight
    return F.interpolate(weight.square(), mask.shape[-2:], mode="bilinear")
