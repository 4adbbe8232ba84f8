"""silo-fast in a linear-Gaussian world, where denoiser and posterior are known."""

from typing import Any

import numpy as np
import pytest
import torch

from silo.errors import BadRequest
from silo.samplers import SAMPLERS, Problem
from silo.samplers.problem import Step
from silo.schedule import Schedule, spaced
from tests.gaussian_world import (
    ALPHAS_CUMPROD,
    MU,
    SIGMA,
    GaussianPrior,
    over_channels,
    problem,
    seeds,
)

# The last channel is not measured, and the measurement is always 0.3 there.
H = np.diag([0.9, 0.6, 0.0])
OFFSET = torch.tensor([0.0, 0.1, 0.3])
MEAN = torch.from_numpy(MU).float().view(1, 3, 1, 1)
STEPS = 16
silo_fast = SAMPLERS["silo-fast"].sample


class NoGradientPrior(GaussianPrior):
    """Sees to it that no gradient is asked of the denoiser, nor its features."""

    def predict(self, latents, t, prompt, *, features=False):
        assert not torch.is_grad_enabled() and not features
        return super().predict(latents, t, prompt)


class LinearOperator:
    """H on every pixel's channels, with a small error of its own."""

    needs_features = False
    needs_sigma_embedding = False
    metadata = {"rmse": 0.02}

    def __call__(self, z: torch.Tensor, noise_sigma: torch.Tensor, **given: Any) -> torch.Tensor:
        return over_channels(H, z) + OFFSET.view(1, 3, 1, 1)


class Scaled(LinearOperator):
    """Passes on the same share of everything."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, z: torch.Tensor, noise_sigma: torch.Tensor, **given: Any) -> torch.Tensor:
        return self.share * z


class Losing(LinearOperator):
    """Loses the last channel, to which a `lost` share of the error at z = 0 belongs."""

    def __init__(self, lost: float) -> None:
        self.error = torch.tensor([(1 - lost**2) ** 0.5, 0.0, lost]).view(1, 3, 1, 1)

    def __call__(self, z: torch.Tensor, noise_sigma: torch.Tensor, **given: Any) -> torch.Tensor:
        return over_channels(np.diag([0.65, 0.65, 0.0]), z) - self.error


class Identity(LinearOperator):
    def __call__(self, z: torch.Tensor, noise_sigma: torch.Tensor, **given: Any) -> torch.Tensor:
        return z


class Inverse(LinearOperator):
    """Turns what it is given around, and weakens it."""

    def __call__(self, z: torch.Tensor, noise_sigma: torch.Tensor, **given: Any) -> torch.Tensor:
        return -0.8 * z


def restored(task: Problem, *seed: int, eta: float = 1.0, steps: int = STEPS) -> torch.Tensor:
    schedule = spaced(ALPHAS_CUMPROD, steps)
    *_, last = silo_fast(task, schedule, eta=eta, generators=seeds(*seed))
    return last.latent


def noises(
    schedule: Schedule, steps: list[Step], index: int, moved: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of step `index` the noise that it predicted, and that which it added to `moved`."""
    alpha_bar, alpha_bar_prev = schedule.alpha_bar[index], schedule.alpha_bar_prev[index]
    clean = alpha_bar.sqrt() * steps[index].clean_estimate
    predicted = (steps[index - 1].latent - clean) / (1 - alpha_bar).sqrt()
    added = (steps[index].latent - alpha_bar_prev.sqrt() * moved) / (1 - alpha_bar_prev).sqrt()
    return predicted, added


def draw(side: int) -> torch.Tensor:
    noise = torch.randn(1, 3, side, side, generator=seeds(99)[0])
    return MEAN + over_channels(np.linalg.cholesky(SIGMA), noise)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_steps_approach_the_posterior_in_what_is_measured_and_what_is_not(
    prediction_type: str,
) -> None:
    z, operator = draw(64), LinearOperator()
    w = operator(z, torch.tensor([0.01]))
    deviation = (z - MEAN)[:, :2]
    expected = MU[2] + over_channels(SIGMA[2:, :2] @ np.linalg.inv(SIGMA[:2, :2]), deviation)[:, 0]
    variance = SIGMA[2, 2] - SIGMA[2, :2] @ np.linalg.inv(SIGMA[:2, :2]) @ SIGMA[:2, 2]
    errors, slopes = [], []
    for steps in (STEPS, 200):
        prior = NoGradientPrior(prediction_type)
        task = problem(w, operator, prior)
        sample = restored(task, 0, steps=steps)
        errors.append(float((sample - z)[:, :2].abs().mean()))
        slope, _ = np.polyfit(expected.flatten(), sample[:, 2].flatten(), 1)
        slopes.append(slope)
        assert len(prior.timesteps) == steps
    assert errors[1] < 0.004 < errors[0] < 0.02
    # Noise that has settled is less than the denoiser expects, which so trusts it too little.
    assert 0.5 < slopes[0] < slopes[1] and slopes[1] == pytest.approx(0.85, abs=0.15)
    unexplained = sample[:, 2] - expected
    assert float(unexplained.mean()) == pytest.approx(0, abs=0.03)
    # Clean estimates leave out how uncertain they are, so that samples vary too little.
    assert 0.7 < float(unexplained.std() / variance**0.5) < 1.05


