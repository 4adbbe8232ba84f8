"""Noise alone, and what of a noisy picture rises above its noise."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from operators.pixel_operator import PixelOperator
from operators.wiener import above_noise

# In [-1, 1], how far a speck is from the median around it at least; and of all values, how many
# black ones there are in a picture with specks, and white ones.
SPECK, LEAST_SPECKS = 0.3, 0.002


@dataclass(frozen=True)
class Denoising(PixelOperator):
    """The identity: only the noise degrades the picture."""

    def explain(self, x: Tensor, y: Tensor, noise_sigma: float) -> Tensor:
        """The restoration, and what of y - x rises above the noise.

        Where x accounts for all but the noise, hardly anything does (`above_noise`). Specks of
        black and white are left out.
        """
        y = _without_specks(y)
        return (x + above_noise(y - x, y, noise_sigma, flat=x)).clamp(-1, 1)

    def _apply(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x


def _without_specks(y: Tensor) -> Tensor:
    """Pictures (B, 3, H, W), of those with specks the median around in place of each.

    A speck is black or white and unlike what is around. Stars and glints are no more than few, or
    white alone.
    """
    padded = F.pad(y, (1, 1, 1, 1), mode="replicate")
    unlike = (y - F.avg_pool2d(padded, 3, 1)).abs() > SPECK / 2
    batch, channel, row, column = ((y.abs() >= 1) & unlike).nonzero(as_tuple=True)
    around = torch.stack(
        [padded[batch, channel, row + i, column + j] for i in range(3) for j in range(3)]
    )
    here, median = y[batch, channel, row, column], around.median(dim=0).values
    specks = (here - median).abs() > SPECK
    share = torch.stack(
        [torch.bincount(batch[specks & side], minlength=len(y)) for side in (here > 0, here < 0)]
    )
    many = (share >= LEAST_SPECKS * y[0].numel()).all(dim=0)
    without = y.clone()
    without[batch, channel, row, column] = torch.where(specks & many[batch], median, here)
    return without
