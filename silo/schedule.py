"""The diffusion schedule: respaced timesteps, what a prediction stands for, and the DDPM posterior.

Notation: z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps, abar being the cumulative product of alpha.
Timesteps may be skipped: for a step t -> s, alpha = abar_t / abar_s and beta = 1 - alpha. Where a
function takes abar: a float, or a tensor of the latents' dtype that broadcasts against them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from silo.errors import BadRequest, PriorFileError

Level = TypeVar("Level", float, Tensor)


@dataclass(frozen=True)
class Schedule:
    """The noise levels that a sampler visits, from the noisiest to the cleanest.

    Attributes:
        timesteps: (N,) int64, strictly descending indices into the prior's training table.
        alpha_bar: (N,) float64, abar at each timestep.
        alpha_bar_prev: (N,) float64, abar each step leads to; the last is 1, the clean latent.
    """

    timesteps: Tensor
    alpha_bar: Tensor
    alpha_bar_prev: Tensor

    def __len__(self) -> int:
        """The number of steps, which is the number of denoiser evaluations of most samplers."""
        return len(self.timesteps)

    def __iter__(self) -> Iterator[tuple[int, float, float]]:
        """Yields (t, abar_t, abar of the next level), noisiest first."""
        return zip(
            self.timesteps.tolist(),
            self.alpha_bar.tolist(),
            self.alpha_bar_prev.tolist(),
            strict=True,
        )


def spaced(alphas_cumprod: Tensor, steps: int) -> Schedule:
    """Spreads `steps` timesteps over the training table, always starting from its noisiest level.

    "Trailing" spacing (arXiv 2305.08891, table 2): t_k = round(T k / steps) - 1 for k = steps..1,
    T being the table's length; in integers, so that no index repeats or leaves the table.

    Args:
        alphas_cumprod: (T,) abar of the prior's training schedule, index 0 the least noisy.
        steps: from 1 to T.

    Returns:
        The schedule, on the CPU and in float64.

    Raises:
        BadRequest: `steps` is outside 1..T.
    """
    table = alphas_cumprod.to("cpu", torch.float64)
    if not 1 <= steps <= len(table):
        raise BadRequest(f"{steps} steps are not possible: ask for between 1 and {len(table)}.")
    k = torch.arange(steps, 0, -1)
    timesteps = (2 * len(table) * k + steps) // (2 * steps) - 1
    alpha_bar = table[timesteps]
    return Schedule(timesteps, alpha_bar, torch.cat([alpha_bar[1:], alpha_bar.new_ones(1)]))


def noised(clean: Tensor, noise: Tensor, alpha_bar: float | Tensor) -> Tensor:
    """A sample of q(z_t | z_0 = clean): sqrt(abar) clean + sqrt(1 - abar) noise."""
    return alpha_bar**0.5 * clean + (1 - alpha_bar) ** 0.5 * noise


def to_clean(
    z_t: Tensor, prediction: Tensor, alpha_bar: float | Tensor, prediction_type: str
) -> Tensor:
    """The clean estimate z0hat that a denoiser's output stands for, of z_t's shape.

    "epsilon": (z_t - sqrt(1 - abar) eps) / sqrt(abar), undefined at abar = 0 (zero terminal SNR).
    "v_prediction": sqrt(abar) z_t - sqrt(1 - abar) v, where v = sqrt(abar) eps - sqrt(1 - abar) z_0
    (arXiv 2202.00512).

    Raises:
        PriorFileError: `prediction_type` is neither of the two.
    """
    if prediction_type == "epsilon":
        return (z_t - (1 - alpha_bar) ** 0.5 * prediction) / alpha_bar**0.5
    if prediction_type == "v_prediction":
        return alpha_bar**0.5 * z_t - (1 - alpha_bar) ** 0.5 * prediction
    raise _unknown(prediction_type)


def to_epsilon(
    z_t: Tensor, prediction: Tensor, alpha_bar: float | Tensor, prediction_type: str
) -> Tensor:
    """The noise estimate epshat that a denoiser's output stands for, of z_t's shape; as `to_clean`.

    Raises:
        PriorFileError: `prediction_type` is neither "epsilon" nor "v_prediction".
    """
    if prediction_type == "epsilon":
        return prediction
    if prediction_type == "v_prediction":
        return alpha_bar**0.5 * prediction + (1 - alpha_bar) ** 0.5 * z_t
    raise _unknown(prediction_type)


def posterior_mean(
    z_t: Tensor, clean: Tensor, alpha_bar: float | Tensor, alpha_bar_prev: float | Tensor
) -> Tensor:
    """The mean of q(z_s | z_t, z_0 = clean) for a step t -> s (arXiv 2006.11239, eq. 7, respaced).

    sqrt(alpha) (1 - abar_s) / (1 - abar_t) z_t + sqrt(abar_s) beta / (1 - abar_t) clean; this is
    `clean` itself at the last step, where abar_s = 1.
    """
    alpha = alpha_bar / alpha_bar_prev
    noisy_weight = alpha**0.5 * (1 - alpha_bar_prev) / (1 - alpha_bar)
    clean_weight = alpha_bar_prev**0.5 * (1 - alpha) / (1 - alpha_bar)
    return noisy_weight * z_t + clean_weight * clean


def posterior_variance(alpha_bar: Level, alpha_bar_prev: Level) -> Level:
    """The variance of q(z_s | z_t, z_0) for a step t -> s: (1 - abar_s) / (1 - abar_t) beta.

    Diffusers' "fixed_small"; 0 at the last step. It leaves out how uncertain z_0 is given z_t, so
    that few steps give samples that vary too little.
    """
    return (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)


def ddim(clean: Tensor, epsilon: Tensor, alpha_bar_prev: float | Tensor) -> Tensor:
    """The next latent of a deterministic DDIM step (arXiv 2010.02502, eq. 12 with sigma = 0).

    sqrt(abar_s) clean + sqrt(1 - abar_s) epsilon; this is `clean` itself at the last step.
    """
    return alpha_bar_prev**0.5 * clean + (1 - alpha_bar_prev) ** 0.5 * epsilon


def _unknown(prediction_type: str) -> PriorFileError:
    return PriorFileError(
        f"this prior predicts {prediction_type!r}: use one of 'epsilon' or 'v_prediction'."
    )
