"""LatentPrior: a latent diffusion model behind the few calls that a sampler makes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import SlicedAttnProcessor
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from silo.components import Components, of_pipeline
from silo.errors import HubUnavailable, NumericalError, OutOfMemory, PriorFileError
from silo.features import captured_features, feature_channels
from silo.fingerprint import network_fingerprint
from silo.memory import is_out_of_memory
from silo.prior_files import EMBEDDED_NAME, load_components, locate
from silo.windows import in_windows

SIGMA_EMBEDDING_RANGE = (
    0.1  # noise std, in [-1, 1] units, that is embedded as the last timestep, 999
)
Network = Callable[[Any, Tensor], tuple[Tensor, ...]]  # run by a network, on an input
NETWORKS = ("_vae", "_unet", "_text_encoder")
WINDOW_RATIO = 2  # the side of the pictures that are denoised as a whole over the native one


@dataclass(frozen=True)
class PromptEmbedding:
    """A text condition with its classifier-free guidance.

    Attributes:
        cond: (1, L, D) the prompt.
        uncond: (1, L, D) the negative prompt, or None without guidance.
        guidance_scale: s in uncond + s (cond - uncond).
        truncated: whether the prompt or the negative prompt was longer than the text encoder reads.
    """

    cond: Tensor
    uncond: Tensor | None
    guidance_scale: float
    truncated: bool = False


@dataclass(frozen=True)
class Prediction:
    """One denoiser evaluation.

    Attributes:
        output: (B, C, h, w) the network's output, guidance applied: epsilon or v, as the prior's
            `prediction_type` says.
        features: what each residual block of the decoder adds to its shortcut, coarse to fine,
            of the prompt's half under guidance; None unless asked for.
        time_embedding: (B, E) the denoiser's embedding of the timestep.
    """

    output: Tensor
    features: list[Tensor] | None
    time_embedding: Tensor


class LatentPrior:
    """A frozen Stable Diffusion model in evaluation mode.

    All tensors going in and out are float32, whatever the networks run in. Calls are differentiable
    in their inputs. Hooks, counters and notices make a prior serve one restoration at a time.

    Attributes:
        name: what it was loaded by, or what a pipeline is called.
        revision: the Hub commit, or None for a folder or a pipeline.
        folder: where its files lie; None for a pipeline.
        device: where it computes.
        dtype: what its networks run in, `notices` aside.
        latent_channels: C of a latent.
        scale_factor: pixels per latent element along a side.
        native_size: side of the pictures it was trained on, in pixels.
        size_multiple: sides of pictures must be multiples of this many pixels.
        alphas_cumprod: (T,) abar of the training schedule, float64 on the CPU.
        prediction_type: "epsilon" or "v_prediction".
        feature_channels: channels of each tensor of `Prediction.features`.
        embedding_dim: E of the time and sigma embeddings.
        encodes: calls of `encode` so far.
        decodes: calls of `decode` so far.
        nfe: calls of `predict` so far; guidance batches its two halves in one.
        notices: sentences for the user about what happened to the networks on the way.
    """

    def __init__(
        self,
        components: Components,
        *,
        name: str,
        revision: str | None = None,
        folder: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Freezes the components themselves and moves them to the device, in the dtype they have.

        Raises:
            PriorFileError: the scheduler's configuration describes no known noise schedule.
        """
        self.name = name
        self.revision = revision
        self.folder = folder
        self.device = torch.device(device)
        self.dtype: torch.dtype = components.unet.dtype
        # CPUs and tensor cores convolve faster with channels last; Apple's GPUs do not.
        mps = self.device.type == "mps"
        self._layout = torch.contiguous_format if mps else torch.channels_last
        self._vae, self._unet = components.vae, components.unet
        self._text_encoder, self._tokenizer = components.text_encoder, components.tokenizer
        for part in NETWORKS:
            network = getattr(self, part)
            network.to(device=self.device, memory_format=self._layout)
            network.requires_grad_(False).eval()

        unet, vae = self._unet.config, self._vae.config
        self.latent_channels: int = vae.latent_channels
        self.scale_factor: int = 2 ** (len(vae.block_out_channels) - 1)
        self.native_size: int = unet.sample_size * self.scale_factor
        self.size_multiple: int = self.scale_factor * 2 ** (len(unet.block_out_channels) - 1)
        self.alphas_cumprod = alphas_cumprod(components.scheduler_config)
        self.prediction_type: str = components.scheduler_config.get("prediction_type", "epsilon")
        self.feature_channels = feature_channels(self._unet)
        self.embedding_dim: int = self._unet.time_embedding.linear_2.out_features
        self.encodes = self.decodes = self.nfe = 0
        self.notices: list[str] = []
        self._offloads = False

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> LatentPrior:
        """Loads a prior by name.

        Args:
            name_or_path: "tiny" (embedded), "sd15", "rv51", a folder in diffusers' layout, or a Hub
                id. "sd15" and "rv51" are pinned to a commit. The Hub's may end in "@" and another
                revision; a Hub id without one means the branch "main", as it stands at the time.
                The attribute `revision` records the commit that was taken.
            revision: the same as an argument.
            device: where to compute.
            dtype: what the networks run in.

        Raises:
            UnknownPrior: the name stands for nothing.
            PriorFileError: the files are incomplete, damaged or another kind of model's.
            HubUnavailable: the Hub cannot be reached and the local cache does not hold the prior.
            OutOfMemory: the device cannot hold the networks.
        """
        name = str(name_or_path)
        folder, commit = locate(name, revision, dtype)
        components = load_components(folder, dtype)
        try:
            return cls(components, name=name, revision=commit, folder=folder, device=device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        raise OutOfMemory(f"{device} cannot hold {name}: choose bfloat16 or another device.")

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, *, name: str | None = None) -> LatentPrior:
        """Takes the networks of one of diffusers' pipelines, LoRAs included, on its device.

        They are shared, not copied, and frozen for good; the pipeline may still be used. What is
        given up when memory runs out (`silo.memory`) is given up for it, too: `pipeline.to(device)`
        brings networks back that were put aside.

        Args:
            pipeline: with the parts of a StableDiffusionPipeline. Of a compiled network what it was
                compiled from is taken; textual inversions of several vectors are not expanded.
            name: what results call it, and by what operators that read its features are found; by
                default what the pipeline was loaded by.

        Raises:
            BadRequest: its networks are offloaded, or hooks change them otherwise.
            PriorFileError: it lacks a part, or is another kind of model's.
        """
        name = name or str(pipeline.name_or_path or type(pipeline).__name__)
        return cls(of_pipeline(pipeline, name), name=name, device=pipeline.device)

    def encode(self, images: Tensor) -> Tensor:
        """Latents z = E(x) * scaling_factor, the mode of the posterior.

        Args:
            images: (B, 3, H, W) in [-1, 1].

        Returns:
            (B, C, H / scale_factor, W / scale_factor).
        """
        self.encodes += 1
        scale = self._vae.config.scaling_factor

        def run(vae: Any, images: Tensor) -> tuple[Tensor]:
            encoded = vae.encode(self._cast(images, vae))
            if isinstance(vae, AutoencoderTiny):
                return (encoded.latents.float() * scale,)
            return (encoded.latent_dist.mode().float() * scale,)

        windowed = self._in_windows(run, 1, self.scale_factor)
        return self._finite("_vae", "the encoder", windowed, images)[0]

    def decode(self, latents: Tensor, *, clamp: bool = True) -> Tensor:
        """Pictures x = D(z / scaling_factor).

        Args:
            latents: (B, C, h, w).
            clamp: whether to clamp to [-1, 1]; guidance does not, lest its gradient vanish beyond.

        Returns:
            (B, 3, h * scale_factor, w * scale_factor), in [-1, 1] if clamped.

        Raises:
            NumericalError: the latents are not finite numbers.
        """
        self.decodes += 1
        scale = self._vae.config.scaling_factor

        def run(vae: Any, latents: Tensor) -> tuple[Tensor]:
            return (vae.decode(self._cast(latents / scale, vae)).sample.float(),)

        windowed = self._in_windows(run, self.scale_factor, 1)
        (images,) = self._finite("_vae", "the decoder", windowed, latents)
        if not torch.isfinite(images).all():
            raise NumericalError(
                "the sampler diverged: guide it less (a smaller eta or omega), or take more steps."
            )
        return images.clamp(-1, 1) if clamp else images

    def embed(
        self, prompt: str, negative_prompt: str = "", guidance_scale: float = 1.0
    ) -> PromptEmbedding:
        """Embeds a prompt; at guidance_scale 1 there is no guidance, nor a negative prompt."""
        cond, truncated = self._embed(prompt)
        if guidance_scale == 1.0:
            return PromptEmbedding(cond, None, guidance_scale, truncated)
        uncond, negative_truncated = self._embed(negative_prompt)
        return PromptEmbedding(cond, uncond, guidance_scale, truncated or negative_truncated)

    def predict(
        self,
        latents: Tensor,
        t: int | Tensor,
        prompt: PromptEmbedding,
        *,
        features: bool = False,
    ) -> Prediction:
        """Evaluates the denoiser once, with both halves of classifier-free guidance in one batch.

        Latents of more than a picture of WINDOW_RATIO times the native side are evaluated in
        windows, lest subjects repeat and attention grow with the square of the area; such pictures
        are encoded and decoded so, too.

        Args:
            latents: (B, C, h, w) noisy latents z_t.
            t: the timestep, from 0 to T - 1; or (B,), one for each latent.
            prompt: the text condition, from `embed`.
            features: whether to return the decoder's features too, for the readout operator.
        """
        self.nfe += 1
        batch = len(latents)
        halves = [prompt.cond] if prompt.uncond is None else [prompt.uncond, prompt.cond]
        text = torch.cat([half.expand(batch, -1, -1) for half in halves])
        if isinstance(t, int):  # filled on the device: a copy to it would wait for what it does
            times = torch.full((batch * len(halves),), t, device=self.device)
        else:
            times = t.to(self.device, torch.long).expand(batch).repeat(len(halves))

        def run(unet: Any, latents: Tensor) -> tuple[Tensor, ...]:
            noisy = self._cast(torch.cat([latents] * len(halves)), unet)
            with captured_features(unet, features) as captured:
                output = unet(noisy, times, encoder_hidden_states=text.to(unet.dtype)).sample
            return output.float(), *(feature[-batch:].float() for feature in captured)

        multiple = self.size_multiple // self.scale_factor
        windowed = self._in_windows(run, self.scale_factor, multiple)
        output, *captured = self._finite("_unet", "the denoiser", windowed, latents)
        if prompt.uncond is not None:
            negative, positive = output.chunk(2)
            output = negative + prompt.guidance_scale * (positive - negative)
        return Prediction(
            output, captured if features else None, self.time_embedding(times[:batch])
        )

    def time_embedding(self, t: Tensor) -> Tensor:
        """The denoiser's own embedding (B, E) of timesteps (B,), whole numbers or not."""
        self._place("_unet")
        projected = self._unet.time_proj(t.to(self.device)).to(self._unet.dtype)
        return self._unet.time_embedding(projected).float()

    def sigma_embedding(self, noise_sigma: Tensor) -> Tensor:
        """Embeds noise levels (B,) in [0, 1] units as timesteps, for the operators: (B, E).

        Noise of std s = 2 * noise_sigma in [-1, 1] images becomes the timestep 999 s / 0.1.
        """
        return self.time_embedding(2 * noise_sigma / SIGMA_EMBEDDING_RANGE * 999)

    def to(self, device: torch.device) -> LatentPrior:
        """Computes on another device from now on; returns itself."""
        if device != self.device:
            self.device = device
            for part in NETWORKS:
                getattr(self, part).to(device)
        return self

    def slice_attention(self) -> bool:
        """Computes the denoiser's attention one head at a time; False if it did already."""
        if any(isinstance(p, SlicedAttnProcessor) for p in self._unet.attn_processors.values()):
            return False
        self._unet.set_attention_slice("max")
        return True

    def checkpoint_gradients(self) -> bool:
        """Makes gradients compute activations again, not keep them; False if they did already."""
        if self._unet.is_gradient_checkpointing:
            return False
        for network in (self._unet, self._vae):  # some samplers differentiate the decoder, too
            network.enable_gradient_checkpointing()
        return True

    def offload(self) -> bool:
        """Keeps networks that are not in use in the CPU's memory; False if it did already."""
        changed, self._offloads = not self._offloads, True
        return changed

    def slice_autoencoder(self) -> bool:
        """Encodes and decodes one picture of a batch at a time; False if it did already."""
        changed = not self._vae.use_slicing
        self._vae.enable_slicing()
        return changed

    def tile_autoencoder(self) -> bool:
        """Encodes and decodes pictures beyond the autoencoder's training size in blended tiles.

        Returns False if it did already, and for AutoencoderTiny, which needs little memory.
        """
        if isinstance(self._vae, AutoencoderTiny) or self._vae.use_tiling:
            return False
        self._vae.enable_tiling()
        return True

    @cached_property
    def networks_hash(self) -> str:
        """SHA-256 of the weights of all networks; they are frozen."""
        prints = [network_fingerprint(getattr(self, part)) for part in NETWORKS]
        return hashlib.sha256("".join(prints).encode()).hexdigest()

    def autoencoder_hash(self) -> str:
        """SHA-256 of the autoencoder's configuration and weights, which decide the latents."""
        # Names with an underscore tell where the files lay.
        config = {key: value for key, value in self._vae.config.items() if key[0] != "_"}
        described = json.dumps(config, sort_keys=True, default=str) + network_fingerprint(self._vae)
        return hashlib.sha256(described.encode()).hexdigest()

    def _embed(self, text: str) -> tuple[Tensor, bool]:
        """The text encoder's last hidden states (1, L, D), and whether L tokens were too few."""
        positions = self._text_encoder.config.max_position_embeddings
        length = min(self._tokenizer.model_max_length, positions)
        rows = self._tokenizer(
            text,
            padding="max_length",
            max_length=length,
            truncation=True,
            return_overflowing_tokens=True,
        )["input_ids"]
        tokens = torch.tensor(rows[:1], device=self.device)

        def run(text_encoder: Any, tokens: Tensor) -> tuple[Tensor]:
            return (text_encoder(tokens).last_hidden_state.float(),)

        (hidden,) = self._finite("_text_encoder", "the text encoder", run, tokens)
        return hidden, len(rows) > 1

    def _cast(self, tensor: Tensor, network: Any) -> Tensor:
        return tensor.to(self.device, network.dtype).contiguous(memory_format=self._layout)

    def _place(self, part: str) -> None:
        """When offloading: puts a network on the device, and those out of use on the CPU."""
        for other in NETWORKS if self._offloads else ():
            if other == part:
                getattr(self, other).to(self.device)
            elif other != "_unet" or not torch.is_grad_enabled():  # a gradient may yet pass it
                getattr(self, other).to("cpu")

    def _in_windows(self, run: Network, pixels: int, multiple: int) -> Network:
        """The same in windows, of inputs whose elements are so many pixels wide."""
        side = WINDOW_RATIO * self.native_size // pixels
        return lambda network, inputs: in_windows(
            partial(run, network), inputs, side=side, multiple=multiple
        )

    def _finite(
        self,
        part: str,
        title: str,
        run: Network,
        inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        """Returns run(network, inputs); if float16 overflows, makes the network float32 for good.

        By a copy, since gradients of earlier calls still need the weights as they were. What has
        float32's range is not asked, since the answer would have to wait for the GPU.
        """
        self._place(part)
        network = getattr(self, part)
        outputs = run(network, inputs)
        if network.dtype != torch.float16 or torch.isfinite(outputs[0]).all():
            return outputs
        if not torch.isfinite(inputs).all():  # no precision helps
            return outputs
        self.notices.append(
            f"{title} overflowed in {self.dtype}; it now runs in float32, which is slower."
        )
        network = deepcopy(network).float()
        setattr(self, part, network)
        return run(network, inputs)


def load_or_embedded(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[LatentPrior, str | None]:
    """As `LatentPrior.load`; when the Hub is unavailable, the embedded prior and a notice of it."""
    try:
        return LatentPrior.load(name_or_path, revision=revision, device=device, dtype=dtype), None
    except HubUnavailable as error:
        prior = LatentPrior.load(EMBEDDED_NAME, device=device, dtype=dtype)
        return prior, f"Using the small embedded prior instead of {name_or_path}: {error}"


def alphas_cumprod(scheduler_config: Any) -> Tensor:
    """The schedule abar (T,), float64, of a scheduler's configuration in diffusers' format.

    Raises:
        PriorFileError: the noise schedule is unknown or incomplete.
    """
    try:
        scheduler: Any = DDPMScheduler.from_config(dict(scheduler_config))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise PriorFileError(
            f"scheduler_config.json holds no noise schedule ({error}): use Stable Diffusion's."
        ) from error
    return (1 - scheduler.betas.double()).cumprod(0)
