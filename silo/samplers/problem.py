"""What a sampler is given (`Problem`), what it yields (`Step`) and how it is called (`Sampler`)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from silo.errors import BadRequest
from silo.schedule import Schedule

if TYPE_CHECKING:  # the prior imports diffusers, which takes seconds and is not needed here
    from operators.degradation import Degradation
    from operators.latent import LatentOperator
    from silo.prior import LatentPrior, Prediction, PromptEmbedding


@dataclass(frozen=True)
class Problem:
    """One measurement to restore, with the prior and the models of how it came about.

    Attributes:
        prior: the latent diffusion prior.
        operator: H_theta, for the samplers that guide in latent space; the others need none.
        degradation: A and its noise, for the samplers that guide in pixel space.
        measurement: y, (1 or B, 3, h, w) in [-1, 1], B being the number of samples asked for.
        measurement_latent: w = E(y), (1 or B, C, h, w); samplers work on its device, in its dtype.
        mask: (1 or B, 1, H, W) in pixels, 1 = known, 0 = hole; None when the degradation has none.
        noise_sigma: std of the measurement's noise in [0, 1] units.
        prompt: the text condition, with its guidance scale.
    """

    prior: LatentPrior
    operator: LatentOperator | None
    degradation: Degradation
    measurement: Tensor
    measurement_latent: Tensor
    mask: Tensor | None
    noise_sigma: float
    prompt: PromptEmbedding

    def predict(self, latents: Tensor, t: int) -> Prediction:
        """One denoiser evaluation of latents (B, C, h, w), with features if H_theta reads them."""
        features = self.operator is not None and self.operator.needs_features
        return self.prior.predict(latents, t, self.prompt, features=features)

    def predict_measurement(self, clean: Tensor, prediction: Prediction) -> Tensor:
        """H_theta's guess of the measurement latent, (B, C, h, w).

        Args:
            clean: (B, C, h, w) the clean estimate z0hat.
            prediction: the denoiser evaluation z0hat came from, whose features H_theta may read.

        Raises:
            BadRequest: the problem has no latent operator.
        """
        if self.operator is None:
            raise BadRequest("this sampler needs a latent operator: train or name one.")
        noise_sigma = clean.new_full((len(clean),), self.noise_sigma)
        with_embedding = self.operator.needs_sigma_embedding
        return self.operator(
            clean,
            noise_sigma,
            mask=self.mask,
            features=prediction.features,
            time_embedding=prediction.time_embedding,
            sigma_embedding=self.prior.sigma_embedding(noise_sigma) if with_embedding else None,
        )


@dataclass(frozen=True)
class Step:
    """The state after one sampling step of B samples; no tensor carries a gradient.

    Attributes:
        index: 0 for the first step.
        total: the number of steps.
        t: the timestep the denoiser was evaluated at.
        clean_estimate: (B, C, h, w) z0hat at t.
        latent: (B, C, h, w) the sample at the next, cleaner level; after the last step, z_0.
        residual: (B,) ||w - H_theta(z0hat)||_2 of each sample, or the sampler's own misfit.
    """

    index: int
    total: int
    t: int
    clean_estimate: Tensor
    latent: Tensor
    residual: Tensor


class Sampler(Protocol):
    """A posterior sampler: a generator function of `Step`s."""

    def __call__(
        self,
        problem: Problem,
        schedule: Schedule,
        *,
        eta: float,
        generators: Sequence[torch.Generator],
        clamp: float | None = None,
    ) -> Generator[Step, None, None]:
        """Samples len(generators) restorations of one measurement side by side.

        Args:
            problem: what to restore.
            schedule: the noise levels to visit.
            eta: the consistency scale: how far each step goes along the guidance gradient.
            generators: one CPU generator a sample, from which all of its noise comes, so that a
                sample is the same in a batch as alone.
            clamp: bound on each element of the guidance gradient, before eta; None, as in the
                papers, for no bound.
        """
        ...


def standard_normal(generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Standard normal noise (B, *like.shape[1:]), sample i from generators[i], placed as `like`.

    Drawn in float32 on the CPU, so that one seed gives one picture whatever the device.
    """
    noise = [torch.randn(like.shape[1:], generator=generator) for generator in generators]
    return torch.stack(noise).to(like)
