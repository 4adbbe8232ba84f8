"""Moves a restored picture to where it explains a linear measurement, as far as noise allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from operators.pixel_operator import PixelOperator

# The share of a restoration's error, as its residual shows it, that is taken for its spread. With
# all of it PSNR rises further, but the painted texture suffers: LPIPS of blur 0.229 for 0.218.
TRUST = 0.5
# What is missed, whitened by what it is taken for, has a mean square of 1, and of up to 3.6 where
# all is well. Where it is more, y did not come about by A, as next to a caption that was put on
# since, and would be explained by ripples: more is taken for noise.
MISFIT = 6.0
LEAST_NOISE = 2 / 255 / 12**0.5  # in [-1, 1]: of rounding to eight bits
# Conjugate gradients end at this share of the residual's norm (with 0.001 LPIPS of blur is the same
# to 0.001), or after so many iterations.
TOLERANCE = 0.05
ITERATIONS = 30


def explain(operator: PixelOperator, x: Tensor, y: Tensor, noise_sigma: float) -> Tensor:
    """The mean of N(x, tau^2) given y = A x + n: x + tau^2 A^T (tau^2 A A^T + s^2)^-1 (y - A x).

    tau, of each picture by itself, is what the residual y - A x tells beyond the noise s of how far
    x is off, times `TRUST`; a picture that explains y to within the noise stays as it is. What A
    does not pass on, such as painted texture, stays in any case: this is back-projection
    (Irani and Peleg, 1991), damped by the noise.

    Args:
        operator: A, linear and without a mask.
        x: pictures (B, 3, H, W) in [-1, 1].
        y: the measurement (1 or B, 3, h, w).
        noise_sigma: std of its noise in [0, 1] units, whence s = 2 `noise_sigma`.

    Returns:
        (B, 3, H, W), within [-1, 1].
    """
    missed = y - operator.forward(x)
    squared, energy = _mean(missed.square()), _energy(operator, y)
    noise = torch.full_like(squared, max(2 * noise_sigma, LEAST_NOISE) ** 2)
    while True:
        spread = TRUST**2 * (squared - noise).clamp(min=0) / energy
        found = operator.solve(missed, spread, noise)
        misfit = _mean(missed * found) > MISFIT
        if not misfit.any():
            break
        noise = torch.where(misfit, 4 * noise, noise)
    return (x + spread * operator.adjoint(found)).clamp(-1, 1)


def _energy(operator: PixelOperator, y: Tensor) -> Tensor:
    """The squared norm of A^T of a single pixel in the middle: of each row of A, but at the rim."""
    pixel = torch.zeros_like(y[:1])
    pixel[..., y.shape[-2] // 2, y.shape[-1] // 2] = 1
    return operator.adjoint(pixel).square().sum() / pixel.sum()


def solve(apply: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """Conjugate gradients for apply(v) = right, each picture by itself.

    Args:
        apply: a symmetric, positive map of pictures (B, 3, h, w).
        right: (B, 3, h, w).
    """
    v, residual = torch.zeros_like(right), right
    direction, squared = residual, _mean(residual.square())
    enough = TOLERANCE**2 * squared
    for _ in range(ITERATIONS):
        unfinished = squared > enough
        if not unfinished.any():
            break
        image = apply(direction)
        step = squared / _mean(direction * image).clamp(min=torch.finfo(right.dtype).tiny)
        step = torch.where(unfinished, step, 0)  # whatever the batch's others still need
        v, residual = v + step * direction, residual - step * image
        squared, before = _mean(residual.square()), squared
        direction = residual + squared / before.clamp(min=torch.finfo(right.dtype).tiny) * direction
    return v


def _mean(images: Tensor) -> Tensor:
    return images.mean(dim=(1, 2, 3), keepdim=True)
