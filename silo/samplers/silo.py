"""SILO: sampling guided by a learned operator in latent space (arXiv 2501.11746, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from silo.samplers.guidance import Guidance, distance, guidance, jacobian_free
from silo.samplers.problem import Problem, Sampler, Step, standard_normal
from silo.schedule import Schedule, posterior_mean, posterior_variance

if TYPE_CHECKING:
    from silo.prior import Prediction


def silo(
    problem: Problem,
    schedule: Schedule,
    *,
    eta: float,
    generators: Sequence[torch.Generator],
    clamp: float | None = None,
    guide: Callable[..., Guidance] = guidance,
) -> Generator[Step, None, None]:
    """Algorithm 1: per step, one denoiser evaluation and one gradient through it; no autoencoder.

    For the arguments see `Sampler`. Published: 1000 steps, eta 0.5 (1 for inpainting); with fewer
    steps eta has to grow. The authors' code uses clamp = 1, which the paper does not mention.
    `guide` finds the gradient: exactly (`guidance`), or nearly (`jacobian_free`).

    Raises:
        BadRequest: the problem has no latent operator.
    """
    z = standard_normal(generators, problem.measurement_latent)
    w = problem.measurement_latent.expand_as(z)

    def loss(clean: Tensor, prediction: Prediction) -> Tensor:
        return distance(problem.predict_measurement(clean, prediction), w)

    for index, (t, alpha_bar, alpha_bar_prev) in enumerate(schedule):
        clean, _, residual, gradient = guide(problem, z, t, alpha_bar, loss)
        if clamp is not None:
            gradient = gradient.clamp(-clamp, clamp)
        mean = posterior_mean(z, clean, alpha_bar, alpha_bar_prev)
        std = posterior_variance(alpha_bar, alpha_bar_prev) ** 0.5  # 0 at the last step
        z = mean + std * standard_normal(generators, z) - eta * gradient
        yield Step(index, len(schedule), t, clean, z, residual)


SILO = Sampler(silo, needs_operator=True)
SILO_JACOBIAN_FREE = Sampler(
    partial(silo, guide=jacobian_free), needs_operator=True, differentiates=False
)
