"""GML-DPS: LDPS that keeps to latents which decoding and encoding returns (arXiv 2307.00619)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from silo.samplers.dps import diffusion_posterior_sampling, psld_scales
from silo.samplers.guidance import distance
from silo.samplers.problem import Problem, Sampler, Step
from silo.schedule import Schedule

if TYPE_CHECKING:
    from silo.prior import Prediction


def gml_dps(
    problem: Problem,
    schedule: Schedule,
    *,
    generators: Sequence[torch.Generator],
    omega: float,
    gamma: float,
) -> Generator[Step, None, None]:
    """DPS with the loss omega ||A(x) - y||_2 + gamma ||E(x) - z0hat||_2, where x = D(z0hat).

    For the arguments see `Sampler`. Per step: one denoiser evaluation, one decoding and one
    encoding, and the gradient through all three.
    """

    def loss(clean: Tensor, prediction: Prediction) -> Tensor:
        image = problem.decode(clean)
        misfit = distance(problem.degrade(image), problem.measurement)
        return omega * misfit + gamma * distance(problem.prior.encode(image), clean)

    return diffusion_posterior_sampling(problem, schedule, generators=generators, loss=loss)


GML_DPS = Sampler(gml_dps, published=psld_scales)
