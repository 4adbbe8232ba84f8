"""The masking degradations: centred box, free-form strokes, random pixels and stripes."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from operators.errors import OperatorError
from operators.pixel_operator import PixelOperator, Range


class _Masking(PixelOperator):
    """A(x) = mask * x: the hole becomes 0, mid-grey in [-1, 1]; its own adjoint."""

    needs_mask: ClassVar[bool] = True

    def draw_mask(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        """As `PixelOperator.draw_mask`, never None."""
        if height < 1 or width < 1:
            raise OperatorError(f"A mask needs a positive size, not {width}x{height} pixels.")
        return self._known(height, width, generator).float()[None, None]

    @abstractmethod
    def _known(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Which pixels are known, bool (height, width)."""

    def _apply(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x * self._fitting(mask, x)

    def _fitting(self, mask: Tensor | None, images: Tensor) -> Tensor:
        """The mask on the images' device and in their type."""
        if mask is None:
            raise OperatorError(
                f"{type(self).__name__} needs a mask: pass one, or draw one with draw_mask."
            )
        batch, _, height, width = images.shape
        if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[0] not in (1, batch):
            raise OperatorError(
                f"Pass a mask of shape (1 or {batch}, 1, H, W), not {tuple(mask.shape)}."
            )
        if mask.shape[-2:] != images.shape[-2:]:
            raise OperatorError(
                f"The mask is {mask.shape[-1]}x{mask.shape[-2]} pixels and the image "
                f"{width}x{height}: pass a mask of the image's size."
            )
        return mask.to(images)


@dataclass(frozen=True)
class BoxInpainting(_Masking):
    """A centred box whose sides are `fraction` of the picture's; the paper's half the side."""

    fraction: Annotated[float, Range(0.01, 0.99)] = 0.5

    def _known(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        box_height, box_width = round(self.fraction * height), round(self.fraction * width)
        top, left = (height - box_height) // 2, (width - box_width) // 2
        known = torch.ones(height, width, dtype=torch.bool)
        known[top : top + box_height, left : left + box_width] = False
        return known


@dataclass(frozen=True)
class FreeFormInpainting(_Masking):
    """Random brush strokes, thin as scratches to broad, over a fiftieth to a third of the picture.

    A stroke is a random walk of a round brush. Its lengths scale with the shorter side, so a mask
    looks alike at every size; its width is as likely to be a hundredth of that as a tenth.
    """

    def _known(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        def uniform(low: float, high: float) -> float:
            return low + (high - low) * torch.rand((), generator=generator).item()

        side = min(height, width)
        rows = torch.arange(height, dtype=torch.float32)[:, None]
        columns = torch.arange(width, dtype=torch.float32)[None, :]
        known = torch.ones(height, width, dtype=torch.bool)

        covered, enough = 0, uniform(0.02, 0.3) * known.numel()
        while covered < enough:
            row, column = uniform(0, height - 1), uniform(0, width - 1)
            radius = max(math.exp(uniform(math.log(0.004), math.log(0.06))) * side, 0.75)
            direction = uniform(0, 2 * math.pi)
            for _ in range(1 + int(uniform(3, 9))):
                direction += uniform(-1.2, 1.2)
                length = uniform(0.05, 0.25) * side
                end = row + length * math.sin(direction), column + length * math.cos(direction)
                if not (0 <= end[0] < height and 0 <= end[1] < width):
                    # Turn to the middle: a walk that slides along the edge would mask edges most.
                    direction = math.atan2(height / 2 - row, width / 2 - column)
                    end = row + length * math.sin(direction), column + length * math.cos(direction)
                # The rest of a long picture would cost more than all the strokes.
                near_rows = _around(row, end[0], radius, height)
                near_columns = _around(column, end[1], radius, width)
                distance = _distance_to_segment(
                    rows[near_rows], columns[:, near_columns], (row, column), end
                )
                near = known[near_rows, near_columns]
                before = int(near.sum())
                near &= distance > radius
                covered += before - int(near.sum())
                row, column = end
                if covered >= enough:
                    break
        return known


def _around(start: float, end: float, radius: float, size: int) -> slice:
    """The rows, or columns, that lie within `radius` of some between two, of `size`."""
    low, high = min(start, end) - radius, max(start, end) + radius
    return slice(max(math.floor(low), 0), min(math.ceil(high) + 1, size))


def _distance_to_segment(
    rows: Tensor, columns: Tensor, start: tuple[float, float], end: tuple[float, float]
) -> Tensor:
    """Distance in pixels of every (row, column) to the segment between two points."""
    down, right = end[0] - start[0], end[1] - start[1]
    squared_length = max(down**2 + right**2, 1e-12)
    along = ((rows - start[0]) * down + (columns - start[1]) * right) / squared_length
    along = along.clamp(0, 1)
    return torch.hypot(rows - start[0] - along * down, columns - start[1] - along * right)


@dataclass(frozen=True)
class RandomInpainting(_Masking):
    """Every pixel is known with probability `keep`, independently of the others."""

    keep: Annotated[float, Range(0.01, 0.99)] = 0.3

    def _known(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        return torch.rand(height, width, generator=generator) < self.keep


@dataclass(frozen=True)
class Destriping(_Masking):
    """Vertical stripes of `width` lost columns in every `period`, as dead detectors leave them."""

    period: Annotated[int, Range(2, 1024)] = 16
    width: Annotated[int, Range(1, 1023)] = 4

    def __post_init__(self) -> None:
        """Check the parameters, and that a stripe is narrower than the period."""
        super().__post_init__()
        if self.width >= self.period:
            raise OperatorError(
                f"width must be less than period ({self.period}), not {self.width}."
            )

    def _known(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        phase = torch.arange(width) % self.period
        start = (self.period - self.width) // 2
        lost = (phase >= start) & (phase < start + self.width)
        return ~lost.expand(height, width)
