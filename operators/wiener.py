"""What of a noisy picture rises above its noise: an empirical Wiener filter."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from operators.colours import from_opponent, to_opponent
from operators.consistency import LARGE
from operators.cosine import BLOCK, cosines
from operators.mirroring import mirror_index

STRIDE, LARGE_STRIDE = 2, 4  # pixels from block to block, and in large pictures
NEIGHBOURS = 5  # blocks in a row, and rows, whose energy is averaged
CAUTION = 1.3  # times the energy of noise is taken off
# Noise of photos is stronger at low frequencies than where it is estimated, up to so many times;
# and up to so many where the finest detail shows so much less of it: a camera has smoothed it.
COLOURED, SMOOTHED, SMOOTHER = 1.5, 2.5, 1.3
# It shows where a picture is flattest: in this share of so many blocks, evenly spread.
FLAT, LOOKED_AT = 0.1, 4096
MEDIAN_OF_NORMAL = 0.6745  # of its absolute value, the standard deviation being 1
STRIP = 256  # rows that are worked on at once: large pictures take gigabytes
MARGIN = 16  # pixels around them, which a block beside them and its neighbours reach


def above_noise(missed: Tensor, y: Tensor, noise_sigma: float, flat: Tensor) -> Tensor:
    """What of pictures (B, 3, H, W) rises above the noise of y.

    Of each coefficient of their sliding cosine transform the share 1 - n / v remains, v being its
    mean energy in the blocks around and n that of noise. An opponent colour has more of the noise
    where the finest detail of y shows it, as brightness has of grey noise; and a frequency up to
    `COLOURED` times as strong noise where blocks of `flat` are flattest.

    Args:
        missed: y, or what of it is not known otherwise.
        y: the noisy pictures, alike.
        noise_sigma: std of their noise in [0, 1] units.
        flat: pictures, alike, that show where there is little but noise.
    """
    missed = to_opponent(missed)
    noise = _energy_of_noise(missed, to_opponent(y), noise_sigma, to_opponent(flat))
    return from_opponent(_above(noise, missed))


def without_noise(y: Tensor, noise_sigma: float) -> Tensor:
    """Noisy pictures (B, 3, H, W) with what of their detail rises above their noise.

    As `above_noise`, but for the means of blocks, which stay: else colours would become greyer.
    """
    y = to_opponent(y)
    noise = _energy_of_noise(y, y, noise_sigma, y)
    noise[..., 0] = 0
    return from_opponent(_above(noise, y))


def _energy_of_noise(missed: Tensor, y: Tensor, noise_sigma: float, flat: Tensor) -> Tensor:
    """What to take off by channel and frequency, (B, 3, 64)."""
    fine = _finest_energy(y)
    white = 4 * noise_sigma**2 * _shares(fine).clamp(min=1)
    smoothed = SMOOTHER**2 * fine.mean(dim=1, keepdim=True) < 4 * noise_sigma**2
    largest = torch.where(smoothed, SMOOTHED, COLOURED) ** 2 * white
    return CAUTION * _energy_where_flat(flat, missed).clamp(white, largest)


def _shares(fine: Tensor) -> Tensor:
    """The energy of the finest detail by channel, (B, 3, 1), as multiples of their mean."""
    return fine / fine.mean(dim=1, keepdim=True).clamp(min=torch.finfo(fine.dtype).tiny)


def _finest_energy(y: Tensor) -> Tensor:
    """The energy of the finest diagonal detail of y by channel, (B, 3, 1): that of white noise.

    See `silo.photo.noise`, which tells how much there is.
    """
    height, width = (side // 2 * 2 for side in y.shape[-2:])
    if min(height, width) == 0:
        return y.new_ones(*y.shape[:2], 1)
    fine = F.pixel_unshuffle(y[..., :height, :width], 2).unflatten(1, (-1, 4))
    diagonal = (fine[:, :, 0] - fine[:, :, 1] - fine[:, :, 2] + fine[:, :, 3]) / 2
    return (
        diagonal.abs().flatten(2).median(dim=2, keepdim=True).values / MEDIAN_OF_NORMAL
    ).square()


def _energy_where_flat(x: Tensor, missed: Tensor) -> Tensor:
    """The median energy of `missed` by channel and frequency, (B, 3, 64), where x is flattest."""
    beyond = [max(BLOCK - side, 0) for side in x.shape[-2:]]
    x, missed = (F.pad(each, (0, beyond[1], 0, beyond[0]), "replicate") for each in (x, missed))
    apart = int(math.sqrt(x.shape[-2] * x.shape[-1] / LOOKED_AT)) | 1  # odd: no multiple of 8
    detail = _coefficients(x, apart)[:, :, 1:].square().sum(dim=(1, 2)).flatten(1)
    energy = _coefficients(missed, apart).square().flatten(3)
    flattest = detail.topk(math.ceil(FLAT * detail.shape[1]), largest=False).indices
    chosen = flattest[:, None, None].expand(*energy.shape[:3], -1)
    return energy.gather(3, chosen).median(dim=3).values / MEDIAN_OF_NORMAL**2


def _above(noise: Tensor, missed: Tensor) -> Tensor:
    """What of `missed`, (B, 3, H, W), is above noise of the energies (B, 3, 64)."""
    height, width = missed.shape[-2:]
    stride = STRIDE if height * width <= LARGE else LARGE_STRIDE
    rows, columns = (
        mirror_index(side, MARGIN + stride)[stride:].to(missed.device) for side in (height, width)
    )
    mirrored = missed.index_select(-1, columns)
    strips = [
        _above_in_strip(noise, mirrored.index_select(-2, rows[top:][: STRIP + 2 * MARGIN]), stride)
        for top in range(0, height, STRIP)
    ]
    return torch.cat(strips, dim=-2)[..., :height, :width]


def _above_in_strip(noise: Tensor, strip: Tensor, stride: int) -> Tensor:
    """The same for a strip with its margin; without it, but for what is cut off at the end."""
    coefficients = _coefficients(strip, stride)
    energy = F.avg_pool2d(coefficients.square().flatten(0, 1), NEIGHBOURS, stride=1)
    energy = energy.unflatten(0, strip.shape[:2]).clamp(min=torch.finfo(strip.dtype).tiny)
    share = (1 - noise[..., None, None] / energy).clamp(min=0)
    rim = NEIGHBOURS // 2
    kept = share * coefficients[..., rim:-rim, rim:-rim]
    blocks = _transform(kept).T @ kept.flatten(3)
    height, width = (side - 2 * rim * stride for side in strip.shape[-2:])
    summed = F.fold(blocks.flatten(0, 1), (height, width), BLOCK, stride=stride)
    summed = summed.view(*kept.shape[:2], height, width)
    cut = MARGIN - rim * stride
    return summed[..., cut:-cut, cut:-cut] / (BLOCK // stride) ** 2


def _coefficients(planes: Tensor, stride: int) -> Tensor:
    """The cosine transform of blocks `stride` pixels apart: (B, C, 64, rows, columns) of them."""
    blocks = F.unfold(planes.flatten(0, 1)[:, None], BLOCK, stride=stride)
    rows = (planes.shape[-2] - BLOCK) // stride + 1
    return (_transform(planes) @ blocks).unflatten(-1, (rows, -1)).unflatten(0, planes.shape[:2])


def _transform(like: Tensor) -> Tensor:
    """Of the pixels of a block to its coefficients, both row by row, (64, 64)."""
    return torch.kron(cosines(), cosines()).to(like)
