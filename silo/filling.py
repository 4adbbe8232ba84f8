"""Puts what is known back around a hole, and carries its tones on into what is painted there."""

import torch
import torch.nn.functional as F
from torch import Tensor

RELAXATIONS = 12  # at each level; with 32 restorations are the same to 0.05 dB
# Beside what is known, what that is carried on to is as good as the detail that is painted; so many
# pixels further in, by 1 / e less so.
LEAST_DETAIL, DEPTH = 0.5, 4.0
DEPTHS = round(4 * DEPTH)  # pixels; beyond, all detail counts


def keep_known(restored: Tensor, measurement: Tensor, mask: Tensor) -> Tensor:
    """The measurement where it is known; in the hole what is restored, on the tones around it.

    What a restoration is off by at the rim of a hole, it is off by inside, too: that is carried on
    into the hole by a membrane (Pérez, Gangnet and Blake, "Poisson image editing", 2003), and so
    leaves no seam. Near the rim, and so in all of a scratch, detail counts less.

    Args:
        restored: (B, 3, H, W) in [-1, 1].
        measurement: (1, 3, H, W), whose known pixels carry the measurement's noise.
        mask: (1, 1, H, W), 1 = known, 0 = hole; something is known.
    """
    measurement, mask = measurement.to(restored), mask.to(restored)
    plain = membrane(measurement, mask)
    detail = restored - membrane(restored, mask)
    filled = (plain + _weight(mask) * detail).clamp(-1, 1)
    return torch.where(mask > 0, measurement, filled)


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
    for _ in range(RELAXATIONS):
        found = _around(torch.where(mask > 0, pixels, found))
    return torch.where(mask > 0, pixels, found)


def _around(pixels: Tensor) -> Tensor:
    """The mean of the four pixels beside each; at the rim a pixel stands in for those beyond."""
    padded = F.pad(pixels, (1, 1, 1, 1), mode="replicate")
    above_and_below = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1]
    return (above_and_below + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]) / 4


def _weight(mask: Tensor) -> Tensor:
    """How much of the painted detail counts in each place, (1, 1, H, W)."""
    depth, known = torch.zeros_like(mask), mask
    for _ in range(DEPTHS):
        depth += 1 - known
        known = F.max_pool2d(known, 3, stride=1, padding=1)
    return 1 - (1 - LEAST_DETAIL) * torch.exp(-depth / DEPTH)
