"""JPEG compression as a differentiable degradation."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from operators.pixel_operator import PixelOperator, Range

# ITU-T T.81, Annex K: the quantisation tables of quality 50, rows by vertical frequency.
LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99,) * 8] * 4,
)
# ITU-T T.871 (JFIF): RGB to luma and two chroma differences, the latter around zero.
RGB_TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.299 / 1.772, -0.587 / 1.772, 0.5),
    (0.5, -0.587 / 1.402, -0.114 / 1.402),
)


@dataclass(frozen=True)
class Jpeg(PixelOperator):
    """Baseline JPEG, 4:2:0 chroma, libjpeg's tables for `quality`; the paper's is 10.

    The values are those of a decoded file, but for the rounding of the pixels to 8 bits. The
    gradient takes rounding a coefficient c for c -> [c] + (c - [c])^3 (Shin and Song, 2017), whose
    derivative does not vanish. Values outside [-1, 1], which no file holds, are clipped first.
    """

    linear: ClassVar[bool] = False

    quality: Annotated[int, Range(1, 100)] = 10

    def _apply(self, x: Tensor, mask: Tensor | None) -> Tensor:
        height, width = x.shape[-2:]
        levels = 127.5 * x.clamp(-1, 1) - 0.5  # 0..255 around 128, as files hold them
        # Whole units of 16x16: blocks of 8x8 in chroma, at half the resolution.
        levels = F.pad(levels, (0, -width % 16, 0, -height % 16), mode="replicate")
        to_ycc = torch.tensor(RGB_TO_YCC, dtype=torch.float64)
        ycc = _mix(levels, to_ycc)
        luma = _quantise(ycc[:, :1], self._table(LUMA_TABLE))
        chroma = _quantise(F.avg_pool2d(ycc[:, 1:], 2), self._table(CHROMA_TABLE))
        chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
        decoded = _mix(torch.cat([luma, chroma], dim=1), torch.linalg.inv(to_ycc))
        return ((decoded[..., :height, :width] + 0.5) / 127.5).clamp(-1, 1)

    def _table(self, base: tuple[tuple[int, ...], ...]) -> Tensor:
        """The table (8, 8) of quantisation steps, 1 to 255, that libjpeg derives from `quality`."""
        percent = 5000 // self.quality if self.quality < 50 else 200 - 2 * self.quality
        return ((torch.tensor(base) * percent + 50) // 100).clamp(1, 255)


def _mix(images: Tensor, matrix: Tensor) -> Tensor:
    """Multiply the channels of images (B, 3, H, W) by a matrix (3, 3)."""
    return torch.einsum("oc,bchw->bohw", matrix.to(images), images)


def _quantise(planes: Tensor, table: Tensor) -> Tensor:
    """Round the cosine transform of each 8x8 block of planes (B, C, H, W) to steps of `table`."""
    order = torch.arange(8, dtype=torch.float64)
    cosines = torch.cos((2 * order + 1) * order[:, None] * math.pi / 16) / 2
    cosines[0] /= math.sqrt(2)
    cosines, table = cosines.to(planes), table.to(planes)
    blocks = planes.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2)
    coefficients = cosines @ blocks @ cosines.T / table
    rounded = coefficients.detach().round()
    cube = (coefficients - rounded) ** 3
    # The cube brings its gradient, not its value.
    coefficients = rounded + cube - cube.detach()
    blocks = cosines.T @ (coefficients * table) @ cosines
    return blocks.transpose(-3, -2).flatten(-2).flatten(-3, -2)
