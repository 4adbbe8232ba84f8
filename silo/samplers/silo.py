"""SILO: sampling guided by a learned operator in latent space (arXiv 2501.11746, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm

from silo.samplers.problem import Problem, Step, standard_normal
from silo.schedule import Schedule, posterior_mean, posterior_variance, to_clean


def silo(
    problem: Problem,
    schedule: Schedule,
    *,
    eta: float,
    generators: Sequence[torch.Generator],
    clamp: float | None = None,
) -> Generator[Step, None, None]:
    """Algorithm 1: per step, one denoiser evaluation and one gradient through it; no autoencoder.

    For the arguments see `Sampler`. Published: 1000 steps, eta 0.5 (1 for inpainting); with fewer
    steps eta has to grow. The authors' code uses clamp = 1, which the paper does not mention.

    Raises:
        BadRequest: the problem has no latent operator.
    """
    z = standard_normal(generators, problem.measurement_latent)
    for index, (t, alpha_bar, alpha_bar_prev) in enumerate(schedule):
        clean, residual, gradient = _guidance(problem, z, t, alpha_bar)
        if clamp is not None:
            gradient = gradient.clamp(-clamp, clamp)
        mean = posterior_mean(z, clean, alpha_bar, alpha_bar_prev)
        std = posterior_variance(alpha_bar, alpha_bar_prev) ** 0.5  # 0 at the last step
        z = mean + std * standard_normal(generators, z) - eta * gradient
        yield Step(index, len(schedule), t, clean, z, residual)


def _guidance(
    problem: Problem, z: Tensor, t: int, alpha_bar: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns z0hat, the norms (B,) ||w - H_theta(z0hat)||_2, and the norms' gradient in z_t.

    A function of its own so that nothing that holds the denoiser's graph outlives the call.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        prediction = problem.predict(z, t)
        clean = to_clean(z, prediction.output, alpha_bar, problem.prior.prediction_type)
        w = problem.measurement_latent.expand_as(z)
        error = w - problem.predict_measurement(clean, prediction)
        residual = vector_norm(error, dim=(1, 2, 3))  # of each sample; its subgradient at 0 is 0
        (gradient,) = torch.autograd.grad(residual.sum(), z)
    return clean.detach(), residual.detach(), gradient
