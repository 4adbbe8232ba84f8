"""How good a restoration is: PSNR, consistency PSNR and LPIPS, as the paper measures them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from silo.lpips import LPIPS, find_weights
from silo.restorer import Measured, Result


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,), of images (B, ...) in [-1, 1] (data range 2)."""
    error = (a - b).flatten(1).square().mean(1)
    return 10 * torch.log10(4 / error)


def cpsnr(measured: Measured, image: Tensor) -> Tensor:
    """Consistency: PSNR between A(x) and A(image), both without noise (B,).

    Args:
        measured: a simulated measurement, on the prior's grid.
        image: (B, 3, H, W) on the same grid.
    """
    if measured.clean is None:
        raise ValueError("consistency needs the clean picture: simulate the damage.")
    operator = measured.degradation.operator()
    measurement = operator.forward(measured.clean, measured.mask)
    return psnr(operator.forward(image, measured.mask), measurement.expand(len(image), -1, -1, -1))


@dataclass(frozen=True)
class Scores:
    """Means over the samples of one picture; `lpips` is None where its weights are missing."""

    psnr: float
    cpsnr: float
    lpips: float | None


def scores(result: Result) -> tuple[Scores, Scores]:
    """The scores of a simulated restoration and, to compare, of its measurement.

    LPIPS-Alex, with the weights of `silo.lpips.find_weights`.
    """
    if result.clean is None:
        raise ValueError("only a simulated restoration can be scored.")
    weights = find_weights("alex")
    distance = _distance(weights) if weights else None

    def score(on_grid: Tensor, image: Tensor) -> Scores:
        clean = result.clean.expand_as(image) if result.clean is not None else image
        with torch.no_grad():
            return Scores(
                float(psnr(image, clean).mean()),
                float(cpsnr(result.measured, on_grid).mean()),
                float(distance(image, clean).mean()) if distance else None,
            )

    restoration = score(result.restored, result.images)
    return restoration, score(result.measured.full_size, result.measurement)


@lru_cache(maxsize=1)
def _distance(weights: Path) -> LPIPS:
    return LPIPS("alex", weights).eval()
