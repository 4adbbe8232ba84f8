"""A linear-Gaussian world, where denoiser and posterior are known; what its samplers are given."""

import weakref
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from silo.samplers import Problem

ALPHAS_CUMPROD = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
MU = np.array([0.8, -0.5, 0.2])
SIGMA = np.array([[1.0, 0.5, 0.1], [0.5, 0.8, -0.2], [0.1, -0.2, 0.5]])


def gain(alpha_bar: float) -> np.ndarray:
    """J = d z0hat / d z_t of the exact denoiser of z_0 ~ N(MU, SIGMA); symmetric."""
    noisy = alpha_bar * SIGMA + (1 - alpha_bar) * np.eye(3)
    return alpha_bar**0.5 * SIGMA @ np.linalg.inv(noisy)


def over_channels(matrix: np.ndarray, z: torch.Tensor) -> torch.Tensor:
    return torch.einsum("ij,bjhw->bihw", torch.from_numpy(matrix).to(z), z)


class GaussianPrior:
    """Every pixel's three channels are an independent draw of N(MU, SIGMA); denoised exactly."""

    def __init__(self, prediction_type: str = "epsilon"):
        self.prediction_type = prediction_type
        self.timesteps: list[int] = []
        self.features_asked: list[bool] = []
        self.differentiated: list[bool] = []
        self.outputs: list[weakref.ref[torch.Tensor]] = []

    def predict(self, latents, t, prompt, *, features=False):
        alpha_bar = float(ALPHAS_CUMPROD[t])
        mu = torch.from_numpy(MU).to(latents).view(1, 3, 1, 1)
        clean = mu + over_channels(gain(alpha_bar), latents - alpha_bar**0.5 * mu)
        output = (latents - alpha_bar**0.5 * clean) / (1 - alpha_bar) ** 0.5
        if self.prediction_type == "v_prediction":
            output = alpha_bar**0.5 * output - (1 - alpha_bar) ** 0.5 * clean
        self.timesteps.append(t)
        self.features_asked.append(features)
        self.differentiated.append(latents.requires_grad)
        self.outputs.append(weakref.ref(output))
        return SimpleNamespace(
            output=output,
            features=[latents.tanh()] if features else None,
            time_embedding=torch.full((len(latents), 2), float(t)),
        )

    def sigma_embedding(self, noise_sigma):
        return torch.stack([noise_sigma, 2 * noise_sigma], 1)


def problem(w: torch.Tensor, operator: object, prior: GaussianPrior | None = None, mask=None):
    return Problem(
        prior=cast(Any, prior or GaussianPrior()),
        operator=cast(Any, operator),
        degradation=cast(Any, None),
        measurement=torch.zeros(1, 3, 1, 1),
        measurement_latent=w,
        mask=mask,
        noise_sigma=0.01,
        prompt=cast(Any, None),
    )


def seeds(*values: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(value) for value in values]
