"""Restorations are moved to what explains their measurement, and no further."""

import math
from typing import Any

import pytest
import torch
from scipy.stats import truncnorm
from torch import Tensor

from operators import blur, consistency, jpeg, pixel_operator
from operators.blur import GaussianBlur, MotionBlur
from operators.colours import OPPONENT, from_opponent, to_opponent
from operators.consistency import LEAST_NOISE, TRUST, _around
from operators.cosine import to_coefficients
from operators.degradation import Degradation
from operators.denoising import Denoising
from operators.jpeg import Jpeg, _truncated_mean
from operators.pixel import measure
from operators.pixel_operator import PixelOperator
from tests.photos import blurred, photo

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
    monkeypatch.setattr("operators.consistency.WINDOW", 1000)  # the whole picture is one place
    clean = _pictures(1).double()
    clean = clean.mean(1, keepdim=True).expand(-1, 3, -1, -1)  # grey: brightness alone is off
    operator, y = _measured(kind, sigma, clean)
    y = y.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    x = _off(clean).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    basis = torch.eye(16 * 16, dtype=torch.float64).reshape(-1, 1, 16, 16).expand(-1, 3, -1, -1)
    a = operator.forward(basis)[:, 0].flatten(1).T  # one channel's matrix; channels are alike
    missed = (y - operator.forward(x)).flatten(2)[0].T
    noise = max(2 * sigma, LEAST_NOISE) ** 2
    side = y.shape[-1]
    energy = a[(side // 2) * side + side // 2].square().sum()
    brightness = 3 * missed.square().mean()  # the sum of three equal colours over the root of 3
    spread = TRUST**2 * (brightness - noise).clamp(min=0) / energy
    identity = torch.eye(len(a), dtype=torch.float64)
    step = spread * a.T @ torch.linalg.solve(spread * a @ a.T + noise * identity, missed)
    expected = (x + step.T.reshape(1, 3, 16, 16)).clamp(-1, 1)
    assert spread > 0
    torch.testing.assert_close(operator.explain(x, y, sigma), expected, atol=1e-5, rtol=0)


def test_the_mean_around_a_pixel_is_of_those_that_there_are() -> None:
    energy = torch.arange(48.0).reshape(1, 1, 6, 8)
    around = _around(energy, 4)  # a window of 21 pixels is one of 5 here
    assert around[0, 0, 3, 4].item() == pytest.approx(energy[..., 1:6, 2:7].mean().item())
    assert around[0, 0, 0, 7].item() == pytest.approx(energy[..., :3, 5:].mean().item())
    assert _around(energy, 8)[0, 0, 3, 4].item() == pytest.approx(energy[..., 2:5, 3:6].mean())


@pytest.mark.parametrize("kind", LINEAR)
def test_what_is_explained_to_within_the_noise_hardly_changes(kind: str) -> None:
    clean = _pictures(side=64)
    operator, y = _measured(kind, 0.01, clean)
    assert (operator.explain(clean, y, 0.015) - clean).abs().max() < 0.01  # the noise is 0.02
    x = _off(clean)
    better = operator.explain(x, y, 0.01)
    assert (better - clean).square().mean() < (x - clean).square().mean()


@pytest.mark.parametrize("kind", LINEAR)
def test_a_picture_is_moved_where_it_is_off(kind: str) -> None:
    clean = _pictures(1, 64)
    operator, y = _measured(kind, 0.01, clean)
    x = clean.clone()
    x[..., :32] = _off(clean)[..., :32]
    before, after = ((each - clean).square() for each in (x, operator.explain(x, y, 0.01)))
    assert after[..., :32].mean() < before[..., :32].mean()
    assert after[..., 52:].mean() < 2e-5  # a noise of 0.004, of the measurement's 0.02
    grey = x.clone()
    grey[:] = clean + (x - clean).mean(1, keepdim=True)  # off in brightness: colours stay
    colours = to_opponent(operator.explain(grey, y, 0.01) - grey)[:, 1:]
    assert colours.abs().max() < 0.2 * (grey - clean).abs().max()


@pytest.mark.parametrize("kind", LINEAR)
def test_what_one_spot_is_off_by_tells_nothing_of_the_rest(kind: str) -> None:
    clean = _pictures(1, 128)
    operator, y = _measured(kind, 0.01, clean)
    x, spotted = _off(clean), y.clone()
    side = y.shape[-1] // 16
    spotted[..., :side, :side] = 1.0
    apart = [operator.explain(x, each, 0.01)[..., 64:, 64:] for each in (y, spotted)]
    better, worse = ((each - clean[..., 64:, 64:]).square().mean() for each in apart)
    assert worse < 1.1 * better and better < (x - clean)[..., 64:, 64:].square().mean()


def test_large_pictures_have_one_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = _pictures(1, 64)
    operator, y = _measured("super_resolution", 0.01, clean)
    x = _off(clean)
    x[..., :32] = _off(clean, 0.02)[..., :32]
    fine = operator.explain(x, y, 0.01)
    monkeypatch.setattr(consistency, "LARGE", 0)
    coarse = operator.explain(x, y, 0.01)
    assert not torch.equal(fine, coarse)
    monkeypatch.setattr(consistency, "LARGE", 2**20)
    monkeypatch.setattr(consistency, "WINDOW", 10_000)  # the whole picture is one place
    monkeypatch.setattr(consistency, "to_opponent", lambda images: images)
    monkeypatch.setattr(consistency, "from_opponent", lambda images: images)
    torch.testing.assert_close(coarse, operator.explain(x, y, 0.01), atol=0.02, rtol=0)


def test_opponent_colours_are_orthonormal() -> None:
    matrix = torch.tensor(OPPONENT, dtype=torch.float64)
    assert (matrix @ matrix.T - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-12
    grey = torch.full((1, 3, 2, 2), 0.5)
    assert to_opponent(grey)[:, 1:].abs().max() < 1e-6
    x = _pictures(1)
    torch.testing.assert_close(from_opponent(to_opponent(x)), x)


@pytest.mark.parametrize("kind", [*LINEAR, "jpeg", "denoising"])
def test_each_picture_is_explained_by_itself(kind: str) -> None:
    clean = _pictures()
    if kind == "jpeg":
        operator = Jpeg()
        y = operator.forward(clean[:1])
    elif kind == "denoising":
        operator, y = Denoising(), _off(clean[:1], 0.02)
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


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_jpeg_that_was_turned_since_is_turned_back_for_its_blocks(turns: int) -> None:
    def turned(stored: Tensor) -> Tensor:
        return torch.rot90(stored, turns, (-2, -1))

    x, clean = _pictures(2, 48)[..., :37, :].split(1)  # blocks that do not end at the rim
    upright, since = Jpeg(quality=10), Jpeg(quality=10, turns=turns)
    y = upright.forward(clean)
    torch.testing.assert_close(since.forward(turned(clean)), turned(y))
    explained = since.explain(turned(x), turned(y), 0.0)
    torch.testing.assert_close(explained, turned(upright.explain(x, y, 0.0)))


def test_a_coefficient_is_the_mean_of_what_it_may_be() -> None:
    mean = torch.tensor([0.0, 3.0, -70.0, 200.0, 1e4])
    spread = torch.tensor([20.0, 20.0, 35.0, 20.0, 20.0])
    low, high = torch.tensor([-40.0, 0.0, -40.0, 120.0, -1.0]), torch.tensor([40.0, 5, 40, 200, 1])
    found = _truncated_mean(mean, spread, low, high)
    a, b = (low - mean) / spread, (high - mean) / spread
    expected: Any = truncnorm.mean(a[:4], b[:4], loc=mean[:4], scale=spread[:4])
    assert found[:4].tolist() == pytest.approx(list(expected), abs=1e-3)
    assert found[4] == 1


def test_a_jpeg_is_moved_the_more_the_further_it_is_off_around() -> None:
    off = torch.zeros(1, 2, 9, 9, 8, 8)
    off[0, 1, 4, 4, 2, 3] = 500.0
    spread = jpeg._spread(off)
    assert spread[0, 1, 4, 4, 2, 3].item() == pytest.approx(jpeg.TRUST * 500 / 5)
    assert spread[0, 1, 2, 6, 2, 3].item() == pytest.approx(jpeg.TRUST * 500 / 5)
    spread[0, 1, 2:7, 2:7, 2, 3] = jpeg.LEAST_SPREAD
    assert torch.all(spread == jpeg.LEAST_SPREAD)


def test_coefficients_are_those_of_the_cosine_transform() -> None:
    flat = to_coefficients(torch.full((1, 1, 8, 8), 3.0))
    assert flat[0, 0, 0, 0, 0, 0] == pytest.approx(24.0) and flat.abs().sum() == pytest.approx(24.0)
    wave = torch.cos((2 * torch.arange(8) + 1) * math.pi / 16)
    across = to_coefficients(wave.expand(1, 1, 8, 8))[0, 0, 0, 0]
    assert across[0, 1].item() == pytest.approx(across.abs().sum().item(), rel=1e-5)


def test_masks_leave_the_restoration_to_others() -> None:
    x, y = _off(_pictures(1)), _pictures(1)
    for kind in ("inpainting_random", "destriping"):
        assert torch.equal(Degradation(kind, {}, 0.01).operator().explain(x, y, 0.01), x)


def test_a_draft_of_a_blur_explains_more_and_others_have_none() -> None:
    for kind in LINEAR:
        clean = _pictures(1, 64)
        operator, y = _measured(kind, 0.01, clean)
        x = _off(clean)
        draft = operator.draft(x, y, 0.01)
        if draft is None:
            assert kind == "super_resolution"
            continue
        explained = operator.explain(x, y, 0.01)
        far, nearer, near = ((operator.forward(each) - y).std() for each in (x, explained, draft))
        assert near < nearer < far
        assert (draft - x).square().mean() > (explained - x).square().mean()
    assert Jpeg().draft(_pictures(1), _pictures(1), 0.01) is None


@pytest.mark.parametrize("name", ["coffee", "astronaut"])
def test_what_was_blurred_otherwise_has_no_draft(name: str) -> None:
    sharp, operator = photo(name, 128), GaussianBlur(std=3.0)
    x = blurred(sharp, 1.5)
    assert operator.draft(x, operator.forward(sharp), 0.01) is not None
    assert operator.draft(x, sharp, 0.01) is None  # what explains it is beyond black and white


def test_a_large_jpeg_is_explained_strip_by_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = _off(_pictures(1, 152)), Jpeg(quality=10).forward(_pictures(1, 152))
    whole = Jpeg(quality=10).explain(x, y, 0.0)
    monkeypatch.setattr(jpeg, "STRIP", 32)
    torch.testing.assert_close(Jpeg(quality=10).explain(x, y, 0.0), whole, atol=1e-5, rtol=0)


def test_large_pictures_are_solved_for_at_once_or_in_single_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blur, "LARGE", 0)
    monkeypatch.setattr(pixel_operator, "LARGE", 0)
    inside = (..., slice(30, -30), slice(30, -30))  # at once, the adjoint takes the rim for its end
    for operator, part in ((GaussianBlur(std=2.0), inside), (MotionBlur(length=9), ...)):
        right = operator.forward(torch.cat([_pictures(1, 96), 0.1 * _pictures(1, 96)]))
        spread, noise = torch.tensor([0.02, 0.5]).view(2, 1, 1, 1), torch.full((2, 1, 1, 1), 4e-4)
        found = operator.solve(right, spread, noise)
        again = spread * operator.forward(operator.adjoint(found)) + noise * found
        off, whole = ((each[part] ** 2).mean((1, 2, 3)).sqrt() for each in (again - right, right))
        assert (off < 1.1 * consistency.TOLERANCE * whole).all()


@pytest.mark.parametrize("operator", [MotionBlur(), MotionBlur(61, 21, 0.0)])
@pytest.mark.parametrize("size", [(64, 96), (31, 40), (1, 50)])
def test_a_shakes_preconditioner_is_symmetric_and_about_the_inverse(
    operator: PixelOperator, size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, 3, *size, generator=generator).double().split(1)
    spread, noise = (torch.full((1, 1, 1, 1), value).double() for value in (0.3, 0.01))
    precondition = operator.preconditioner(v, spread, noise)
    torch.testing.assert_close((u * precondition(v)).sum(), (precondition(u) * v).sum())
    assert (v * precondition(v)).sum() > 0
    calls = 0

    def apply(picture: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return spread * operator.forward(operator.adjoint(picture)) + noise * picture

    found = consistency.solve(apply, v, torch.zeros_like(v), precondition)
    preconditioned, calls = calls, 0
    assert (apply(found) - v).norm() <= consistency.TOLERANCE * v.norm()
    calls = 0
    consistency.solve(apply, v, torch.zeros_like(v), lambda picture: picture)
    assert preconditioned <= calls


def test_each_picture_of_a_batch_is_preconditioned_by_its_own_spread() -> None:
    v = _pictures(2, 32).double()
    spread, noise = (
        torch.tensor([0.1, 2.0]).double().reshape(2, 1, 1, 1),
        torch.full((2, 1, 1, 1), 0.01),
    )
    operator = MotionBlur()
    both = operator.preconditioner(v, spread, noise)(v)
    for index in range(2):
        one = slice(index, index + 1)
        alone = operator.preconditioner(v[one], spread[one], noise[one])(v[one])
        torch.testing.assert_close(both[one], alone)
