"""JPEG compression as a differentiable degradation."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from operators.colours import mix
from operators.cosine import from_coefficients, to_coefficients
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

# How far a restoration's coefficients are taken to be off: by this share of how far they are from
# the stored ones in so many blocks around, in each direction; and no less than so many levels.
TRUST, NEIGHBOURS, LEAST_SPREAD = 0.8, 5, 12.0
STRIP, MARGIN = 512, 32  # rows, and those around that matter to them; large pictures take gigabytes
PASSES = 2  # chroma's planes are not exactly those that were moved, after the first


@dataclass(frozen=True)
class Jpeg(PixelOperator):
    """Baseline JPEG, 4:2:0 chroma, libjpeg's tables for `quality`; the paper's is 10.

    The values are those of a decoded file, but for the rounding of the pixels to 8 bits. The
    gradient takes rounding a coefficient c for c -> [c] + (c - [c])^3 (Shin and Song, 2017), whose
    derivative does not vanish. Values outside [-1, 1], which no file holds, are clipped first.
    `turns` counts the quarter turns, counter-clockwise, that the picture was given since, as those
    of photos that were taken upright are.
    """

    linear: ClassVar[bool] = False

    quality: Annotated[int, Range(1, 100)] = 10
    turns: Annotated[int, Range(0, 3)] = 0

    def explain(self, x: Tensor, y: Tensor, noise_sigma: float) -> Tensor:
        """The mean of N(x, spread^2), coefficient by coefficient, among what would be stored as y.

        Each coefficient of the cosine transform was rounded to the multiple of a step that y still
        shows, since noise is small beside the steps: within half a step it may be anything. The
        spread is what the coefficients of its frequency show in the blocks around.
        """
        x, y = self._as_stored(x), self._as_stored(y)
        strips = []
        for top in range(0, x.shape[-2], STRIP):
            above = min(top, MARGIN)
            rows = slice(top - above, top + STRIP + MARGIN)
            explained = self._explain(x[..., rows, :], y[..., rows, :])
            strips.append(explained[..., above : above + STRIP, :])
        return self._as_turned(torch.cat(strips, dim=-2))

    def _as_stored(self, images: Tensor) -> Tensor:
        return torch.rot90(images, -self.turns, (-2, -1))

    def _as_turned(self, images: Tensor) -> Tensor:
        return torch.rot90(images, self.turns, (-2, -1))

    def _explain(self, x: Tensor, y: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tables = self.luma_steps, self._table(CHROMA_TABLE)
        stored = [
            (to_coefficients(part) / table.to(part)).round() * table.to(part)
            for part, table in zip(_parts(_to_ycc(y)), tables, strict=True)
        ]
        spreads = [
            _spread(to_coefficients(part) - at)
            for part, at in zip(_parts(_to_ycc(x)), stored, strict=True)
        ]
        for _ in range(PASSES):
            ycc = _to_ycc(x)
            moved = []
            for part, at, table, spread in zip(_parts(ycc), stored, tables, spreads, strict=True):
                half = table.to(part) / 2
                coefficients = to_coefficients(part)
                kept = _truncated_mean(coefficients, spread, at - half, at + half)
                moved.append(from_coefficients(kept - coefficients))
            moved[1] = F.interpolate(moved[1], scale_factor=2, mode="nearest")
            x = _to_rgb(ycc + torch.cat(moved, dim=1))[..., :height, :width]
        return x

    @property
    def luma_steps(self) -> Tensor:
        """What the coefficients of luma are rounded to multiples of, (8, 8), in levels."""
        return self._table(LUMA_TABLE)

    def _apply(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self._as_stored(x)
        height, width = x.shape[-2:]
        luma, chroma = _parts(_to_ycc(x))
        luma = _quantise(luma, self.luma_steps)
        chroma = _quantise(chroma, self._table(CHROMA_TABLE))
        chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
        return self._as_turned(_to_rgb(torch.cat([luma, chroma], dim=1))[..., :height, :width])

    def _table(self, base: tuple[tuple[int, ...], ...]) -> Tensor:
        """The table (8, 8) of quantisation steps, 1 to 255, that libjpeg derives from `quality`."""
        percent = 5000 // self.quality if self.quality < 50 else 200 - 2 * self.quality
        return ((torch.tensor(base) * percent + 50) // 100).clamp(1, 255)


def luma_coefficients(images: Tensor) -> Tensor:
    """The cosine transform of the whole 8x8 blocks of luma, (B, 1, H // 8, W // 8, 8, 8)."""
    height, width = (side // 8 for side in images.shape[-2:])
    luma, _ = _parts(_to_ycc(images))
    return to_coefficients(luma)[..., :height, :width, :, :]


def _to_ycc(images: Tensor) -> Tensor:
    """Images in [-1, 1] -> luma and chroma planes around 0 as files hold them, in units of 16x16.

    Such a unit holds whole blocks of 8x8 in chroma, too, at half the resolution.
    """
    height, width = images.shape[-2:]
    levels = 127.5 * images.clamp(-1, 1) - 0.5
    levels = F.pad(levels, (0, -width % 16, 0, -height % 16), mode="replicate")
    return mix(levels, torch.tensor(RGB_TO_YCC, dtype=torch.float64))


def _to_rgb(ycc: Tensor) -> Tensor:
    """Undo `_to_ycc`, but for the padding."""
    levels = mix(ycc, torch.linalg.inv(torch.tensor(RGB_TO_YCC, dtype=torch.float64)))
    return ((levels + 0.5) / 127.5).clamp(-1, 1)


def _parts(ycc: Tensor) -> tuple[Tensor, Tensor]:
    """Luma (B, 1, H, W), and chroma at half the resolution, (B, 2, H / 2, W / 2)."""
    return ycc[:, :1], F.avg_pool2d(ycc[:, 1:], 2)


def _quantise(planes: Tensor, table: Tensor) -> Tensor:
    """Round the cosine transform of each 8x8 block of planes (B, C, H, W) to steps of `table`."""
    table = table.to(planes)
    coefficients = to_coefficients(planes) / table
    rounded = coefficients.detach().round()
    cube = (coefficients - rounded) ** 3
    # The cube brings its gradient, not its value.
    return from_coefficients((rounded + cube - cube.detach()) * table)


def _spread(off: Tensor) -> Tensor:
    """How far coefficients are taken to be off that are so far from the stored ones, each."""
    energy = off.double().square().permute(0, 1, 4, 5, 2, 3).flatten(1, 3)
    padding = NEIGHBOURS // 2
    energy = F.avg_pool2d(energy, NEIGHBOURS, 1, padding, count_include_pad=False)
    spread = TRUST * energy.sqrt().clamp(min=LEAST_SPREAD / TRUST)
    return spread.unflatten(1, (off.shape[1], *off.shape[-2:])).permute(0, 1, 4, 5, 2, 3)


def _truncated_mean(mean: Tensor, spread: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The mean of N(mean, spread^2) between `low` and `high`; the nearer of them far outside."""
    below, above = ((side.double() - mean.double()) / spread for side in (low, high))
    probability = torch.special.ndtr(above) - torch.special.ndtr(below)
    density = (below.square() / -2).exp() - (above.square() / -2).exp()
    shift = spread * density / (math.sqrt(2 * math.pi) * probability.clamp(min=1e-9))
    return (mean + shift.to(mean)).clamp(low, high)
