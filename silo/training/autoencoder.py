"""Train the autoencoder of a small prior: diffusers' AutoencoderTiny on native-scale crops.

Loss: L1 + LPIPS-Alex (where its weights are given) + a penalty that holds every latent channel at
mean 0 and variance 1, so that the latents need no scaling. The decoder sees
latents with a little noise on them: what a diffusion model hands it is never exact.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor

from silo.data import Photo, center_crop, random_crop, to_tensor
from silo.lpips import LPIPS
from silo.training.loop import TrainingLoop
from silo.training.widening import widen_from

MOMENT_WEIGHT = 0.02
LATENT_NOISE = 0.05
AVERAGE_DECAY = 0.999
ADAM_BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class AutoencoderTraining:
    """What decides an autoencoder, but for the pictures."""

    latent_channels: int = 8
    width: int = 64
    encoder_blocks: tuple[int, ...] = (0, 1, 2, 3)
    decoder_blocks: tuple[int, ...] = (3, 2, 1, 0)
    steps: int = 1700
    batch: int = 16
    crop: int = 128
    learning_rate: float = 1e-3
    lpips_weight: float = 0.3
    seed: int = 0
    decoder_alone: bool = False


def build_autoencoder(settings: AutoencoderTraining) -> AutoencoderTiny:
    """An AutoencoderTiny with random weights; images (B, 3, 8h, 8w) <-> latents (B, C, h, w)."""
    torch.manual_seed(settings.seed)
    levels = len(settings.encoder_blocks)
    return AutoencoderTiny(
        encoder_block_out_channels=(settings.width,) * levels,
        decoder_block_out_channels=(settings.width,) * levels,
        num_encoder_blocks=settings.encoder_blocks,
        num_decoder_blocks=settings.decoder_blocks,
        latent_channels=settings.latent_channels,
    )


def train_autoencoder(
    photos: list[Photo],
    held_out: list[Photo],
    settings: AutoencoderTraining,
    output: Path,
    *,
    start: AutoencoderTiny | None = None,
    lpips: LPIPS | None,
    device: torch.device,
    dtype: torch.dtype,
    checkpointing_steps: int,
) -> tuple[AutoencoderTiny, dict]:
    """Train, resuming from the newest checkpoint in `output`.

    Args:
        photos: to train on.
        held_out: to measure on.
        settings: with `decoder_alone`, the latents stay what they are in `start`, so that a
            denoiser and operators trained on them remain valid.
        output: folder of the checkpoints.
        start: the weights to begin with, of an autoencoder with no more latent channels; random
            where it is None.
        lpips: the perceptual part of the loss, or None.
        device: where to train.
        dtype: of the autocast.
        checkpointing_steps: how many steps lie between two checkpoints.

    Returns:
        The averaged weights, and a record of settings, losses and held-out fidelity.
    """
    model = build_autoencoder(settings)
    if start is not None:
        widen_from(model, start)
    cast(Any, model).to(device=device, memory_format=torch.channels_last)
    model.requires_grad_(True).encoder.requires_grad_(not settings.decoder_alone)
    loop = TrainingLoop(
        model,
        output,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        decay=AVERAGE_DECAY,
        seed=settings.seed,
        checkpointing_steps=checkpointing_steps,
        betas=ADAM_BETAS,
    )
    for generator in loop:
        images = _crops(photos, settings, generator).to(device)
        images = images.contiguous(memory_format=torch.channels_last)
        loop.update(_losses(model, images, lpips, settings.lpips_weight, generator, dtype))
    record = {
        "settings": asdict(settings),
        "pictures": len(photos),
        "log": loop.log.read(),
        **measure_autoencoder(loop.average, held_out, lpips, device),
    }
    return loop.average, record


@torch.no_grad()
def measure_autoencoder(
    model: AutoencoderTiny, photos: list[Photo], lpips: LPIPS | None, device: torch.device
) -> dict[str, float]:
    """Mean PSNR (dB) and LPIPS-Alex of D(E(x)) on the central 256-pixel squares of `photos`."""
    psnr, distance = [], []
    for photo in photos:
        image = center_crop(photo, 256)[None].to(device)
        restored = model.decoder(model.encoder(image)).clamp(-1, 1)
        psnr.append(10 * math.log10(4 / float(F.mse_loss(restored, image))))
        if lpips is not None:
            distance.append(float(lpips(restored, image)))
    result = {"held_out_psnr": sum(psnr) / len(psnr)}
    if distance:
        result["held_out_lpips_alex"] = sum(distance) / len(distance)
    return result


def _crops(
    photos: list[Photo], settings: AutoencoderTraining, generator: torch.Generator
) -> Tensor:
    picks = torch.randint(len(photos), (settings.batch,), generator=generator).tolist()
    crops = [to_tensor(random_crop(photos[i], settings.crop, generator)) for i in picks]
    return torch.stack(crops)


def _losses(
    model: AutoencoderTiny,
    images: Tensor,
    lpips: LPIPS | None,
    lpips_weight: float,
    generator: torch.Generator,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        latents = model.encoder(images)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        noisy = latents + LATENT_NOISE * noise
        restored = model.decoder(noisy).float()
    flat = latents.float().transpose(0, 1).flatten(1)
    moments = flat.mean(1).square().mean() + (flat.std(1) - 1).square().mean()
    losses = {"l1": F.l1_loss(restored, images), "moments": MOMENT_WEIGHT * moments}
    if lpips is not None:
        losses["lpips"] = lpips_weight * lpips(restored, images).mean()
    return losses
