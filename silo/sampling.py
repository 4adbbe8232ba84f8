"""Draws pictures from a prior alone, without a measurement: deterministic DDIM sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from silo.prior import LatentPrior, PromptEmbedding
from silo.samplers.problem import standard_normal
from silo.schedule import ddim, spaced, to_clean, to_epsilon


@torch.no_grad()
def draw(
    prior: LatentPrior, prompt: PromptEmbedding, steps: int, generators: Sequence[torch.Generator]
) -> Tensor:
    """Pictures (B, 3, S, S) in [-1, 1] of the prior's native size S, one for each generator.

    Raises:
        BadRequest: the prior's training table has no so many steps.
    """
    side = prior.native_size // prior.scale_factor
    like = torch.empty(1, prior.latent_channels, side, side, device=prior.device)
    z = standard_normal(generators, like)
    for t, alpha_bar, alpha_bar_prev in spaced(prior.alphas_cumprod, steps):
        output = prior.predict(z, t, prompt).output
        clean = to_clean(z, output, alpha_bar, prior.prediction_type)
        epsilon = to_epsilon(z, output, alpha_bar, prior.prediction_type)
        z = ddim(clean, epsilon, alpha_bar_prev)
    return prior.decode(z)
