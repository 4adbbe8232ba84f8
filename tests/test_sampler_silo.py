"""Algorithm 1 in a linear-Gaussian world, where denoiser, guidance and samples are known."""

import weakref
from typing import Any

import numpy as np
import pytest
import torch

from silo.errors import BadRequest
from silo.samplers import SAMPLERS
from silo.schedule import spaced
from tests.gaussian_world import (
    ALPHAS_CUMPROD,
    MU,
    SIGMA,
    GaussianPrior,
    gain,
    over_channels,
    problem,
    seeds,
)

H = np.array([[0.9, 0.1, 0.0], [-0.3, 0.5, 0.2], [0.4, 0.0, 0.7]])
silo = SAMPLERS["silo"].sample
jacobian_free = SAMPLERS["silo-jacobian-free"].sample


class LinearOperator(torch.nn.Module):
    """H on every pixel's channels, as a learned parameter; keeps what it was called with."""

    needs_features = False
    needs_sigma_embedding = False

    def __init__(self, matrix: np.ndarray = H):
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.from_numpy(matrix))
        self.given: dict[str, Any] = {}

    def forward(self, z, noise_sigma, **given):
        self.given = {"noise_sigma": noise_sigma, **given}
        return torch.einsum("ij,bjhw->bihw", self.matrix.to(z), z)


class FeatureOperator(LinearOperator):
    """As a readout operator: adds the denoiser's features."""

    needs_features = True
    needs_sigma_embedding = True

    def forward(self, z, noise_sigma, **given):
        return super().forward(z, noise_sigma, **given) + 0.1 * given["features"][0]


