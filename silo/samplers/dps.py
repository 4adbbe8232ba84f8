"""What LDPS, GML-DPS and PSLD share: each DDIM step is followed by one down a loss's gradient."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import torch

from silo.samplers.guidance import guidance
from silo.samplers.problem import Problem, Step, standard_normal
from silo.schedule import Schedule, ddim

if TYPE_CHECKING:
    from silo.samplers.guidance import Loss

PSLD_STEPS = 1000  # what its omega and gamma are for


def diffusion_posterior_sampling(
    problem: Problem,
    schedule: Schedule,
    *,
    generators: Sequence[torch.Generator],
    loss: Loss,
) -> Generator[Step, None, None]:
    """DPS (arXiv 2209.14687) on latents: z_s = DDIM(z_t) - grad_{z_t} loss(z0hat(z_t)).

    For the arguments see `Sampler`; only the start is random.
    """
    z = standard_normal(generators, problem.measurement_latent)
    for index, (t, alpha_bar, alpha_bar_prev) in enumerate(schedule):
        clean, epsilon, losses, gradient = guidance(problem, z, t, alpha_bar, loss)
        z = ddim(clean, epsilon, alpha_bar_prev) - gradient
        yield Step(index, len(schedule), t, clean, z, losses)


def psld_scales(task: str, steps: int) -> dict[str, float]:
    """PSLD's omega and gamma, which the SILO paper gives LDPS and GML-DPS, too.

    As SILO's eta, they grow with 1 / steps, so that the guidance adds up to the same.
    """
    omega, gamma = (0.1, 0.01) if task == "inpainting_box" else (1.0, 0.1)
    return {"omega": omega * PSLD_STEPS / steps, "gamma": gamma * PSLD_STEPS / steps}
