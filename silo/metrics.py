"""How good restorations are: of one picture (PSNR, CPSNR, SSIM, LPIPS) and of many (FID, KID)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from silo.lpips import LEAST_SIDE, LPIPS, find_weights
from silo.measured import Measured
from silo.restorer import Result

MAX_PSNR = 100.0  # dB: of pictures that are equal, or that float32 hardly tells apart
SSIM_WINDOW = 11  # pixels
DATA_RANGE = 2  # of pictures in [-1, 1], as in the paper


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,), of images (B, ...) in [-1, 1] (data range 2)."""
    error = (a - b).flatten(1).square().mean(1)
    return (10 * torch.log10(DATA_RANGE**2 / error)).clamp(max=MAX_PSNR)


def cpsnr(measured: Measured, image: Tensor) -> Tensor:
    """Consistency: PSNR between A(x) and A(image), both without noise (B,).

    Args:
        measured: a simulated measurement, on the prior's grid.
        image: (B, 3, H, W) on the same grid.

    Raises:
        ValueError: the damage was not simulated, so that there is no clean picture.
    """
    if measured.clean is None:
        raise ValueError("consistency needs the clean picture: simulate the damage.")
    operator = measured.degradation.operator()
    measurement = operator.forward(measured.clean, measured.mask)
    return psnr(operator.forward(image, measured.mask), measurement.expand(len(image), -1, -1, -1))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity, (B,), of images (B, 3, H, W) in [-1, 1], at least SSIM_WINDOW wide.

    Wang et al. 2004: Gaussian window of standard deviation 1.5, mean over pixels and channels.
    """
    from skimage.metrics import structural_similarity  # brings scipy, which restoring needs not

    return torch.tensor(
        [
            structural_similarity(
                x.double().numpy(),
                y.double().numpy(),
                data_range=DATA_RANGE,
                channel_axis=0,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            for x, y in zip(a.cpu(), b.cpu(), strict=True)
        ]
    )


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """FID (arXiv 1706.08500, eq. 6) of features (N, D) and (M, D), with N, M >= 2.

    |mean difference|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2)). With S_a = A^T A and
    S_b = B^T B the last trace is the sum of the singular values of A B^T, (N, M): no square root
    of a (D, D) matrix, which is singular for fewer than D pictures.
    """
    a, b = a.double(), b.double()
    centred_a, centred_b = (
        (features - features.mean(0)) / (len(features) - 1) ** 0.5 for features in (a, b)
    )
    shift = (a.mean(0) - b.mean(0)).square().sum()
    overlap = torch.linalg.matrix_norm(centred_a @ centred_b.T, "nuc")
    return float(shift + centred_a.square().sum() + centred_b.square().sum() - 2 * overlap)


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """KID (arXiv 1801.01401): the unbiased squared MMD of features (N, D), (M, D), N, M >= 2.

    Kernel (x.y / D + 1)^3; over all pictures at once, not over random subsets.
    """
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        return (kernel(x, x).sum() - kernel(x, x).trace()) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


@dataclass(frozen=True)
class Scores:
    """Means over the samples of one picture.

    Attributes:
        psnr: dB.
        cpsnr: dB.
        ssim: at most 1; None for a picture smaller than its window.
        lpips: LPIPS-Alex; None without its weights, or for a picture too small for its network.
        lpips_vgg: LPIPS-VGG; as `lpips`.
    """

    psnr: float
    cpsnr: float
    ssim: float | None
    lpips: float | None
    lpips_vgg: float | None


def scores(result: Result) -> tuple[Scores, Scores]:
    """The scores of a simulated restoration and, to compare, of its measurement.

    LPIPS with the weights of `silo.lpips.find_weights`.

    Raises:
        ValueError: the damage was not simulated, so that there is no clean picture.
    """
    return (
        score(result.measured, result.restored),
        score(result.measured, result.measured.full_size),
    )


def score(measured: Measured, on_grid: Tensor) -> Scores:
    """The scores of images (B, 3, H, W) on the prior's grid, for a simulated measurement.

    A large picture is scored at the size that it was degraded and restored at.

    Raises:
        ValueError: the damage was not simulated, so that there is no clean picture.
    """
    if measured.clean is None:
        raise ValueError("only a simulated restoration can be scored.")
    images = measured.fit.cut(on_grid)
    clean = measured.fit.cut(measured.clean).expand_as(images)
    return Scores(
        float(psnr(images, clean).mean()),
        float(cpsnr(measured, on_grid).mean()),
        float(ssim(images, clean).mean()) if min(images.shape[-2:]) >= SSIM_WINDOW else None,
        lpips("alex", images, clean),
        lpips("vgg", images, clean),
    )


@torch.no_grad()
def lpips(net: str, a: Tensor, b: Tensor) -> float | None:
    """The mean LPIPS of images (B, 3, H, W) in [-1, 1].

    None without the weights of `net`, or where a side is below `silo.lpips.LEAST_SIDE`.
    """
    weights = find_weights(net)
    if weights is None or min(a.shape[-2:]) < LEAST_SIDE[net]:
        return None
    return float(_distance(net, weights)(a, b).mean())


@lru_cache(maxsize=2)
def _distance(net: str, weights: Path) -> LPIPS:
    return LPIPS(net, weights).eval()
