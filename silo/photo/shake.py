"""How a photo was shaken, along a straight line, estimated from the photo alone."""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from operators.wiener import MEDIAN_OF_NORMAL
from silo.images import middle

TILE, LEAST_TILE, OVERLAP = 256, 128, 4  # px; tiles begin a quarter of one apart
ROUNDING = 1e-5  # power below which a spectrum tells nothing
SMOOTHING = 2.2  # px, std of the Gaussian that a cepstrum is smoothed by: pits are as wide
# A pit of the cepstrum is a shake that is so many times as deep as others commonly are, and the
# deepest within so many pixels; nearer to the middle the photo itself shows.
DEPTH, WINDOW, SHORTEST, LONGEST = 6.0, 7, 7.0, 80.0
# Across its direction a shake has no pit, while photos that were enlarged have one, as deep as the
# other in the mean; it is looked for within two pixels.
ACROSS, AROUND = 0.5, 5


@dataclass(frozen=True)
class Shake:
    """A motion along a straight line.

    Attributes:
        length: in pixels.
        angle: in degrees, from 0 to 180, counter-clockwise from the rightward axis.
        depth: how many times as deep its pit in the cepstrum is as others commonly are.
    """

    length: float
    angle: float
    depth: float


def estimate_shake(picture: Tensor) -> Shake | None:
    """Estimate a straight shake of 8 pixels or more.

    It multiplies a photo's spectrum by a sinc along its direction, whose zeros are evenly spaced:
    the cepstrum, the transform of the logarithm of the power, has a pit at the shake's length and
    angle (Rom, "On the cepstrum of two-dimensional functions", 1975). Of longer ones a smaller
    picture is looked at.

    Args:
        picture: (1, 3, H, W) in [-1, 1].

    Returns:
        None where the picture is too small or shows none.
    """
    found = _deepest(_cepstrum(middle(picture)))
    if found is None and min(picture.shape[-2:]) >= 2 * TILE:
        smaller = F.interpolate(picture, scale_factor=0.5, mode="bicubic", antialias=True)
        found = estimate_shake(smaller)
        found = None if found is None else replace(found, length=2 * found.length)
    return found


def _cepstrum(picture: Tensor) -> Tensor | None:
    """The mean cepstrum (N, N) of a picture's tiles, from the middle on; None of a small one."""
    grey = picture.double().mean(dim=(0, 1))
    tile = TILE if min(grey.shape) >= TILE else LEAST_TILE
    if min(grey.shape) < tile:
        return None
    tiles = grey.unfold(0, tile, tile // OVERLAP).unfold(1, tile, tile // OVERLAP)
    window = torch.hann_window(tile, dtype=grey.dtype)
    window = torch.outer(window, window)
    logarithm = torch.zeros(tile, tile // 2 + 1, dtype=grey.dtype)
    for row in tiles:
        faded = (row - row.mean(dim=(1, 2), keepdim=True)) * window
        power = torch.fft.rfft2(faded).abs().square() / window.square().sum()
        logarithm += (power + ROUNDING).log().sum(dim=0)
    logarithm /= tiles.shape[0] * tiles.shape[1]
    frequency = torch.hypot(
        torch.fft.fftfreq(tile, dtype=grey.dtype)[:, None],
        torch.fft.rfftfreq(tile, dtype=grey.dtype),
    )
    # What falls off alike in all directions is the photo's, and noise hides high frequencies.
    apart = logarithm - _ring_means(logarithm, frequency * tile)
    faded = apart * torch.exp(-2 * (SMOOTHING * frequency) ** 2)
    return torch.fft.fftshift(torch.fft.irfft2(faded, s=(tile, tile)))


def _deepest(cepstrum: Tensor | None) -> Shake | None:
    """The deepest pit, where it stands out."""
    if cepstrum is None:
        return None
    half = len(cepstrum) // 2
    offset = torch.arange(-half, half)
    distance = torch.hypot(offset[:, None].double(), offset.double())
    smooth = F.avg_pool2d(cepstrum[None, None], 3, 1, 1)[0, 0]
    smooth = smooth - _ring_means(smooth, distance)
    within = (distance >= SHORTEST) & (distance <= min(LONGEST, half - WINDOW))
    depth = -smooth / (smooth[within].abs().median() / MEDIAN_OF_NORMAL).clamp(min=1e-12)
    highest = F.max_pool2d(depth[None, None], WINDOW, 1, WINDOW // 2)[0, 0]
    across = torch.rot90(F.max_pool2d(depth[None, None], AROUND, 1, AROUND // 2)[0, 0])
    alone = across < ACROSS * depth
    pits = torch.where(within & alone & (depth == highest), depth, 0.0)
    place = int(pits.argmax())
    if pits.flatten()[place] < DEPTH:
        return None
    row, column = divmod(place, len(cepstrum))
    around = depth[row - 1 : row + 2, column - 1 : column + 2].clamp(min=0)
    shift = torch.arange(-1, 2, dtype=depth.dtype)
    down = row - half + float((around.sum(dim=1) * shift).sum() / around.sum())
    right = column - half + float((around.sum(dim=0) * shift).sum() / around.sum())
    angle = math.degrees(math.atan2(-down, right)) % 180
    return Shake(math.hypot(down, right), angle, float(pits.flatten()[place]))


def _ring_means(values: Tensor, distance: Tensor) -> Tensor:
    """The mean of the values that are as far from the middle, for each."""
    ring = distance.round().long()
    sums = torch.bincount(ring.flatten(), weights=values.flatten())
    return (sums / torch.bincount(ring.flatten()).clamp(min=1))[ring]
