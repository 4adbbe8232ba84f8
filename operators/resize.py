"""Super-resolution: antialiased bicubic down-scaling as explicit weight matrices."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from operators.pixel_operator import PixelOperator, Range, check_images

BLOCK = 512  # new pixels whose weights are one matrix


def bicubic(t: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5, zero beyond |t| = 2."""
    t = t.abs()
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return torch.where(t < 1, near, torch.where(t < 2, far, torch.zeros_like(t)))


@functools.lru_cache(maxsize=4)  # iterations apply the same two again and again
def resize_matrix(size: int, new_size: int) -> list[tuple[int, Tensor]]:
    """Weights, float64, that resize one axis bicubically, as Pillow does: a banded matrix.

    Down-scaling stretches the kernel by the factor (antialiasing). At the border the kernel is cut
    to the picture and its weights are made to sum to 1 again. Do not write to them: they are kept.

    Returns:
        For each `BLOCK` new pixels the first pixel that they are made of, and their weights (new
        pixels, pixels): the whole matrix, nearly all zeros, would take gigabytes for a long side.
    """
    scale = size / new_size
    stretch = max(scale, 1.0)
    blocks = []
    for start in range(0, new_size, BLOCK):
        new = torch.arange(start, min(start + BLOCK, new_size), dtype=torch.float64)
        centre = (new[:, None] + 0.5) * scale
        first = max(math.floor(centre[0].item() - 2 * stretch), 0)
        last = min(math.ceil(centre[-1].item() + 2 * stretch), size)
        position = torch.arange(first, last, dtype=torch.float64)[None, :] + 0.5
        weights = bicubic((position - centre) / stretch)
        blocks.append((first, weights / weights.sum(dim=1, keepdim=True)))
    return blocks


def _resize_rows(images: Tensor, height: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, height, W)."""
    blocks = [
        weights.to(images) @ images.narrow(-2, first, weights.shape[1])
        for first, weights in resize_matrix(images.shape[-2], height)
    ]
    return torch.cat(blocks, dim=-2)


def _transposed_resize_rows(images: Tensor, height: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, height, W), the transpose of `_resize_rows` in the other direction."""
    resized, start = images.new_zeros(*images.shape[:-2], height, images.shape[-1]), 0
    for first, weights in resize_matrix(height, images.shape[-2]):
        block = weights.to(images).T @ images.narrow(-2, start, len(weights))
        resized.narrow(-2, first, weights.shape[1]).add_(block)
        start += len(weights)
    return resized


def _in_both_directions(
    resize: Callable[[Tensor, int], Tensor], images: Tensor, height: int, width: int
) -> Tensor:
    return resize(resize(images, height).mT, width).mT.contiguous()


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
        return _in_both_directions(_resize_rows, y, height * self.factor, width * self.factor)

    def clean(self, y: Tensor, noise_sigma: float, expected: float) -> Tensor:
        """As `PixelOperator.clean`, but for as much noise as is expected.

        Detail of a picture this small is hardly larger than noise, and goes with it.
        """
        return y + (1 - expected / noise_sigma) * (super().clean(y, noise_sigma, expected) - y)

    def _apply(self, x: Tensor, mask: Tensor | None) -> Tensor:
        height, width = x.shape[-2:]
        return _in_both_directions(_resize_rows, x, height // self.factor, width // self.factor)

    def _transpose(self, y: Tensor, mask: Tensor | None) -> Tensor:
        height, width = y.shape[-2:]
        return _in_both_directions(
            _transposed_resize_rows, y, height * self.factor, width * self.factor
        )
