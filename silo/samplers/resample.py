"""ReSample: latent DPS with hard data consistency every few steps (arXiv 2307.08123)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from silo.samplers.guidance import distance, guidance
from silo.samplers.problem import Problem, Sampler, Step, standard_normal
from silo.schedule import Schedule, ddim, posterior_variance, to_clean, to_epsilon

if TYPE_CHECKING:
    from silo.prior import Prediction

PUBLISHED_STEPS = 500
TRAVEL = 5  # denoiser evaluations of a time travel
PIXEL_LR, LATENT_LR = 1e-2, 5e-3
TOLERANCE = 1e-6  # mean square of y - A(x) at which an optimisation is done


def resample(
    problem: Problem,
    schedule: Schedule,
    *,
    generators: Sequence[torch.Generator],
    zeta: float,
    gamma: float,
    interval: int,
    pixel_iterations: int,
    latent_iterations: int,
) -> Generator[Step, None, None]:
    """DPS with the loss ||A(D(z0hat)) - y||_2 in steps of zeta abar_t, and resampling.

    In the last two thirds, every `interval`th step is followed by a few without guidance. Their
    clean estimate is made consistent with y, in pixels and encoded, or in the last third of the
    steps as a latent; then it is noised back to the level of the step. At the end, the latent is
    made consistent once more. For the other arguments see `Sampler`; `gamma` is the scale of the
    variance that the noise is given, `zeta` half in the paper.
    """
    levels = list(schedule)
    third = len(levels) // 3
    z = standard_normal(generators, problem.measurement_latent)

    def loss(clean: Tensor, prediction: Prediction) -> Tensor:
        return distance(problem.degrade(problem.decode(clean)), problem.measurement)

    for index, (t, alpha_bar, alpha_bar_prev) in enumerate(levels):
        clean, epsilon, losses, gradient = guidance(problem, z, t, alpha_bar, loss)
        z = ddim(clean, epsilon, alpha_bar_prev) - zeta * alpha_bar * gradient
        left = len(levels) - 1 - index
        if left == 0:
            z = _consistent(problem, z, problem.decode, LATENT_LR, latent_iterations)
        elif left <= len(levels) - third and left % interval == 0:
            clean = _travel(problem, z, levels[index + 1 : index + 1 + TRAVEL])
            if left >= third:
                image = problem.decode(clean)
                image = _consistent(problem, image, lambda x: x, PIXEL_LR, pixel_iterations)
                clean = problem.prior.encode(image)
            else:
                clean = _consistent(problem, clean, problem.decode, LATENT_LR, latent_iterations)
            variance = gamma * posterior_variance(alpha_bar, alpha_bar_prev)
            z = _noised_back(clean, z, variance, alpha_bar_prev, generators)
        yield Step(index, len(levels), t, clean, z, losses)


@torch.no_grad()
def _travel(problem: Problem, z: Tensor, levels: Sequence[tuple[int, float, float]]) -> Tensor:
    """The clean estimate after some steps of DDIM without guidance."""
    prediction_type = problem.prior.prediction_type
    clean = z
    for t, alpha_bar, alpha_bar_prev in levels:
        output = problem.predict(z, t).output
        clean = to_clean(z, output, alpha_bar, prediction_type)
        z = ddim(clean, to_epsilon(z, output, alpha_bar, prediction_type), alpha_bar_prev)
    return clean


def _consistent(
    problem: Problem,
    start: Tensor,
    render: Callable[[Tensor], Tensor],
    lr: float,
    iterations: int,
) -> Tensor:
    """Minimises the mean square of y - A(render(v)) from v = start on, each sample for itself."""
    v = start.detach().clone().requires_grad_()
    optimizer = torch.optim.AdamW([v], lr=lr)
    for _ in range(iterations):
        with torch.enable_grad():
            error = problem.measurement - problem.degrade(render(v))
            losses = error.square().mean(dim=(1, 2, 3))
            (v.grad,) = torch.autograd.grad(losses.sum(), v)
        pending = (losses >= TOLERANCE)[:, None, None, None]
        if not pending.any():
            break
        before = v.detach().clone()
        optimizer.step()
        with torch.no_grad():
            v.copy_(torch.where(pending, v, before))
    return v.detach()


def _noised_back(
    clean: Tensor,
    z: Tensor,
    variance: float,
    alpha_bar: float,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Samples z at abar given the consistent z_0, N(sqrt(abar) clean, variance), and what it was.

    The product of that Gaussian and N(z, 1 - abar): the paper's stochastic resampling.
    """
    total = variance + 1 - alpha_bar
    mean = (variance * alpha_bar**0.5 * clean + (1 - alpha_bar) * z) / total
    std = (variance * (1 - alpha_bar) / total) ** 0.5
    return mean + std * standard_normal(generators, z)


def _published(task: str, steps: int) -> dict[str, float | int]:
    """As SILO's eta, the DPS scale grows with 1 / steps, so that it adds up to the same."""
    return {
        "zeta": 0.5 * PUBLISHED_STEPS / steps,
        "gamma": 40.0,
        "interval": 10,
        "pixel_iterations": 2000,
        "latent_iterations": 500,
    }


RESAMPLE = Sampler(resample, steps=PUBLISHED_STEPS, published=_published)
