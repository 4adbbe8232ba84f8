"""Pictures in other colours: linear mixtures of red, green and blue."""

import math

import torch
from torch import Tensor

# Orthonormal: brightness, and two differences of colours, in which photos have less.
OPPONENT = (
    (1 / math.sqrt(3),) * 3,
    (1 / math.sqrt(2), 0.0, -1 / math.sqrt(2)),
    (1 / math.sqrt(6), -2 / math.sqrt(6), 1 / math.sqrt(6)),
)


def mix(images: Tensor, matrix: Tensor) -> Tensor:
    """Multiply the channels of images (B, 3, H, W) by a matrix (3, 3)."""
    return torch.einsum("oc,bchw->bohw", matrix.to(images), images)


def to_opponent(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in red, green and blue -> the same in `OPPONENT`."""
    return mix(images, torch.tensor(OPPONENT, dtype=torch.float64))


def from_opponent(images: Tensor) -> Tensor:
    """Undo `to_opponent`."""
    return mix(images, torch.tensor(OPPONENT, dtype=torch.float64).T)
