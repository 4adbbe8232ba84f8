"""PSLD: posterior sampling with latent diffusion, "gluing" (arXiv 2307.00619, algorithm 2)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from silo.samplers.dps import diffusion_posterior_sampling, psld_scales
from silo.samplers.guidance import distance
from silo.samplers.problem import Problem, Sampler, Step
from silo.schedule import Schedule

if TYPE_CHECKING:
    from silo.prior import Prediction


def psld(
    problem: Problem,
    schedule: Schedule,
    *,
    generators: Sequence[torch.Generator],
    omega: float,
    gamma: float,
) -> Generator[Step, None, None]:
    """DPS with a linear A, whose loss also glues what is measured to the rest of the picture.

    With x = D(z0hat) it is omega ||A(x) - y||_2 + gamma ||E(A^T y + (I - A^T A) x) - z0hat||_2.
    For the arguments see `Sampler`. Per step: one denoiser evaluation, one decoding and one
    encoding, and the gradient through all three. The authors' code also evaluates the denoiser on
    the same prompt twice and pastes the clean picture outside of a hole; this does neither.
    """

    def loss(clean: Tensor, prediction: Prediction) -> Tensor:
        image = problem.decode(clean)
        measured = problem.degrade(image)
        misfit = distance(measured, problem.measurement)
        downscale = problem.degradation.operator().downscale
        glued = image + _transpose(problem.measurement - measured, downscale)
        return omega * misfit + gamma * distance(problem.prior.encode(glued), clean)

    return diffusion_posterior_sampling(problem, schedule, generators=generators, loss=loss)


def _transpose(error: Tensor, downscale: int) -> Tensor:
    """The authors' A^T, no adjoint: the nearest pixel for super-resolution, else the identity."""
    return F.interpolate(error, scale_factor=float(downscale), mode="nearest")


PSLD = Sampler(psld, linear_only=True, published=psld_scales)
