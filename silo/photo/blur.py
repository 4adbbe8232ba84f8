"""How blurred a photo is, estimated from the photo alone."""

import math

import torch
from torch import Tensor

from operators.blur import power_spectrum
from silo.images import middle

LEAST_SIDE = 64  # px; of smaller pictures too few frequencies tell
# Frequencies, in radians a pixel, in rings of equal width: below them the frame of the picture
# shows, above them what cameras and scaling leave.
RINGS, LOWEST, HIGHEST = 24, 0.1, 2.8
STDS = torch.arange(0, 6.05, 0.1, dtype=torch.float64)
# The power of photos falls with the frequency, as its -2.4th power and seldom by much less or more.
FALLS = torch.arange(1.6, 3.3, 0.2, dtype=torch.float64)
USUAL_FALL, FALL_SPREAD = 2.4, 0.35
# Noise, as shares of the least power that a ring has: white, or stronger at lower frequencies, as a
# JPEG file's is, by a power of the frequency, which is the less likely the larger it is.
NOISE_SHARES = torch.tensor([0.02, 0.05, 0.2, 0.5, 0.8, 1.0, 1.2], dtype=torch.float64)
NOISE_FALLS = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
NOISE_FALL_COST = 2.0  # -log of how likely each further power is
MOST_NOISE = 0.1  # of the power at the lowest frequency: what is all noise tells of no blur
MISFIT = 0.35  # std of log power about the model; a ring counts no more than as 3 off
LARGEST_MISFIT = 3.0
ROUNDING = 4 / 255**2 / 12 / 3  # power of rounding to eight bits, averaged over three colours
ITERATIONS = 3


def estimate_blur(picture: Tensor) -> float | None:
    """Estimate the standard deviation, in pixels, of a Gaussian blur.

    The mean of its posterior under a model of a photo's power at the frequency w,
    c w^-p exp(-std^2 w^2) + noise: a blur bends the straight fall that sharp photos have in log
    power. Photos that were sharp before come out at some 0.3 and up to 0.6.

    Args:
        picture: (1, 3, H, W) in [-1, 1].

    Returns:
        The estimate, from 0 to 6; None where the picture is too small or flat to tell.
    """
    picture = middle(picture)
    if min(picture.shape[-2:]) < LEAST_SIDE:
        return None
    frequency, power = _rings(picture.double().mean(dim=(0, 1)))
    if power[0] <= 2 * ROUNDING:
        return None
    # Dimensions from here on: noise's fall, its share, std, the power's fall p, ring.
    noise = (
        power.min()
        * NOISE_SHARES[:, None]
        * (frequency / frequency[-1]) ** -NOISE_FALLS[:, None, None]
    )
    too_much = noise[:, :, None, None, 0] > MOST_NOISE * power[0]
    noise = noise[:, :, None, None].log()
    shape = -FALLS[:, None] * frequency.log() - STDS[:, None, None].square() * frequency.square()
    level, observed = (power.log() - shape)[..., :1], power.log()
    for _ in range(ITERATIONS):  # Gauss-Newton for log c
        expected = torch.logaddexp(shape + level, noise)
        share = (shape + level - expected).exp()
        change = (share * (observed - expected)).sum(-1, keepdim=True)
        level = level + change / share.square().sum(-1, keepdim=True).clamp(min=1e-9)
    misfit = observed - torch.logaddexp(shape + level, noise)
    cost = (misfit.clamp(-LARGEST_MISFIT, LARGEST_MISFIT) / MISFIT).square().sum(-1) / 2
    cost = cost + ((FALLS - USUAL_FALL) / FALL_SPREAD).square() / 2
    cost = cost + NOISE_FALL_COST * NOISE_FALLS[:, None, None, None]
    cost = cost.masked_fill(too_much, torch.inf)
    likely = torch.softmax(-cost.flatten(), 0).reshape(cost.shape).sum(dim=(0, 1, 3))
    return float((likely * STDS).sum())


def _rings(picture: Tensor) -> tuple[Tensor, Tensor]:
    """The mean frequency and power of a picture (H, W) in each ring that has any frequency."""
    height, width = picture.shape
    power = power_spectrum(picture, (height, width))
    rows = torch.fft.fftfreq(height, dtype=picture.dtype)[:, None]
    columns = torch.fft.rfftfreq(width, dtype=picture.dtype)
    frequency = 2 * math.pi * torch.hypot(rows, columns)
    ring = torch.bucketize(frequency, torch.linspace(LOWEST, HIGHEST, RINGS + 1)).flatten()
    count, *sums = (
        torch.bincount(ring, each, minlength=RINGS + 2)[1:-1]
        for each in (torch.ones_like(power).flatten(), frequency.flatten(), power.flatten())
    )
    found = count > 0
    frequency, power = (total[found] / count[found] for total in sums)
    return frequency, power.clamp(min=ROUNDING)
