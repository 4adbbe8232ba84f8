"""Super-resolution: antialiased bicubic down-scaling as explicit weight matrices."""

import functools
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from operators.pixel_operator import PixelOperator, Range, check_images


def bicubic(t: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5, zero beyond |t| = 2."""
    t = t.abs()
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return torch.where(t < 1, near, torch.where(t < 2, far, torch.zeros_like(t)))


@functools.lru_cache(maxsize=4)  # iterations apply the same two again and again
def resize_matrix(size: int, new_size: int) -> Tensor:
    """Weights (new_size, size), float64, that resize one axis bicubically, as Pillow does.

    Down-scaling stretches the kernel by the factor (antialiasing). At the border the kernel is cut
    to the picture and its weights are made to sum to 1 again. Do not write to it: it is kept.
    """
    scale = size / new_size
    centre = (torch.arange(new_size, dtype=torch.float64)[:, None] + 0.5) * scale
    position = torch.arange(size, dtype=torch.float64)[None, :] + 0.5
    weights = bicubic((position - centre) / max(scale, 1.0))
    return weights / weights.sum(dim=1, keepdim=True)


def _transform(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`rows` @ image @ `columns`^T for every channel."""
    return rows.to(images) @ images @ columns.to(images).T


@dataclass(frozen=True)
class SuperResolution(PixelOperator):
    """Down-scaling by an integer factor; the paper's x4 and x8."""

    factor: Annotated[int, Range(2, 64)]

    @property
    def downscale(self) -> int:
        """The down-scaling factor."""
        return self.factor

    def to_full_size(self, y: Tensor) -> Tensor:
        """`y` up-scaled bicubically (a = -0.5) by the factor, (B, 3, h * factor, w * factor)."""
        check_images(y)
        height, width = y.shape[-2:]
        rows = resize_matrix(height, height * self.factor)
        return _transform(y, rows, resize_matrix(width, width * self.factor))

    def clean(self, y: Tensor, noise_sigma: float, expected: float) -> Tensor:
        """As `PixelOperator.clean`, but for as much noise as is expected.

        Detail of a picture this small is hardly larger than noise, and goes with it.
        """
        return y + (1 - expected / noise_sigma) * (super().clean(y, noise_sigma, expected) - y)

    def _apply(self, x: Tensor, mask: Tensor | None) -> Tensor:
        height, width = x.shape[-2:]
        rows = resize_matrix(height, height // self.factor)
        return _transform(x, rows, resize_matrix(width, width // self.factor))

    def _transpose(self, y: Tensor, mask: Tensor | None) -> Tensor:
        height, width = y.shape[-2:]
        rows = resize_matrix(height * self.factor, height)
        return _transform(y, rows.T, resize_matrix(width * self.factor, width).T)
