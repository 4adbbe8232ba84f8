"""Moves a restored picture to where it explains a linear measurement, as far as noise allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from operators.colours import from_opponent, to_opponent

if TYPE_CHECKING:
    from operators.pixel_operator import PixelOperator

# The share of a restoration's error, as its residual shows it, that is taken for its spread. With
# all of it PSNR rises further, but the painted texture suffers. Not so where an autoencoder is to
# paint it anew, which leaves out the ripples: with 1 it does less well, with 3 no better. And not
# where it is blurred again, which takes them away.
TRUST, DRAFT_TRUST, CLEANING_TRUST = 0.5, 1.5, 1.0
WINDOW = 21  # pixels of x that the residual is looked at in, in each direction
# Spreads that are solved for, each so many times the next; those between are blended. The largest
# is that of this share of places: what few are off by, such as a caption, tells little of the rest.
LEVELS, APART, TOP = 3, 8.0, 0.98
LARGE = 2**20  # pixels of y; larger ones have one spread, since each level takes seconds
# What is missed, whitened by what it is taken for, has a mean square of 1, and of up to 3.6 where
# all is well. Where it is more, y did not come about by A, as next to a caption that was put on
# since, and would be explained by ripples: more is taken for noise.
MISFIT = 6.0
LOOKED_AT = 100_000  # values, evenly spread
LEAST_NOISE = 2 / 255 / 12**0.5  # in [-1, 1]: of rounding to eight bits
# Conjugate gradients end at this share of the residual's norm (with 0.001 LPIPS of blur is the same
# to 0.001), or after so many iterations.
TOLERANCE = 0.05
ITERATIONS = 30


def explain(
    operator: PixelOperator, x: Tensor, y: Tensor, noise_sigma: float, *, trust: float = TRUST
) -> Tensor:
    """The mean of N(x, tau^2) given y = A x + n: x + tau^2 A^T (tau^2 A A^T + s^2)^-1 (y - A x).

    tau, of each place and opponent colour by itself, is what the residual y - A x tells beyond the
    noise s of how far x is off there, times `trust`; where it tells of nothing, x stays as it is.
    What A does not pass on, such as painted texture, stays in any case: this is back-projection
    (Irani and Peleg, 1991), damped by the noise. It is found for a few tau that are the same
    everywhere, and blended by those that are meant.

    Args:
        operator: A, linear and without a mask.
        x: pictures (B, 3, H, W) in [-1, 1].
        y: the measurement (1 or B, 3, h, w).
        noise_sigma: std of its noise in [0, 1] units, whence s = 2 `noise_sigma`.
        trust: the share of the error that is taken for tau.

    Returns:
        (B, 3, H, W), within [-1, 1].
    """
    missed = to_opponent(y - operator.forward(x))
    squared, energy = missed.square(), _energy(operator, y)
    if missed[0, 0].numel() <= LARGE:
        squared = _around(squared, operator.downscale)
    else:
        squared = _mean(squared).expand_as(squared)
    noise = missed.new_full((len(missed), 1, 1, 1), max(2 * noise_sigma, LEAST_NOISE) ** 2)
    while True:
        spread = trust**2 * (squared - noise).clamp(min=0) / energy
        spread = spread.minimum(_quantile(spread, TOP))
        moved, misfit = _move(operator, missed, spread, noise)
        if not (misfit > MISFIT).any():
            break
        # The misfit falls by no more than noise is raised: steps that would not do are left out.
        steps = (misfit.clamp(min=MISFIT) / MISFIT).log() / math.log(4)
        noise = noise * 4 ** steps.ceil()
    return (x + from_opponent(moved)).clamp(-1, 1)


def _move(
    operator: PixelOperator, missed: Tensor, spread: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """What to add to the picture, and the mean square of what is missed, whitened (B, 1, 1, 1).

    Args:
        operator: A.
        missed: what is missed (B, 3, h, w).
        spread: tau^2 (B, 3, h, w).
        noise: s^2 (B, 1, 1, 1).
    """
    size = [side * operator.downscale for side in spread.shape[-2:]]
    there = F.interpolate(spread, size, mode="bilinear") if operator.downscale > 1 else spread
    moved, explained = torch.zeros_like(there), torch.zeros_like(missed)
    levels = LEVELS if spread[0, 0].numel() <= LARGE else 1
    for index in range(levels):
        level = spread.amax(dim=(1, 2, 3), keepdim=True) / APART**index
        level = level.clamp(min=torch.finfo(spread.dtype).tiny)
        found = operator.solve(missed, level, noise)
        last = index == levels - 1
        explained += _share(spread, level, last=last) * found
        moved += _share(there, level, last=last) * level * operator.adjoint(found)
    return moved, _mean(missed * explained)


def _quantile(values: Tensor, share: float) -> Tensor:
    """What so many of the values (B, C, h, w) of each picture are no larger than, about."""
    values = values.flatten(1)
    looked_at = values[:, :: values.shape[1] // LOOKED_AT + 1]
    return looked_at.quantile(share, dim=1)[:, None, None, None]


def _share(spread: Tensor, level: Tensor, *, last: bool) -> Tensor:
    """By how much a spread is that of a level: from 1 down to 0 at the next ones."""
    below_or_above = spread.clamp(min=torch.finfo(spread.dtype).tiny) / level
    share = (1 - below_or_above.log().abs() / math.log(APART)).clamp(min=0)
    return torch.where(below_or_above < 1, below_or_above, share) if last else share


def _around(energy: Tensor, downscale: int) -> Tensor:
    """The mean over the pixels around each, of those that there are."""
    side = max(3, WINDOW // downscale | 1)
    for kernel in ((side, 1), (1, side)):
        padding = [length // 2 for length in kernel]
        energy = F.avg_pool2d(energy, kernel, 1, padding, count_include_pad=False)
    return energy


def _energy(operator: PixelOperator, y: Tensor) -> Tensor:
    """The squared norm of A^T of a single pixel in the middle: of each row of A, but at the rim."""
    pixel = torch.zeros_like(y[:1])
    pixel[..., y.shape[-2] // 2, y.shape[-1] // 2] = 1
    return operator.adjoint(pixel).square().sum() / pixel.sum()


def solve(
    apply: Callable[[Tensor], Tensor],
    right: Tensor,
    start: Tensor,
    precondition: Callable[[Tensor], Tensor],
) -> Tensor:
    """Preconditioned conjugate gradients for apply(v) = right, each picture by itself.

    Args:
        apply: a symmetric, positive map of pictures (B, 3, h, w).
        right: (B, 3, h, w).
        start: about what v is, (B, 3, h, w).
        precondition: another such map, about the inverse of `apply`.
    """
    tiny = torch.finfo(right.dtype).tiny
    v, residual = start, right - apply(start)
    direction = solved = precondition(residual)
    product = _mean(residual * solved)
    enough = TOLERANCE**2 * _mean(right.square())
    for _ in range(ITERATIONS):
        unfinished = _mean(residual.square()) > enough
        if not unfinished.any():
            break
        image = apply(direction)
        step = product / _mean(direction * image).clamp(min=tiny)
        step = torch.where(unfinished, step, 0)  # whatever the batch's others still need
        v, residual = v + step * direction, residual - step * image
        solved = precondition(residual)
        product, before = _mean(residual * solved), product
        direction = solved + product / before.clamp(min=tiny) * direction
    return v


def _mean(images: Tensor) -> Tensor:
    return images.mean(dim=(1, 2, 3), keepdim=True)
