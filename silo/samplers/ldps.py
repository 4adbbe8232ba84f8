"""LDPS: diffusion posterior sampling through the decoder (arXiv 2307.00619, section 3.1)."""

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


def ldps(
    problem: Problem,
    schedule: Schedule,
    *,
    generators: Sequence[torch.Generator],
    omega: float,
) -> Generator[Step, None, None]:
    """DPS with the loss omega ||A(D(z0hat)) - y||_2; for the arguments see `Sampler`.

    Per step: one denoiser evaluation and one decoding, and the gradient through both.
    """

    def loss(clean: Tensor, prediction: Prediction) -> Tensor:
        return omega * distance(problem.degrade(problem.decode(clean)), problem.measurement)

    return diffusion_posterior_sampling(problem, schedule, generators=generators, loss=loss)


def _published(task: str, steps: int) -> dict[str, float]:
    return {"omega": psld_scales(task, steps)["omega"]}


LDPS = Sampler(ldps, published=_published)
