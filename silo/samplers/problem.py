"""What a sampler is given (`Problem`), what it yields (`Step`) and what it needs (`Sampler`)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from silo.errors import BadRequest

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

    def degrade(self, images: Tensor) -> Tensor:
        """A(x) of images (B, 3, H, W), without noise, (B, 3, h, w)."""
        return self.degradation.operator().forward(images, self.mask)

    def decode(self, latents: Tensor) -> Tensor:
        """D(z) of latents (B, C, h, w), not clamped, (B, 3, H, W)."""
        return self.prior.decode(latents, clamp=False)


@dataclass(frozen=True)
class Step:
    """The state after one sampling step of B samples; no tensor carries a gradient.

    Attributes:
        index: 0 for the first step.
        total: the number of steps.
        t: the timestep the denoiser was evaluated at.
        clean_estimate: (B, C, h, w) z0hat at t.
        latent: (B, C, h, w) the sample at the next, cleaner level; after the last step, z_0.
        residual: (B,) what the guidance descends: ||w - H_theta(z0hat)||_2 of each sample, or the
            loss of the sampler's own.
    """

    index: int
    total: int
    t: int
    clean_estimate: Tensor
    latent: Tensor
    residual: Tensor


Hyperparameters = Mapping[str, float | int]


def _no_hyperparameters(task: str, steps: int) -> Hyperparameters:
    return {}


@dataclass(frozen=True)
class Sampler:
    """A posterior sampler and what has to be known before it runs.

    Attributes:
        sample: the sampler itself, a generator function of `Step`s, called as
            sample(problem, schedule, generators=generators, NAME=VALUE, ...) with

            problem: what to restore, a `Problem`.
            schedule: the noise levels to visit, a `Schedule`.
            generators: one CPU generator a sample, from which all of its noise comes, so that a
                sample is the same in a batch as alone; there are as many samples.

            and its hyper-parameters. Those of a sampler with a latent operator are

            eta: the consistency scale: the larger, the closer to the measurement.
            clamp: bound on each element of the guidance gradient, before eta; None, as in the
                papers, for no bound.
        needs_operator: whether a latent operator guides it; if not, none is loaded.
        differentiates: whether it takes gradients through the denoiser.
        linear_only: whether it is defined for linear degradations only.
        steps: the number of steps it was published with.
        eta: its consistency scale for every task and number of steps; None for the operator's or
            the task's, which are Algorithm 1's.
        published: the hyper-parameters of a sampler without a latent operator, by name, for a task
            and a number of steps: the published ones, adapted to that number where they need be.
    """

    sample: Callable[..., Generator[Step, None, None]]
    needs_operator: bool = False
    differentiates: bool = True
    linear_only: bool = False
    steps: int = 1000
    eta: float | None = None
    published: Callable[[str, int], Hyperparameters] = _no_hyperparameters


def standard_normal(generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Standard normal noise (B, *like.shape[1:]), sample i from generators[i], placed as `like`.

    Drawn in float32 on the CPU, so that one seed gives one picture whatever the device.
    """
    shape = like.shape[1:]
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    if like.device.type != "cuda":
        return noise.to(like)
    return noise.pin_memory().to(like, non_blocking=True)  # lest every step wait for the GPU
