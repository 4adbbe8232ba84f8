"""What the samplers guided in pixel space share: a DDIM step, then one down a loss's gradient."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm

from silo.samplers.problem import Problem, Step, standard_normal
from silo.schedule import Schedule, ddim, to_clean, to_epsilon

PSLD_STEPS = 1000  # what its omega and gamma are for

Loss = Callable[[Tensor], Tensor]


def diffusion_posterior_sampling(
    problem: Problem,
    schedule: Schedule,
    *,
    generators: Sequence[torch.Generator],
    loss: Loss,
) -> Generator[Step, None, None]:
    """DPS (arXiv 2209.14687) on latents: z_s = DDIM(z_t) - grad_{z_t} loss(z0hat(z_t)).

    Args:
        problem: as in `Sampler`.
        schedule: as in `Sampler`.
        generators: as in `Sampler`; only the start is drawn from them.
        loss: of each of the clean estimates (B, C, h, w), (B,); its gradient is the step.
    """
    z = standard_normal(generators, problem.measurement_latent)
    for index, (t, alpha_bar, alpha_bar_prev) in enumerate(schedule):
        clean, epsilon, losses, gradient = guidance(problem, z, t, alpha_bar, loss)
        z = ddim(clean, epsilon, alpha_bar_prev) - gradient
        yield Step(index, len(schedule), t, clean, z, losses)


def guidance(
    problem: Problem, z: Tensor, t: int, alpha_bar: float, loss: Loss
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns z0hat, epshat, the losses (B,) of z0hat, and their gradient in z_t.

    A function of its own so that nothing that holds the networks' graphs outlives the call.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        prediction = problem.predict(z, t)
        prediction_type = problem.prior.prediction_type
        clean = to_clean(z, prediction.output, alpha_bar, prediction_type)
        losses = loss(clean)
        (gradient,) = torch.autograd.grad(losses.sum(), z)
        epsilon = to_epsilon(z, prediction.output, alpha_bar, prediction_type)
    return clean.detach(), epsilon.detach(), losses.detach(), gradient


def distance(a: Tensor, b: Tensor) -> Tensor:
    """||a - b||_2 of each sample of two tensors (1 or B, C, H, W): (B,)."""
    return vector_norm(a - b, dim=(1, 2, 3))


def psld_scales(task: str, steps: int) -> dict[str, float]:
    """PSLD's omega and gamma, which the SILO paper gives LDPS and GML-DPS, too.

    As SILO's eta, they grow with 1 / steps, so that the guidance adds up to the same.
    """
    omega, gamma = (0.1, 0.01) if task == "inpainting_box" else (1.0, 0.1)
    return {"omega": omega * PSLD_STEPS / steps, "gamma": gamma * PSLD_STEPS / steps}
