"""Train the text-conditioned denoiser of a small prior on latents that are computed once."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from silo.data import Photo, pictures_fingerprint, to_tensor
from silo.fingerprint import network_fingerprint
from silo.training.captions import build_tokenizer, special_ids, token_ids
from silo.training.loop import TrainingLoop
from silo.training.widening import widen_from

AVERAGE_DECAY = 0.998
ADAM_BETAS = (0.9, 0.99)
WEIGHT_DECAY = 0.01
NULL_CAPTION_RATE = 0.1


@dataclass(frozen=True)
class DenoiserTraining:
    """What decides a denoiser, but for the pictures and the latent space."""

    widths: tuple[int, ...] = (64, 128, 192)
    head_width: int = 64
    text_width: int = 128
    text_layers: int = 2
    latent_size: int = 32
    steps: int = 3300
    batch: int = 16
    learning_rate: float = 1e-3
    seed: int = 0


class TextToLatent(nn.Module):
    """The text encoder and the UNet, trained together: (z_t, t, token ids) -> v."""

    def __init__(
        self, settings: DenoiserTraining, latent_channels: int, tokenizer: CLIPTokenizer
    ) -> None:
        """Build both with random weights."""
        super().__init__()
        torch.manual_seed(settings.seed)
        start, end = special_ids(tokenizer)
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=settings.text_width,
                intermediate_size=4 * settings.text_width,
                num_hidden_layers=settings.text_layers,
                num_attention_heads=max(1, settings.text_width // settings.head_width),
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=start,
                eos_token_id=end,
                pad_token_id=end,
            )
        )
        deeper = len(settings.widths) - 1  # attention everywhere but at full latent size
        # diffusers takes one entry a level, though it annotates a tuple of one.
        heads: Any = tuple(width // settings.head_width for width in settings.widths)
        self.unet = UNet2DConditionModel(
            sample_size=settings.latent_size,
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=settings.widths,
            layers_per_block=1,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
            up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
            cross_attention_dim=settings.text_width,
            attention_head_dim=heads,
        )

    def inner_matrices(self) -> list[Tensor]:
        """The weights of all linear layers and convolutions but those at the UNet's two ends."""
        ends = (self.unet.conv_in, self.unet.conv_out)
        layers = (each for each in self.modules() if isinstance(each, nn.Linear | nn.Conv2d))
        return [each.weight for each in layers if each not in ends]

    def forward(self, latents: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """Predict v for latents (B, C, h, w), timesteps (B,) and token ids (B, L)."""
        text = self.text_encoder(tokens).last_hidden_state
        return self.unet(latents, timesteps, encoder_hidden_states=text).sample


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, with v-prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


@torch.no_grad()
def encode_photos(
    photos: Sequence[Photo],
    autoencoder: AutoencoderTiny,
    cache: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> list[list[Tensor]]:
    """The latents (C, h, w) fp16 of every picture at its native size, upright and mirrored.

    Kept in the file `cache`, and computed where it holds none or others; whole pictures, so that a
    random crop of a latent is a new training example at no cost.
    """
    source = {
        "pictures": pictures_fingerprint(photos),
        "encoder": network_fingerprint(autoencoder.encoder),
    }
    if latents_source(cache) != source:
        tensors = {}
        for index, photo in enumerate(tqdm(photos, desc="encoding", unit="picture")):
            image = to_tensor(photo.pixels)[None]
            height, width = (side // 8 * 8 for side in image.shape[-2:])
            for mirrored in (0, 1):
                view = (image.flip(-1) if mirrored else image)[..., :height, :width].to(device)
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    latent = autoencoder.encoder(view.contiguous(memory_format=torch.channels_last))
                tensors[f"{index:06d}.{mirrored}"] = latent[0].half().cpu().contiguous()
        aside = cache.with_suffix(".partial")
        save_file(tensors, aside, metadata=source)
        aside.replace(cache)
    stored = load_file(cache)
    return [[stored[f"{i:06d}.{m}"] for m in (0, 1)] for i in range(len(stored) // 2)]


def latents_source(cache: Path) -> dict[str, str]:
    """The fingerprints of the "pictures" and of the "encoder" that kept latents are of.

    Empty where there are no latents, or they do not say it.
    """
    if not cache.is_file():
        return {}
    with safe_open(cache, "pt") as file:
        return file.metadata() or {}


def train_denoiser(
    latents: list[list[Tensor]],
    captions: list[str],
    settings: DenoiserTraining,
    output: Path,
    *,
    start: tuple[TextToLatent, CLIPTokenizer] | None = None,
    device: torch.device,
    dtype: torch.dtype,
    checkpointing_steps: int,
) -> tuple[TextToLatent, CLIPTokenizer, dict]:
    """Train on v-prediction, resuming from the newest checkpoint in `output`.

    Args:
        latents: the views of each picture (see `encode_photos`).
        captions: one for each picture.
        settings: all else that decides the result.
        output: folder of the checkpoints.
        start: the weights to begin with, for latents of no more channels, and the tokenizer they
            were trained with; random, and learned from `captions`, where it is None.
        device: where to train.
        dtype: of the autocast.
        checkpointing_steps: how many steps lie between two checkpoints.

    Returns:
        The averaged weights, the tokenizer, and a record of settings and losses.
    """
    tokenizer = build_tokenizer(captions) if start is None else start[1]
    tokens = token_ids(tokenizer, captions)
    null = token_ids(tokenizer, [""])[0]
    alpha_bar = build_scheduler().alphas_cumprod.double()
    model = TextToLatent(settings, latents[0][0].shape[0], tokenizer).to(device)
    if start is not None:
        widen_from(model, start[0])
    cast(Any, model.unet).to(memory_format=torch.channels_last)
    loop = TrainingLoop(
        model,
        output,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        decay=AVERAGE_DECAY,
        seed=settings.seed,
        checkpointing_steps=checkpointing_steps,
        betas=ADAM_BETAS,
        weight_decay=WEIGHT_DECAY,
        matrices=model.inner_matrices(),
    )
    for generator in loop:
        picks = torch.randint(len(latents), (settings.batch,), generator=generator)
        clean = torch.stack(
            [_random_crop(latents[i], settings.latent_size, generator) for i in picks.tolist()]
        )
        dropped = torch.rand(settings.batch, generator=generator) < NULL_CAPTION_RATE
        text = torch.where(dropped[:, None], null, tokens[picks])
        noise = torch.randn(clean.shape, generator=generator)
        # One timestep in each of `batch` equal strata: the loss varies less from step to step.
        strata = torch.arange(settings.batch) + torch.rand(settings.batch, generator=generator)
        timesteps = (strata / settings.batch * len(alpha_bar)).long()
        signal = alpha_bar[timesteps].sqrt().float().view(-1, 1, 1, 1)
        sigma = (1 - alpha_bar[timesteps]).sqrt().float().view(-1, 1, 1, 1)
        noisy, target = signal * clean + sigma * noise, signal * noise - sigma * clean
        noisy = noisy.to(device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            predicted = model(noisy, timesteps.to(device), text.to(device))
        loop.update({"v_loss": F.mse_loss(predicted.float(), target.to(device))})
    return loop.average, tokenizer, {"settings": asdict(settings), "log": loop.log.read()}


def _random_crop(views: list[Tensor], size: int, generator: torch.Generator) -> Tensor:
    latent = views[int(torch.randint(len(views), (), generator=generator))]
    top = int(torch.randint(latent.shape[-2] - size + 1, (), generator=generator))
    left = int(torch.randint(latent.shape[-1] - size + 1, (), generator=generator))
    return latent[:, top : top + size, left : left + size].float()
