"""The clean estimate of a noisy latent, and the gradient of a loss of it through the denoiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from silo.errors import BadRequest
from silo.samplers.problem import Problem
from silo.schedule import to_clean, to_epsilon

if TYPE_CHECKING:
    from silo.prior import Prediction

    # Of clean estimates (B, C, h, w) and the denoiser evaluation they came from: (B,).
    Loss = Callable[[Tensor, Prediction], Tensor]


class Guidance(NamedTuple):
    """What one differentiated denoiser evaluation tells; no tensor carries a gradient.

    Attributes:
        clean: (B, C, h, w) z0hat.
        epsilon: (B, C, h, w) epshat.
        losses: (B,) the loss of each sample.
        gradient: (B, C, h, w) of each sample's loss in its z_t.
    """

    clean: Tensor
    epsilon: Tensor
    losses: Tensor
    gradient: Tensor


def guidance(problem: Problem, z: Tensor, t: int, alpha_bar: float, loss: Loss) -> Guidance:
    """Evaluates the denoiser once at z_t, (B, C, h, w), and differentiates the loss of z0hat.

    A function of its own so that nothing that holds the networks' graphs outlives the call.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        prediction = problem.predict(z, t)
        prediction_type = problem.prior.prediction_type
        clean = to_clean(z, prediction.output, alpha_bar, prediction_type)
        losses = loss(clean, prediction)
        (gradient,) = torch.autograd.grad(losses.sum(), z)
    epsilon = to_epsilon(z.detach(), prediction.output.detach(), alpha_bar, prediction_type)
    return Guidance(clean.detach(), epsilon, losses.detach(), gradient)


def jacobian_free(problem: Problem, z: Tensor, t: int, alpha_bar: float, loss: Loss) -> Guidance:
    """As `guidance`, but nothing is differentiated but the loss itself: an approximation.

    For the Jacobian of z0hat in z_t it takes sqrt(abar) times the identity, which is that of a
    prior N(0, I). Of what the true Jacobian does, it lacks the projection onto likely pictures.

    Raises:
        BadRequest: the operator reads the denoiser's features, through which nothing would pass.
    """
    if problem.operator is not None and problem.operator.needs_features:
        raise BadRequest(
            "silo-jacobian-free needs an operator that reads the latent alone: use silo."
        )
    with torch.no_grad():
        prediction = problem.predict(z, t)
    prediction_type = problem.prior.prediction_type
    with torch.enable_grad():
        clean = to_clean(z, prediction.output, alpha_bar, prediction_type).requires_grad_()
        losses = loss(clean, prediction)
        (gradient,) = torch.autograd.grad(losses.sum(), clean)
    epsilon = to_epsilon(z, prediction.output, alpha_bar, prediction_type)
    return Guidance(clean.detach(), epsilon, losses.detach(), alpha_bar**0.5 * gradient)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """||a - b||_2 of each sample of tensors (1 or B, C, H, W): (B,); its subgradient at 0 is 0."""
    return vector_norm(a - b, dim=(1, 2, 3))