@pytest.mark.parametrize(
    ("lost", "hole", "kept_early", "kept_late", "strength"),
    [
        (0.05, False, 0, 0.95, 1),
        (0.15, False, 0.475, 0.95, 0.99),
        (0.5, False, 0.95, 0.95, 0.98),
        (0.5, True, 0, 0.4, 1),
    ],
)
def test_predicted_noise_is_kept_where_it_draws_what_the_operator_loses(
    lost: float, hole: bool, kept_early: float, kept_late: float, strength: float
) -> None:
    """A correction takes back all of the first channel's error, none of the last one's."""
    mask = torch.zeros(1, 1, 512, 512) if hole else None
    task = problem(torch.zeros(1, 3, 64, 64), Losing(lost), mask=mask)
    schedule = spaced(ALPHAS_CUMPROD, 8)
    # Where w is left out, a latent is nothing but the step's clean estimate and noise.
    steps = list(silo_fast(task, schedule, eta=0.0, generators=seeds(0)))
    expected = [0, kept_early, kept_early, kept_late, kept_late, kept_late]
    # The first latent is not told, the last holds no noise.
    for index, share in enumerate(expected, start=1):
        predicted, added = noises(schedule, steps, index, steps[index].clean_estimate)
        kept = (predicted * added).sum() / predicted.square().sum() / strength
        assert float(kept) == pytest.approx(share, abs=0.03)
        fresh = added / strength - share * predicted
        assert float(fresh.std()) == pytest.approx((1 - share**2) ** 0.5, rel=0.03)


def test_noise_settles_in_the_end_where_the_operator_sees_it() -> None:
    """H_theta passes on 0.65 of the first two channels, which is what J is, and not the last."""
    operator = Losing(0.05)
    w = torch.zeros(1, 3, 64, 64)
    schedule = spaced(ALPHAS_CUMPROD, 10)
    steps = list(silo_fast(problem(w, operator), schedule, eta=1.0, generators=seeds(0)))
    for index in (6, 7, 8):  # the last step adds no noise
        clean = steps[index].clean_estimate
        corrected = clean + (w - operator(clean, torch.zeros(1))) / 0.65
        predicted, added = noises(schedule, steps, index, corrected)
        kept = (predicted * added).sum((0, 2, 3)) / predicted.square().sum((0, 2, 3))
        seen = 0.95 if index < 8 else 0.5 * 0.95
        assert kept.tolist() == pytest.approx([seen, seen, 0.95], abs=0.03)


def test_what_lies_in_a_hole_is_drawn_from_the_prior_whatever_is_measured_there() -> None:
    mask = torch.ones(1, 1, 64, 64)
    mask[..., 16:48, 16:48] = 0
    z = draw(8)
    wrong = torch.where(mask[..., ::8, ::8] == 0, torch.tensor(5.0), z)
    samples = [restored(problem(w, Identity(), mask=mask), 1) for w in (z, wrong)]
    assert torch.equal(samples[0], samples[1])
    hole = samples[0][..., 2:6, 2:6]
    assert (hole - z[..., 2:6, 2:6]).abs().mean() > 0.5
    assert hole.std() == pytest.approx(0.9, abs=0.3)


def test_latents_that_are_known_in_part_are_measured_too() -> None:
    """H_theta passes on the known share k of what it is given: Van Cittert has to divide by it."""

    mask = torch.zeros(1, 1, 128, 128)
    mask[..., ::2, ::2] = 1
    z = draw(16)
    sample = restored(problem(0.25 * z, Scaled(0.25), mask=mask), 0)
    assert float((sample - z).abs().mean()) < 0.25  # 0.56 with the gain of pixels wholly known


@pytest.mark.parametrize(("passed_on", "corrected"), [(0.98, 1), (0.8, 1), (0.3, 0.3 / 0.65)])
def test_a_correction_is_as_long_as_what_the_operator_passes_on_asks_for(
    passed_on: float, corrected: float
) -> None:
    z = draw(4)
    task = problem(passed_on * z, Scaled(passed_on))
    (step,) = silo_fast(task, spaced(ALPHAS_CUMPROD, 1), eta=1.0, generators=seeds(3))
    expected = step.clean_estimate + corrected * (z - step.clean_estimate)
    torch.testing.assert_close(step.latent, expected, rtol=0, atol=5e-3)