def measurement(batch: int = 1, side: int = 2, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    z = torch.randn(batch, 3, side, side, generator=seeds(99)[0])
    return over_channels(H, z.to(dtype))


def law_of_the_unguided_chain(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of z_0: the affine steps of Algorithm 1 applied to N(0, I)."""
    levels = [float(ALPHAS_CUMPROD[1000 * k // steps - 1]) for k in range(steps, 0, -1)] + [1.0]
    mean, covariance = np.zeros(3), np.eye(3)
    for now, after in zip(levels[:-1], levels[1:], strict=True):
        alpha, beta = now / after, 1 - now / after
        noisy, clean = alpha**0.5 * (1 - after) / (1 - now), after**0.5 * beta / (1 - now)
        step = noisy * np.eye(3) + clean * gain(now)
        mean = step @ mean + clean * (MU - gain(now) @ (now**0.5 * MU))
        covariance = step @ covariance @ step.T + (1 - after) / (1 - now) * beta * np.eye(3)
    return mean, covariance


@pytest.mark.parametrize(
    ("steps", "shortfall"),
    # "fixed_small" leaves out the spread of z_0 given z_t: at 50 steps samples vary a little less
    [(1000, 0.02), (50, 0.18)],
)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_unguided_samples_follow_the_prior(steps, shortfall, prediction_type):
    w = torch.zeros(1, 3, 128, 128)
    prior = GaussianPrior(prediction_type)
    *_, last = silo(
        problem(w, LinearOperator(), prior),
        spaced(ALPHAS_CUMPROD, steps),
        eta=0.0,
        generators=seeds(0),
    )
    draws = last.latent.movedim(1, -1).reshape(-1, 3).double().numpy()
    error = 4 / len(draws) ** 0.5  # four standard errors
    mean, covariance = law_of_the_unguided_chain(steps)
    np.testing.assert_allclose(draws.mean(0), mean, atol=error)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=2**0.5 * error)
    np.testing.assert_allclose(draws.mean(0), MU, atol=error + 0.01)
    ratio = np.linalg.eigvals(np.cov(draws.T) @ np.linalg.inv(SIGMA)).real
    assert 1 - shortfall - 2**0.5 * error < ratio.min() and ratio.max() < 1 + 2**0.5 * error


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1000, 9, 1])
@pytest.mark.parametrize("clamp", [None, 0.05])
@pytest.mark.parametrize(
    ("sampler", "jacobian_of"),
    [(silo, gain), (jacobian_free, lambda alpha_bar: alpha_bar**0.5 * np.eye(3))],
)
def test_each_guided_step_is_algorithm_1_with_the_analytic_gradient(
    prediction_type, steps, clamp, sampler, jacobian_of
):
    w, eta, seed = measurement(batch=2), 0.7, 5
    timesteps = [round(1000 * k / steps) - 1 for k in range(steps, 0, -1)]
    generator = seeds(seed)[0]
    z_t = torch.randn(3, 2, 2, generator=generator).double().numpy().reshape(3, 4)
    given = w[1].numpy().reshape(3, 4)
    prior = GaussianPrior(prediction_type)
    run = sampler(
        problem(w, LinearOperator(), prior),
        spaced(ALPHAS_CUMPROD, steps),
        eta=eta,
        generators=seeds(seed + 1, seed),
        clamp=clamp,
    )
    for index, (t, step) in enumerate(zip(timesteps, run, strict=True)):
        now = float(ALPHAS_CUMPROD[t])
        after = float(ALPHAS_CUMPROD[timesteps[index + 1]]) if index + 1 < steps else 1.0
        alpha, beta = now / after, 1 - now / after
        clean = MU[:, None] + gain(now) @ (z_t - now**0.5 * MU[:, None])
        residual = np.linalg.norm(given - H @ clean)
        gradient = jacobian_of(now).T @ H.T @ (H @ clean - given) / residual
        if clamp is not None:
            gradient = np.clip(gradient, -clamp, clamp)
        mean = alpha**0.5 * (1 - after) / (1 - now) * z_t + after**0.5 * beta / (1 - now) * clean
        noise = torch.randn(3, 2, 2, generator=generator).double().numpy().reshape(3, 4)
        moved = mean + ((1 - after) / (1 - now) * beta) ** 0.5 * noise - eta * gradient

        assert (step.index, step.total, step.t) == (index, steps, t)
        np.testing.assert_allclose(step.clean_estimate[1].numpy().reshape(3, 4), clean, atol=1e-8)
        np.testing.assert_allclose(step.residual[1].item(), residual, atol=1e-8)
        z_t = step.latent[1].numpy().reshape(3, 4)
        np.testing.assert_allclose(z_t, moved, atol=1e-8)
    assert prior.timesteps == timesteps  # one denoiser evaluation a step


@pytest.mark.parametrize("measurements", [1, 3])
@pytest.mark.parametrize("operator", [LinearOperator(), FeatureOperator()])
def test_a_batch_gives_what_its_members_give_alone(measurements, operator):
    w = measurement(measurements, side=4, dtype=torch.float32)
    schedule = spaced(ALPHAS_CUMPROD, 20)
    *_, together = silo(problem(w, operator), schedule, eta=1.0, generators=seeds(1, 2, 3))
    for i, generator in enumerate(seeds(1, 2, 3)):
        own = problem(w[i % measurements, None], operator)
        *_, alone = silo(own, schedule, eta=1.0, generators=[generator])
        torch.testing.assert_close(together.latent[i], alone.latent[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(together.residual[i], alone.residual[0], rtol=0, atol=1e-5)


def test_one_seed_gives_one_picture():
    task = problem(measurement(), LinearOperator())
    schedule = spaced(ALPHAS_CUMPROD, 10)
    *_, first = silo(task, schedule, eta=1.0, generators=seeds(1, 2))
    *_, again = silo(task, schedule, eta=1.0, generators=seeds(1, 2))
    assert torch.equal(first.latent, again.latent)
    assert not torch.allclose(first.latent[0], first.latent[1])


def test_guidance_brings_samples_nearer_to_the_measurement():
    task = problem(measurement(side=8), LinearOperator())
    schedule = spaced(ALPHAS_CUMPROD, 100)
    *_, free = silo(task, schedule, eta=0.0, generators=seeds(1, 2, 3))
    *_, guided = silo(task, schedule, eta=1.0, generators=seeds(1, 2, 3))
    assert (guided.residual < 0.5 * free.residual).all()


def test_clamp_bounds_each_element_of_the_update():
    task = problem(measurement(), LinearOperator())
    schedule = spaced(ALPHAS_CUMPROD, 1)  # one step without noise: z_0 = z0hat - eta * gradient
    (free,) = silo(task, schedule, eta=2.0, generators=seeds(1))
    (held,) = silo(task, schedule, eta=2.0, generators=seeds(1), clamp=0.01)
    moved = (free.latent - free.clean_estimate).abs()
    assert moved.max() > 0.02
    bounded = (held.latent - held.clean_estimate).abs()
    assert bounded.max() == pytest.approx(0.02)
    assert torch.allclose(bounded, moved.clamp(max=0.02))


def test_no_residual_gives_no_guidance_rather_than_nan():
    task = problem(torch.zeros(1, 3, 2, 2), LinearOperator(np.zeros((3, 3))))
    (step,) = silo(task, spaced(ALPHAS_CUMPROD, 1), eta=1.0, generators=seeds(1))
    assert step.residual.item() == 0
    torch.testing.assert_close(step.latent, step.clean_estimate)


def test_an_operator_of_the_latent_alone_asks_the_denoiser_for_no_features():
    prior, operator = GaussianPrior(), LinearOperator()
    mask = torch.ones(1, 1, 16, 16)
    task = problem(measurement(), operator, prior, mask)
    (_,) = silo(task, spaced(ALPHAS_CUMPROD, 1), eta=1.0, generators=seeds(1, 2))
    assert prior.features_asked == [False]
    assert operator.given["features"] is None and operator.given["sigma_embedding"] is None
    assert operator.given["mask"] is mask
    assert operator.given["noise_sigma"].tolist() == pytest.approx([0.01, 0.01])


def test_a_readout_operator_gets_features_and_embeddings_and_the_gradient_passes_through_both():
    prior, operator = GaussianPrior(), FeatureOperator()
    task = problem(measurement(), operator, prior)
    (step,) = silo(task, spaced(ALPHAS_CUMPROD, 1), eta=1.0, generators=seeds(1, 2))
    assert prior.features_asked == [True]
    assert operator.given["time_embedding"].tolist() == [[999.0, 999.0]] * 2
    np.testing.assert_allclose(operator.given["sigma_embedding"].detach(), [[0.01, 0.02]] * 2)

    z = torch.stack([torch.randn(3, 2, 2, generator=g) for g in seeds(1, 2)]).double().numpy()
    jacobian, mu = gain(float(ALPHAS_CUMPROD[999])), MU[:, None, None]
    start = z - float(ALPHAS_CUMPROD[999]) ** 0.5 * mu
    clean = mu + np.einsum("ij,bjhw->bihw", jacobian, start)
    error = np.einsum("ij,bjhw->bihw", H, clean) + 0.1 * np.tanh(z) - measurement().numpy()
    unit = error / np.linalg.norm(error.reshape(2, -1), axis=1).reshape(2, 1, 1, 1)
    through_clean = np.einsum("ji,bjhw->bihw", H @ jacobian, unit)
    through_features = 0.1 * (1 - np.tanh(z) ** 2) * unit
    np.testing.assert_allclose(
        step.latent.numpy(), clean - through_clean - through_features, atol=1e-8
    )


def test_gradient_stays_inside_the_step():
    prior, operator = GaussianPrior(), FeatureOperator()
    with torch.no_grad():
        run = silo(
            problem(measurement(), operator, prior),
            spaced(ALPHAS_CUMPROD, 5),
            eta=1.0,
            generators=seeds(1),
        )
        step = next(run)
        assert not torch.is_grad_enabled()
    next(run)
    assert torch.is_grad_enabled()
    for tensor in (step.latent, step.clean_estimate, step.residual):
        assert not tensor.requires_grad
    assert operator.matrix.grad is None


def test_graph_is_freed_at_each_step_and_everything_when_closed():
    prior = GaussianPrior()
    run = silo(
        problem(measurement(), LinearOperator(), prior),
        spaced(ALPHAS_CUMPROD, 5),
        eta=1.0,
        generators=seeds(1),
    )
    for _ in range(2):
        step = next(run)
        assert prior.outputs[-1]() is None  # the denoiser's output, and with it its graph
    kept = [weakref.ref(step.latent), weakref.ref(step.clean_estimate)]
    run.close()
    del step
    assert [reference() for reference in kept] == [None, None]
    assert len(prior.timesteps) == 2


@pytest.mark.parametrize("sampler", [silo, jacobian_free])
def test_a_missing_operator_is_named(sampler):
    run = sampler(
        problem(measurement(), None), spaced(ALPHAS_CUMPROD, 5), eta=1.0, generators=seeds(1)
    )
    with pytest.raises(BadRequest, match="latent operator"):
        next(run)


def test_without_the_jacobian_nothing_reaches_the_denoiser_whose_features_are_refused():
    prior, schedule = GaussianPrior(), spaced(ALPHAS_CUMPROD, 1)
    reads_latent, reads_features = (
        jacobian_free(
            problem(measurement(), operator, prior), schedule, eta=1.0, generators=seeds(1)
        )
        for operator in (LinearOperator(), FeatureOperator())
    )
    next(reads_latent)
    assert prior.differentiated == [False]
    with pytest.raises(BadRequest, match="reads the latent alone: use silo"):
        next(reads_features)


def test_measurements_that_do_not_match_the_generators_are_refused():
    task = problem(measurement(batch=3), LinearOperator())
    with pytest.raises(RuntimeError, match="expanded size"):
        next(silo(task, spaced(ALPHAS_CUMPROD, 5), eta=1.0, generators=seeds(1)))
