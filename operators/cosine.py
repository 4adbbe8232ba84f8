"""The cosine transform of blocks of 8x8 pixels, orthonormal: that of JPEG files."""

import math

import torch
from torch import Tensor

BLOCK = 8  # pixels


def cosines() -> Tensor:
    """The transform (8, 8) of 8 values, float64: rows by frequency, the mean's first."""
    order = torch.arange(BLOCK, dtype=torch.float64)
    waves = torch.cos((2 * order + 1) * order[:, None] * math.pi / 16) / 2
    waves[0] /= math.sqrt(2)
    return waves


def to_coefficients(planes: Tensor) -> Tensor:
    """The cosine transform of each 8x8 block of planes (B, C, H, W), (B, C, H / 8, W / 8, 8, 8)."""
    waves = cosines().to(planes)
    blocks = planes.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK)).transpose(-3, -2)
    return waves @ blocks @ waves.T


def from_coefficients(coefficients: Tensor) -> Tensor:
    """The planes (B, C, H, W) of which `to_coefficients` gives these."""
    waves = cosines().to(coefficients)
    blocks = waves.T @ coefficients @ waves
    return blocks.transpose(-3, -2).flatten(-2).flatten(-3, -2)