def test_what_an_operator_turns_around_is_turned_back() -> None:
    """Corrections by the error itself would drive z away: by 1 + 0.8 / 0.65 each."""
    z = draw(16)
    sample = restored(problem(-0.8 * z, Inverse()), 0)
    assert float((sample - z).abs().mean()) < 0.05


def test_what_no_latent_could_have_given_does_not_drive_the_rest_away() -> None:
    """H_theta loses the last channel, where corrections would add 2 / 0.65 at every step."""
    z, operator = draw(16), LinearOperator()
    w = operator(z, torch.tensor([0.01]))
    wrong = w + torch.tensor([0.0, 0.0, 2.0]).view(1, 3, 1, 1)
    right, sample = (restored(problem(each, operator), 0) for each in (w, wrong))
    assert float((sample - z)[:, :2].abs().mean()) < 0.05
    # What corrections add in the noisier half of the steps fades; all of them would add 13.
    assert abs(float((sample - right)[:, 2].mean())) < 0.6


def test_descent_ends_at_the_proximal_point() -> None:
    """The minimum of ||w - H z||^2 / s^2 + ||z - z0hat||^2 / (2 eta r^2), for H = -0.8."""
    z = draw(4)
    prior = NoGradientPrior()
    task = problem(-0.8 * z, Inverse(), prior)
    t, alpha_bar = 999, float(ALPHAS_CUMPROD[999])
    (step,) = silo_fast(task, spaced(ALPHAS_CUMPROD, 1), eta=1e-4, generators=seeds(3))
    assert prior.timesteps == [t]
    doubt, variance = 2e-4 * (1 - alpha_bar), 0.02**2
    clean = step.clean_estimate
    expected = (variance * clean + doubt * 0.64 * z) / (variance + doubt * 0.64)
    torch.testing.assert_close(step.latent, expected, rtol=0, atol=1e-3)
    assert float((expected - clean).abs().mean()) > 0.05


def test_measurements_that_converge_are_corrected_beside_one_that_does_not() -> None:
    class Sign(LinearOperator):
        def __call__(
            self, z: torch.Tensor, noise_sigma: torch.Tensor, **given: Any
        ) -> torch.Tensor:
            signs = torch.tensor([0.8, -0.8])[: len(z)] if len(z) > 1 else torch.tensor([0.8])
            return signs.view(-1, 1, 1, 1) * z

    z = draw(8)
    together = restored(problem(torch.cat([0.8 * z, -0.8 * z]), Sign()), 1, 2)
    alone = restored(problem(0.8 * z, Sign()), 1)
    torch.testing.assert_close(together[0], alone[0], rtol=0, atol=1e-5)
    assert float((together[1] - z[0]).abs().mean()) < 0.05


def test_a_larger_eta_keeps_closer_to_the_measurement() -> None:
    z = draw(16)
    distances = [
        float((restored(problem(z, Identity()), 0, eta=eta) - z).norm())
        for eta in (0, 1e-4, 1e-3, 1e-2)
    ]
    assert distances[0] > distances[1] > 2 * distances[2] > 4 * distances[3]


@pytest.mark.parametrize("measurements", [1, 3])
def test_a_batch_gives_what_its_members_give_alone(measurements: int) -> None:
    w = torch.cat([draw(8) + i for i in range(measurements)])
    together = restored(problem(w, LinearOperator()), 1, 2, 3)
    for i in range(3):
        alone = restored(problem(w[i % measurements, None], LinearOperator()), i + 1)
        torch.testing.assert_close(together[i], alone[0], rtol=0, atol=1e-5)
    assert not torch.allclose(together[0], together[1])


def test_one_seed_gives_one_picture_and_one_evaluation_a_step() -> None:
    prior = NoGradientPrior()
    task = problem(draw(8), LinearOperator(), prior)
    assert torch.equal(restored(task, 7), restored(task, 7))
    levels = [1000 * k // STEPS - 1 for k in range(STEPS, 0, -1)]
    assert np.abs(np.array(prior.timesteps) - levels * 2).max() <= 1


def test_an_operator_that_reads_features_and_a_clamp_are_refused() -> None:
    operator = LinearOperator()
    operator.needs_features = True
    schedule = spaced(ALPHAS_CUMPROD, STEPS)
    with pytest.raises(BadRequest, match="reads the latent alone"):
        next(silo_fast(problem(draw(2), operator), schedule, eta=1.0, generators=seeds(0)))
    bounded = problem(draw(2), LinearOperator())
    with pytest.raises(BadRequest, match="clamp"):
        next(silo_fast(bounded, schedule, eta=1.0, generators=seeds(0), clamp=1.0))
    with pytest.raises(BadRequest, match="latent operator"):
        next(silo_fast(problem(draw(2), None), schedule, eta=1.0, generators=seeds(0)))
