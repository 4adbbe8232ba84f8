"""The parts of a latent diffusion model, and whether they make a prior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers import CLIPTextModel

from silo.errors import BadRequest, PriorFileError

CLASSES: dict[str, dict[str, type]] = {
    "unet": {"UNet2DConditionModel": UNet2DConditionModel},
    "vae": {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny},
    "text_encoder": {"CLIPTextModel": CLIPTextModel},
}
HOOKS = ("_hf_hook", "_diffusers_hook")  # where accelerate and diffusers keep theirs
PREDICTION_TYPES = ("epsilon", "v_prediction")
USE_STABLE_DIFFUSION = "use a text-to-image Stable Diffusion 1.x or 2.x model."


@dataclass(frozen=True)
class Components:
    """The parts of a latent diffusion model.

    Attributes:
        vae: diffusers' AutoencoderKL or AutoencoderTiny.
        unet: diffusers' UNet2DConditionModel.
        text_encoder: transformers' CLIPTextModel.
        tokenizer: transformers' CLIPTokenizer.
        scheduler_config: the configuration of any of diffusers' schedulers.
    """

    vae: Any  # these four: the libraries' own annotations describe neither configs nor outputs
    unet: Any
    text_encoder: Any
    tokenizer: Any
    scheduler_config: Mapping[str, Any]


def of_pipeline(pipeline: DiffusionPipeline, name: str) -> Components:
    """The parts of one of diffusers' pipelines, with the weights that were loaded into them.

    They are shared, not copied. Compiled ones are what they were compiled from: features are read
    by hooks.

    Args:
        pipeline: with the parts of a StableDiffusionPipeline, on the device to compute on.
        name: what errors call it.

    Raises:
        BadRequest: its networks are offloaded, or hooks change them otherwise.
        PriorFileError: a part is missing, or not Stable Diffusion's.
    """
    parts = pipeline.components
    needed = (*CLASSES, "tokenizer", "scheduler")
    if missing := [part for part in needed if parts.get(part) is None]:
        raise PriorFileError(f"{name} lacks {', '.join(missing)}: {USE_STABLE_DIFFUSION}")
    networks = {part: getattr(parts[part], "_orig_mod", parts[part]) for part in CLASSES}
    for part, network in networks.items():
        if not isinstance(network, tuple(CLASSES[part].values())):
            raise _unknown_class(name, part, type(network).__name__)
        if any(hasattr(module, hook) for module in network.modules() for hook in HOOKS):
            raise BadRequest(
                f"{name} is offloaded, or hooks change its {part}: make the pipeline without, "
                "since a prior offloads by itself where memory is short."
            )
    configs = {part: networks[part].config for part in ("unet", "vae")}
    configs["text_encoder"] = networks["text_encoder"].config.to_dict()
    check_fit(name, configs, parts["scheduler"].config)
    return Components(
        **networks, tokenizer=parts["tokenizer"], scheduler_config=parts["scheduler"].config
    )


def class_of(name: object, part: str, declared: str | None) -> type:
    """The class of this name, if a part may have it.

    Raises:
        PriorFileError: it may not; the message begins with the prior's `name`.
    """
    if declared not in CLASSES[part]:
        raise _unknown_class(name, part, declared)
    return CLASSES[part][declared]


def check_fit(
    name: object, configs: Mapping[str, Mapping[str, Any]], scheduler_config: Mapping[str, Any]
) -> None:
    """Refuses what is not text-to-image Stable Diffusion, by the configurations of its parts.

    Raises:
        PriorFileError: it is not; the message begins with the prior's `name`.
    """
    unet, channels = configs["unet"], configs["vae"].get("latent_channels", 4)
    width = configs["text_encoder"].get("hidden_size", 512)
    extra = ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type", "num_class_embeds")
    problem = None
    if unet.get("in_channels", 4) != channels or unet.get("out_channels", 4) != channels:
        problem = f"the denoiser's channels are not the autoencoder's {channels}"
    elif unet.get("cross_attention_dim", 1280) != width:
        problem = f"the denoiser does not read the text encoder's {width} dimensions"
    elif given := [key for key in extra if unet.get(key) is not None]:
        problem = f"the denoiser wants more than a text ({given[0]})"
    elif not isinstance(unet.get("sample_size"), int):
        problem = "the denoiser's configuration names no sample_size"
    elif scheduler_config.get("prediction_type", "epsilon") not in PREDICTION_TYPES:
        problem = f"it predicts {scheduler_config['prediction_type']!r}"
    if problem is not None:
        raise PriorFileError(f"{name}: {problem}: {USE_STABLE_DIFFUSION}")


def _unknown_class(name: object, part: str, found: str | None) -> PriorFileError:
    known = " or ".join(CLASSES[part])
    return PriorFileError(f"{name}: {part} is {found}, not {known}: {USE_STABLE_DIFFUSION}")
