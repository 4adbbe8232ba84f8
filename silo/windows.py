"""Networks on inputs larger than they were trained on: in windows that overlap and are blended."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Run = Callable[[Tensor], tuple[Tensor, ...]]
Share = tuple[int, Tensor]  # where a window begins, and its share of each element, (size,)
OVERLAP = 8  # neighbours share at least the eighth part of `side`
KEPT = 4  # windows whose activations are kept for gradients; those of more are computed again


def in_windows(run: Run, inputs: Tensor, *, side: int, multiple: int) -> tuple[Tensor, ...]:
    """Returns run(inputs); of inputs of more than side x side elements, window by window.

    Where windows overlap, outputs are averaged, each with less weight towards its rim
    (MultiDiffusion, arXiv 2302.08113). Each axis is cut into as few windows as there can be, which
    are then as small as they can be.

    Args:
        run: makes of (B, C, h, w) tensors (B, C', k h, k w), each with a k of its own.
        inputs: (B, C, H, W), the sides multiples of `multiple`.
        side: of a window, in elements of the inputs; what is shared comes in addition.
        multiple: windows begin and end at multiples of this, which make k h and k w whole numbers.
    """
    height, width = inputs.shape[-2:]
    if height * width <= side * side:
        return run(inputs)
    rows, columns = _Axis.cut(height, side, multiple), _Axis.cut(width, side, multiple)
    again = len(rows.starts) * len(columns.starts) > KEPT and torch.is_grad_enabled()
    blended: list[Tensor] = []
    shares: list[tuple[list[Share], list[Share]]] = []
    for row, top in enumerate(rows.starts):
        for column, left in enumerate(columns.starts):
            window = inputs[..., top : top + rows.side, left : left + columns.side]
            outputs = checkpoint(run, window, use_reentrant=False) if again else run(window)
            if not blended:
                shares = [(rows.shares(each, -2), columns.shares(each, -1)) for each in outputs]
                blended = [_canvas(each, rows, columns) for each in outputs]
            for whole, output, (down, right) in zip(blended, outputs, shares, strict=True):
                (y, high), (x, wide) = down[row], right[column]
                share = (high[:, None] * wide).to(output.dtype)
                whole[..., y : y + len(high), x : x + len(wide)] += share * output
    return tuple(blended)


def _canvas(output: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
    height = output.shape[-2] * rows.length // rows.side
    width = output.shape[-1] * columns.length // columns.side
    return output.new_zeros(*output.shape[:-2], height, width)


@dataclass(frozen=True)
class _Axis:
    """How one axis of the inputs is cut: into windows of `side` that begin at `starts`."""

    length: int
    side: int
    starts: list[int]
    overlap: int

    @staticmethod
    def cut(length: int, side: int, multiple: int) -> _Axis:
        """The fewest windows of `side` and what neighbours share, and the smallest such."""
        overlap = max(side // OVERLAP, multiple)
        count = max(math.ceil((length - overlap) / side), 1)
        shared = length + (count - 1) * overlap
        side = min(math.ceil(shared / count / multiple) * multiple, length)
        last = length - side
        starts = [last * i // max(count - 1, 1) // multiple * multiple for i in range(count)]
        return _Axis(length, side, starts, overlap)

    def shares(self, output: Tensor, dim: int) -> list[Share]:
        """Each window's share of outputs as large as `output`; an element's add up to 1."""
        size = output.shape[dim]
        begins = [start * size // self.side for start in self.starts]
        ramp = torch.arange(size, device=output.device) + 0.5
        ramp = torch.minimum(ramp, size - ramp).clamp(max=self.overlap * size / self.side)
        total = ramp.new_zeros(self.length * size // self.side)
        for begin in begins:
            total[begin : begin + size] += ramp
        return [(begin, ramp / total[begin : begin + size]) for begin in begins]
