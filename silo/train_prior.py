"""Train a small latent diffusion prior from random weights: autoencoder, denoiser, decoder.

    python -m silo train-prior --train_data_dir PHOTOS... --output_dir OUT

What is left to do is timed first, and the time it will take printed. Each part resumes from its
newest checkpoint, if pictures and autoencoder stay as they were when the denoiser was begun; the
result is a diffusers pipeline in OUT/pipeline.
"""

import argparse
import json
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

from operators.files import write_whole
from silo import prior_files
from silo.allocation import keep_freed_memory
from silo.command_line import CommandParser
from silo.data import Photo, iterate_photos, pictures_fingerprint
from silo.devices import pick_device
from silo.errors import BadRequest
from silo.fingerprint import network_fingerprint
from silo.folders import make_folder
from silo.lpips import LPIPS, find_weights
from silo.training import checkpoints
from silo.training.autoencoder import AutoencoderTraining, build_autoencoder, train_autoencoder
from silo.training.cost import Stage, estimate
from silo.training.denoiser import (
    DenoiserTraining,
    TextToLatent,
    build_scheduler,
    encode_photos,
    latents_source,
    train_denoiser,
)
from silo.training.options import (
    add_mixed_precision,
    add_run,
    check_above_zero,
    pick_training_dtype,
)
from silo.training.widening import widen_from

RESOLUTION = 256
HELD_OUT_MEASURED = 40
STEPS = ("autoencoder_steps", "denoiser_steps", "decoder_steps")
PARTS = ("autoencoder", "denoiser", "decoder")  # folders of checkpoints
START_NAME = "start.json"
DECODER_STEPS, DECODER_LEARNING_RATE, DECODER_LPIPS_WEIGHT = 900, 5e-4, 1.0


