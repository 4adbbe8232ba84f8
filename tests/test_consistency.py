"""Restorations are moved to what explains their measurement, and no further."""

import math
from typing import Any

import pytest
import torch
from scipy.stats import truncnorm
from torch import Tensor

from operators import blur, jpeg
from operators.blur import GaussianBlur, MotionBlur
from operators.consistency import LEAST_NOISE, TRUST
from operators.degradation import Degradation
from operators.jpeg import SPREAD, Jpeg, _truncated_mean, to_coefficients
from operators.pixel import measure
from operators.pixel_operator import PixelOperator

LINEAR = {
    "super_resolution": {"factor": 4},
    "gaussian_blur": {"kernel_size": 5, "std": 1.0},
    "motion_blur": {"kernel_size": 7, "length": 5},
}


def _pictures(count: int = 2, side: int = 16) -> Tensor:
    """Smooth ones, well within [-1, 1]."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")


def _off(x: Tensor, std: float = 0.1) -> Tensor:
    return x + std * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def _measured(kind: str, sigma: float, x: Tensor) -> tuple[PixelOperator, Tensor]:
    degradation = Degradation(kind, LINEAR[kind], sigma)
    return degradation.operator(), measure(x, degradation, torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("sigma", [0.0, 0.02])
def test_a_linear_measurement_is_explained_as_the_closed_form_says(
    kind: str, sigma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("operators.consistency.TOLERANCE", 1e-6)
    monkeypatch.setattr("operators.consistency.ITERATIONS", 500)
    clean = _pictures(1).double()
    operator, y = _measured(kind, sigma, clean)
    x = _off(clean)
    basis = torch.eye(16 * 16, dtype=torch.float64).reshape(-1, 1, 16, 16).expand(-1, 3, -1, -1)
    a = operator.forward(basis)[:, 0].flatten(1).T  # one channel's matrix; channels are alike
    missed = (y - operator.forward(x)).flatten(2)[0].T
    noise = max(2 * sigma, LEAST_NOISE) ** 2
    side = y.shape[-1]
    energy = a[(side // 2) * side + side // 2].square().sum()
    spread = TRUST**2 * (missed.square().mean() - noise).clamp(min=0) / energy
    identity = torch.eye(len(a), dtype=torch.float64)
    step = spread * a.T @ torch.linalg.solve(spread * a @ a.T + noise * identity, missed)
    expected = (x + step.T.reshape(1, 3, 16, 16)).clamp(-1, 1)
    assert spread > 0
    torch.testing.assert_close(operator.explain(x, y, sigma), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", LINEAR)
def test_what_is_explained_to_within_the_noise_stays_as_it_is(kind: str) -> None:
    clean = _pictures()
    operator, y = _measured(kind, 0.01, clean)
    assert torch.equal(operator.explain(clean, y, 0.012), clean)
    x = _off(clean)
    better = operator.explain(x, y, 0.01)
    assert (better - clean).square().mean() < (x - clean).square().mean()


@pytest.mark.parametrize("kind", [*LINEAR, "jpeg"])
def test_each_picture_is_explained_by_itself(kind: str) -> None:
    clean = _pictures()
    if kind == "jpeg":
        operator = Jpeg()
        y = operator.forward(clean[:1])
    else:
        operator, y = _measured(kind, 0.01, clean[:1])
    x = torch.cat([_off(clean[:1]), _off(clean[:1], 0.3)])
    apart = [operator.explain(each, y, 0.01) for each in x.split(1)]
    torch.testing.assert_close(operator.explain(x, y, 0.01), torch.cat(apart), atol=1e-4, rtol=0)


def test_a_jpeg_is_explained_by_what_would_be_stored_as_it() -> None:
    clean = _pictures(1, 32).mean(1, keepdim=True).expand(-1, 3, -1, -1)  # grey: all is in luma
    operator = Jpeg(quality=10)
    y = operator.forward(clean)
    x = _off(clean, 0.3).mean(1, keepdim=True).expand(-1, 3, -1, -1).clamp(-1, 1)
    assert (operator.forward(x) - y).abs().max() > 0.1
    explained = operator.explain(x, y, 0.0)
    torch.testing.assert_close(operator.forward(explained), y, atol=1e-3, rtol=0)
    assert (explained - clean).square().mean() < (x - clean).square().mean()
    assert (explained - y).abs().mean() > 0.01  # what is stored is not all that there is


def test_a_coefficient_is_the_mean_of_what_it_may_be() -> None:
    mean = torch.tensor([0.0, 3.0, -70.0, 200.0, 1e4])
    low, high = torch.tensor([-40.0, 0.0, -40.0, 120.0, -1.0]), torch.tensor([40.0, 5, 40, 200, 1])
    found = _truncated_mean(mean, low, high)
    a, b = (low - mean) / SPREAD, (high - mean) / SPREAD
    expected: Any = truncnorm.mean(a[:4], b[:4], loc=mean[:4], scale=SPREAD)
    assert found[:4].tolist() == pytest.approx(list(expected), abs=1e-3)
    assert found[4] == 1


def test_coefficients_are_those_of_the_cosine_transform() -> None:
    flat = to_coefficients(torch.full((1, 1, 8, 8), 3.0))
    assert flat[0, 0, 0, 0, 0, 0] == pytest.approx(24.0) and flat.abs().sum() == pytest.approx(24.0)
    wave = torch.cos((2 * torch.arange(8) + 1) * math.pi / 16)
    across = to_coefficients(wave.expand(1, 1, 8, 8))[0, 0, 0, 0]
    assert across[0, 1].item() == pytest.approx(across.abs().sum().item(), rel=1e-5)


def test_noise_alone_and_masks_leave_the_restoration_to_others() -> None:
    x, y = _off(_pictures(1)), _pictures(1)
    for kind in ("denoising", "inpainting_random", "destriping"):
        assert torch.equal(Degradation(kind, {}, 0.01).operator().explain(x, y, 0.01), x)


def test_a_large_jpeg_is_explained_strip_by_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = _off(_pictures(1, 72)), Jpeg(quality=10).forward(_pictures(1, 72))
    whole = Jpeg(quality=10).explain(x, y, 0.0)
    monkeypatch.setattr(jpeg, "STRIP", 32)
    torch.testing.assert_close(Jpeg(quality=10).explain(x, y, 0.0), whole, atol=1e-5, rtol=0)


def test_a_large_blur_is_solved_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blur, "LARGE", 0)
    for operator in (GaussianBlur(std=2.0), MotionBlur(length=9)):
        right = operator.forward(torch.cat([_pictures(1, 96), 0.1 * _pictures(1, 96)]))
        spread, noise = torch.tensor([0.02, 0.5]).view(2, 1, 1, 1), torch.full((2, 1, 1, 1), 4e-4)
        found = operator.solve(right, spread, noise)
        again = spread * operator.forward(operator.adjoint(found)) + noise * found
        inside = (..., slice(30, -30), slice(30, -30))  # the adjoint takes the rim for its end
        assert (again - right)[inside].abs().max() < 0.05 * right[inside].abs().max()
