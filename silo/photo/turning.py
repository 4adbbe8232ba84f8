"""Photos that are worked on turned, so that what shook them has the direction that is expected."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from silo.images import Fit, resize


@dataclass(frozen=True)
class Turn:
    """A picture's mirroring, if any, and its turn about the middle, onto a canvas that holds it.

    Attributes:
        size: (height, width) of the picture.
        degrees: counter-clockwise.
        mirrored: left and right are exchanged first.
    """

    size: tuple[int, int]
    degrees: float
    mirrored: bool

    @property
    def canvas(self) -> tuple[int, int]:
        """(height, width) of what holds the turned picture."""
        height, width = self.size
        sine, cosine = (abs(f(math.radians(self.degrees))) for f in (math.sin, math.cos))
        return math.ceil(height * cosine + width * sine), math.ceil(height * sine + width * cosine)

    def apply(self, pixels: Tensor) -> Tensor:
        """(B, C, *size) -> (B, C, *canvas); the corners are mirrored."""
        pixels = pixels.flip(-1) if self.mirrored else pixels
        return _turned(pixels, self.canvas, self.degrees)

    def undo(self, pixels: Tensor) -> Tensor:
        """(B, C, *canvas) -> (B, C, *size)."""
        back = _turned(pixels, self.size, -self.degrees)
        return back.flip(-1) if self.mirrored else back


def _turned(pixels: Tensor, size: tuple[int, int], degrees: float) -> Tensor:
    """Turn pixels (B, C, H, W) counter-clockwise about their middle, onto (B, C, *size)."""
    height, width = size
    down = torch.arange(height, dtype=torch.float32)[:, None] - (height - 1) / 2
    right = torch.arange(width, dtype=torch.float32) - (width - 1) / 2
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    columns = (cosine * right - sine * down) * 2 / pixels.shape[-1]
    rows = (sine * right + cosine * down) * 2 / pixels.shape[-2]
    grid = torch.stack([columns, rows], dim=-1).to(pixels)
    turned = F.grid_sample(
        pixels,
        grid.expand(len(pixels), -1, -1, -1),
        mode="bicubic",
        padding_mode="reflection",
        align_corners=False,
    )
    return turned.clamp(-1, 1)  # bicubic overshoots at edges


@dataclass(frozen=True, kw_only=True)
class TurnedFit(Fit):
    """How a picture goes on the grid that is turned once it is scaled, and back.

    Attributes:
        turn: of pictures of the size `scaled`.
        canvas: how turned ones go on the grid.
    """

    turn: Turn
    canvas: Fit

    def apply(self, pixels: Tensor) -> Tensor:
        """(B, C, *original) -> (B, C, *padded), antialiased; what is beyond it is mirrored."""
        return self.canvas.apply(self.turn.apply(resize(pixels, self.scaled)))

    def cut(self, restored: Tensor) -> Tensor:
        """(B, C, *working) -> (B, C, *scaled): turned back, without what is beyond it."""
        return self.turn.undo(self.canvas.cut(restored))
