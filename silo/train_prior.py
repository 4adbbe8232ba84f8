"""Train a small latent diffusion prior from random weights: autoencoder, denoiser, decoder.

    python -m silo train-prior --train_data_dir PHOTOS... --output_dir OUT

Each part resumes from its newest checkpoint; the result is a diffusers pipeline in OUT/pipeline.
"""

import argparse
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import nn
from transformers import CLIPTokenizer

from silo.allocation import keep_freed_memory
from silo.data import iterate_photos
from silo.devices import pick_device
from silo.lpips import LPIPS, find_weights
from silo.train_autoencoder import AutoencoderTraining, train_autoencoder
from silo.train_denoiser import (
    DenoiserTraining,
    TextToLatent,
    build_scheduler,
    encode_photos,
    train_denoiser,
)

RESOLUTION = 256
HELD_OUT_MEASURED = 40
# Once the latents are fixed, what they do not carry is better painted than averaged.
DECODER_STEPS, DECODER_LEARNING_RATE, DECODER_LPIPS_WEIGHT = 1500, 5e-4, 1.0


def main(argv: list[str] | None = None) -> int:
    """Run the three stages; returns the exit code."""
    arguments = _parser().parse_args(argv)
    keep_freed_memory()
    device = pick_device(arguments.device)
    dtype = torch.bfloat16 if arguments.mixed_precision == "bf16" else torch.float32
    output: Path = arguments.output_dir
    output.mkdir(parents=True, exist_ok=True)

    photos = list(iterate_photos(arguments.train_data_dir, "train", RESOLUTION))
    held_out = list(iterate_photos(arguments.train_data_dir, "held_out", RESOLUTION))
    print(f"{len(photos)} pictures to train on, {len(held_out)} held out", flush=True)
    weights = find_weights("alex", arguments.metric_weights)
    train_codec = partial(
        train_autoencoder,
        photos,
        held_out[:HELD_OUT_MEASURED],
        lpips=LPIPS("alex", weights).to(device) if weights else None,
        device=device,
        dtype=dtype,
        checkpointing_steps=arguments.checkpointing_steps,
    )
    joint = AutoencoderTraining(steps=arguments.autoencoder_steps, seed=arguments.seed)
    autoencoder, autoencoder_record = train_codec(joint, output / "autoencoder")
    latents = encode_photos(photos, autoencoder, output / "latents.safetensors", device, dtype)
    denoiser, tokenizer, denoiser_record = train_denoiser(
        latents,
        [photo.caption for photo in photos],
        DenoiserTraining(steps=arguments.denoiser_steps, seed=arguments.seed),
        output / "denoiser",
        device=device,
        dtype=dtype,
        checkpointing_steps=arguments.checkpointing_steps,
    )
    alone = replace(
        joint,
        steps=arguments.decoder_steps,
        learning_rate=DECODER_LEARNING_RATE,
        lpips_weight=DECODER_LPIPS_WEIGHT,
    )
    autoencoder, decoder_record = train_codec(alone, output / "decoder", start=autoencoder)
    export(autoencoder, denoiser, tokenizer, output / "pipeline")
    record = {
        "autoencoder": autoencoder_record,
        "denoiser": denoiser_record,
        "decoder": decoder_record,
    }
    (output / "training.json").write_text(json.dumps(record, indent=1))
    print(f"The prior lies in {output / 'pipeline'}; its record in {output / 'training.json'}.")
    return 0


def export(
    autoencoder: nn.Module, denoiser: TextToLatent, tokenizer: CLIPTokenizer, folder: Path
) -> None:
    """Write the parts as a diffusers StableDiffusionPipeline folder, fp16 safetensors."""
    # Narrower annotations than what the class takes: AutoencoderTiny and None are documented.
    parts: dict[str, Any] = {
        "vae": autoencoder,
        "text_encoder": denoiser.text_encoder,
        "tokenizer": tokenizer,
        "unet": denoiser.unet,
        "scheduler": build_scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
    }
    pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipeline.to(dtype=torch.float16)
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    pipeline.save_pretrained(aside, safe_serialization=True)
    for path in aside.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes 0600, which others could not read
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m silo train-prior", description=__doc__)
    parser.add_argument("--train_data_dir", type=Path, nargs="+", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument(
        "--metric_weights", type=Path, help="folder with LPIPS weights; without: L1 alone"
    )
    parser.add_argument("--autoencoder_steps", type=int, default=AutoencoderTraining.steps)
    parser.add_argument("--decoder_steps", type=int, default=DECODER_STEPS)
    parser.add_argument("--denoiser_steps", type=int, default=DenoiserTraining.steps)
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--checkpointing_steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