class StartingPrior(NamedTuple):
    """The trained parts of a prior that another one begins with."""

    autoencoder: AutoencoderTiny
    denoiser: TextToLatent
    tokenizer: CLIPTokenizer

    @property
    def latent_channels(self) -> int:
        """Channels of its latents."""
        return self.autoencoder.config["latent_channels"]

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the weights of its networks."""
        networks = {"autoencoder": self.autoencoder, "denoiser": self.denoiser}
        return {name: network_fingerprint(network) for name, network in networks.items()}


@dataclass(frozen=True)
class PriorTraining:
    """All that decides a prior.

    Attributes:
        photos: what it is trained on.
        held_out: what the autoencoder is measured on.
        joint: the autoencoder's training, encoder and decoder together.
        denoising: the denoiser's and the text encoder's.
        alone: the training of the decoder by itself, last.
        lpips: the perceptual part of the autoencoder's loss, or None.
        start: a prior whose weights it begins with, or None.
        output: folder of the checkpoints.
        device: where to train.
        dtype: of the autocast.
        checkpointing_steps: how many steps lie between two checkpoints.
    """

    photos: list[Photo]
    held_out: list[Photo]
    joint: AutoencoderTraining
    denoising: DenoiserTraining
    alone: AutoencoderTraining
    lpips: LPIPS | None
    start: StartingPrior | None
    output: Path
    device: torch.device
    dtype: torch.dtype
    checkpointing_steps: int

    def check(self) -> None:
        """Make sure that what `output` holds can be gone on with; writes nothing.

        Raises:
            BadRequest: it began otherwise, or its later parts have other latents.
        """
        done = {part: checkpoints.steps_done(self.output / part) for part in PARTS}
        start = self.output / START_NAME
        if any(done.values()) and start.is_file() and json.loads(start.read_text()) != self._begun:
            raise BadRequest(
                f"{self.output} holds checkpoints that began with another prior, seed or number of "
                "latent channels: give the same --pretrained_model_name_or_path, --seed and "
                "--latent_channels, or choose another --output_dir."
            )
        source = latents_source(self._cache)
        if (done["denoiser"] or done["decoder"]) and source and self._will_encode(source):
            raise BadRequest(
                f"{self.output} holds a denoiser or decoder for latents of other pictures, or by "
                "an autoencoder of fewer steps: give the same --train_data_dir and "
                f"--autoencoder_steps {done['autoencoder']}, or choose another --output_dir."
            )

    def run(self) -> tuple[AutoencoderTiny, TextToLatent, CLIPTokenizer, dict[str, Any]]:
        """Train all parts, resuming; returns them and the records of their losses."""
        output = self.output
        write_whole(output / START_NAME, json.dumps(self._begun, indent=1).encode())
        autoencoder, joint = self._train_codec(
            self.joint, output / "autoencoder", self.held_out, self._start_of_codec
        )
        latents = self._encode(self.photos, autoencoder, self._cache)
        denoiser, tokenizer, denoising = self._train_denoiser(
            latents, self.denoising, output / "denoiser"
        )
        autoencoder, alone = self._train_codec(
            self.alone, output / "decoder", self.held_out, autoencoder
        )
        record = {"autoencoder": joint, "denoiser": denoising, "decoder": alone}
        return autoencoder, denoiser, tokenizer, record

    def stages(self) -> list[Stage]:
        """What is left to do, to be timed; on random latents and with untrained networks."""
        untrained = build_autoencoder(self.joint)
        cast(Any, untrained).to(self.device)  # its stub knows a dtype alone
        side = self.denoising.latent_size
        noise = [[torch.randn(self.joint.latent_channels, side, side)] for _ in self.photos]
        return [
            Stage(
                "autoencoder",
                self.joint.steps - checkpoints.steps_done(self.output / "autoencoder"),
                "step",
                lambda n, folder: self._train_codec(
                    replace(self.joint, steps=n), folder, self.held_out[:1], self._start_of_codec
                ),
            ),
            Stage(
                "encoding",
                len(self.photos) if self._will_encode(latents_source(self._cache)) else 0,
                "picture",
                lambda n, file: self._encode(self.photos[:n], untrained, file),
            ),
            Stage(
                "denoiser",
                self.denoising.steps - checkpoints.steps_done(self.output / "denoiser"),
                "step",
                lambda n, folder: self._train_denoiser(
                    noise, replace(self.denoising, steps=n), folder
                ),
            ),
            Stage(
                "decoder",
                self.alone.steps - checkpoints.steps_done(self.output / "decoder"),
                "step",
                lambda n, folder: self._train_codec(
                    replace(self.alone, steps=n), folder, self.held_out[:1], untrained
                ),
            ),
        ]

    @property
    def _start_of_codec(self) -> AutoencoderTiny | None:
        return None if self.start is None else self.start.autoencoder

    @property
    def _cache(self) -> Path:
        return self.output / "latents.safetensors"

    @cached_property
    def _begun(self) -> dict[str, Any]:
        """What training begins with, as it is kept in `output`."""
        return {
            "prior": None if self.start is None else self.start.fingerprints(),
            "latent_channels": self.joint.latent_channels,
            "seed": self.joint.seed,
        }

    def _will_encode(self, source: dict[str, str]) -> bool:
        """Whether latents of `source` are not those that the denoiser is to be trained on."""
        will_train = self.joint.steps > checkpoints.steps_done(self.output / "autoencoder")
        return will_train or source.get("pictures") != pictures_fingerprint(self.photos)

    def _train_codec(
        self,
        settings: AutoencoderTraining,
        folder: Path,
        measured: list[Photo],
        start: AutoencoderTiny | None,
    ) -> tuple[AutoencoderTiny, dict[str, Any]]:
        return train_autoencoder(
            self.photos,
            measured,
            settings,
            folder,
            start=start,
            lpips=self.lpips,
            device=self.device,
            dtype=self.dtype,
            checkpointing_steps=self.checkpointing_steps,
        )

    def _encode(
        self, photos: list[Photo], autoencoder: AutoencoderTiny, file: Path
    ) -> list[list[Tensor]]:
        return encode_photos(photos, autoencoder, file, self.device, self.dtype)

    def _train_denoiser(
        self, latents: list[list[Tensor]], settings: DenoiserTraining, folder: Path
    ) -> tuple[TextToLatent, CLIPTokenizer, dict[str, Any]]:
        return train_denoiser(
            latents,
            [photo.caption for photo in self.photos],
            settings,
            folder,
            start=None if self.start is None else (self.start.denoiser, self.start.tokenizer),
            device=self.device,
            dtype=self.dtype,
            checkpointing_steps=self.checkpointing_steps,
        )


def main(argv: list[str] | None = None) -> int:
    """Say what it will take, then train; returns the exit code."""
    arguments = _parser().parse_args(argv)
    check_above_zero(arguments, ("latent_channels", "checkpointing_steps"))
    check_above_zero(arguments, [name for name in STEPS if not _is_kept(arguments, name)])
    device = pick_device(arguments.device)
    dtype = pick_training_dtype(device, arguments.mixed_precision)
    keep_freed_memory()
    output: Path = arguments.output_dir
    make_folder(output)

    photos = list(iterate_photos(arguments.train_data_dir, "train", RESOLUTION))
    held_out = list(iterate_photos(arguments.train_data_dir, "held_out", RESOLUTION))
    print(f"{len(photos)} pictures to train on, {len(held_out)} held out", flush=True)
    weights = find_weights("alex", arguments.metric_weights)
    denoising = DenoiserTraining(steps=arguments.denoiser_steps, seed=arguments.seed)
    name, channels = arguments.pretrained_model_name_or_path, arguments.latent_channels
    start = None if name is None else load_start(name, denoising)
    if channels is None:
        channels = AutoencoderTraining.latent_channels if start is None else start.latent_channels
    if start is not None and channels > start.latent_channels and not arguments.autoencoder_steps:
        raise BadRequest(
            f"{channels} latent channels, for the {start.latent_channels} of {name}, need an "
            "autoencoder that is trained: give --autoencoder_steps above 0."
        )
    joint = AutoencoderTraining(
        latent_channels=channels, steps=arguments.autoencoder_steps, seed=arguments.seed
    )
    training = PriorTraining(
        photos=photos,
        held_out=held_out[:HELD_OUT_MEASURED],
        joint=joint,
        denoising=denoising,
        alone=replace(
            joint,
            steps=arguments.decoder_steps,
            learning_rate=DECODER_LEARNING_RATE,
            lpips_weight=DECODER_LPIPS_WEIGHT,
            decoder_alone=True,
        ),
        lpips=LPIPS("alex", weights).to(device) if weights else None,
        start=start,
        output=output,
        device=device,
        dtype=dtype,
        checkpointing_steps=arguments.checkpointing_steps,
    )
    training.check()
    print(f"What is left, by the time of a few steps:\n{estimate(training.stages())}", flush=True)
    autoencoder, denoiser, tokenizer, record = training.run()
    export(autoencoder, denoiser, tokenizer, output / "pipeline")
    (output / "training.json").write_text(json.dumps(record, indent=1))
    print(f"The prior lies in {output / 'pipeline'}; its record in {output / 'training.json'}.")
    return 0


def _is_kept(arguments: argparse.Namespace, steps: str) -> bool:
    """Whether a part is not trained, but stays as it is in the prior to begin with."""
    return arguments.pretrained_model_name_or_path is not None and getattr(arguments, steps) == 0


def load_start(name: str, settings: DenoiserTraining) -> StartingPrior:
    """The parts of the prior that `--pretrained_model_name_or_path` names.

    Raises:
        BadRequest: its networks are not of the kind that is trained here.
        UnknownPrior: there is no such prior.
    """
    folder, _ = prior_files.locate(name, None, torch.float32)
    parts = prior_files.load_components(folder, torch.float32)
    denoiser = TextToLatent(settings, parts.unet.config.in_channels, parts.tokenizer)
    widen_from(denoiser.unet, parts.unet)
    widen_from(denoiser.text_encoder, parts.text_encoder)
    return StartingPrior(parts.vae, denoiser, parts.tokenizer)


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
    parser = CommandParser(prog="python -m silo train-prior", description=__doc__)
    parser.add_argument(
        "--train_data_dir", type=Path, nargs="+", required=True, help="folders, or of tars"
    )
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="its folder pipeline will be the prior"
    )
    parser.add_argument(
        "--metric_weights", type=Path, help="folder with LPIPS weights; without: L1 alone"
    )
    parser.add_argument(
        "--pretrained_model_name_or_path",
        metavar="PRIOR",
        help="a prior trained by this command to begin with, of no more latent channels; 0 steps "
        "keep a part as it is there; without: random weights",
    )
    parser.add_argument(
        "--latent_channels",
        type=int,
        help=f"those of PRIOR by default, else {AutoencoderTraining.latent_channels}",
    )
    steps = "in all; %(default)s by default"
    parser.add_argument(
        "--autoencoder_steps", type=int, default=AutoencoderTraining.steps, help=steps
    )
    parser.add_argument("--decoder_steps", type=int, default=DECODER_STEPS, help=steps)
    parser.add_argument("--denoiser_steps", type=int, default=DenoiserTraining.steps, help=steps)
    add_mixed_precision(parser)
    add_run(parser)
    return parser
