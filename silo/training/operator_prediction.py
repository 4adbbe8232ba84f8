"""H_theta's prediction in training, for operators with and without features of the denoiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from operators.latent import LatentOperator
from silo.prior import LatentPrior, PromptEmbedding
from silo.schedule import noised, to_clean
from silo.training.latent_cache import LatentPairs


class Predicted(NamedTuple):
    """What H_theta was given, z, and what it made of it, both (B, C, h, w)."""

    given: Tensor
    measured: Tensor


@dataclass(frozen=True)
class Noising:
    """What the denoiser is given, to read its features: (B,) timesteps and (B, C, h, w) noise."""

    timesteps: Tensor
    noise: Tensor


def draw_noising(
    operator: LatentOperator,
    prior: LatentPrior,
    batch: int,
    side: int,
    generator: torch.Generator,
    *,
    power: float,
) -> Noising | None:
    """A timestep from 1 to T - 1 and noise for each sample; None for operators without features.

    Args:
        operator: H_theta.
        prior: whose denoiser it may read.
        batch: the number of samples.
        side: of their pictures, in pixels.
        generator: what draws them.
        power: `OperatorTraining.timestep_power`.
    """
    if not operator.needs_features:
        return None
    size = side // prior.scale_factor
    uniform = torch.rand(batch, generator=generator)
    timesteps = (1 + (len(prior.alphas_cumprod) - 1) * uniform**power).long()
    noise = torch.randn(batch, prior.latent_channels, size, size, generator=generator)
    return Noising(timesteps, noise)


def predict(
    operator: LatentOperator,
    prior: LatentPrior,
    prompt: PromptEmbedding,
    pairs: LatentPairs,
    noising: Noising | None,
    share: slice,
) -> Predicted:
    """H_theta's prediction of the measured latents, on the prior's device.

    An operator without features is given the clean latents; one with features the clean estimate
    that belongs to them, which is all that there is in sampling.

    Args:
        operator: H_theta.
        prior: whose denoiser it may read.
        prompt: the empty one.
        pairs: the samples, on the prior's device.
        noising: for the whole batch; None for an operator without features.
        share: which of the batch `pairs` are.
    """
    z, features, time_embedding = pairs.clean, None, None
    if noising is not None:
        timesteps = noising.timesteps[share]
        alpha_bar = prior.alphas_cumprod[timesteps].float().view(-1, 1, 1, 1).to(prior.device)
        noisy = noised(z, noising.noise[share].to(prior.device), alpha_bar)
        with torch.no_grad():
            prediction = prior.predict(noisy, timesteps.to(prior.device), prompt, features=True)
        z = to_clean(noisy, prediction.output, alpha_bar, prior.prediction_type)
        features, time_embedding = prediction.features, prediction.time_embedding
    with_embedding = operator.needs_sigma_embedding
    measured = operator(
        z,
        pairs.noise_sigma,
        mask=pairs.mask,
        features=features,
        time_embedding=time_embedding,
        sigma_embedding=prior.sigma_embedding(pairs.noise_sigma) if with_embedding else None,
    )
    return Predicted(z, measured)
