"""Times what a restoration is made of, on one prior and one device: a table or JSON.

    python -m silo bench --prior sd15-random --device cuda --json

The cases take turns, so that a machine that slows down slows them all; each figure is a median.
Seconds an image are those of its parts, by the number of steps: for PSLD its 1,000, for ReSample
its 500 with all of its 33 optimisations at full length, which is the most that it can take.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from operators.convolutional import CompactCNN, PaperCNN
from operators.degradation import Degradation
from operators.latent import LatentOperator
from operators.readout import ReadoutOperator
from silo.allocation import keep_freed_memory
from silo.command_line import CommandParser
from silo.components import Components
from silo.devices import (
    describe_device,
    dtype_name,
    generators,
    peak_memory,
    pick_device,
    pick_dtype,
    reset_peak_memory,
)
from silo.prior import LatentPrior
from silo.request import PRESETS, Preset
from silo.samplers import SAMPLERS, Problem
from silo.samplers.fast import PROBES, SETTLING
from silo.schedule import spaced

RANDOM_SD15 = "sd15-random"
TRAINING_BATCH = 8
PSLD_STEPS = 1000
# ReSample (arXiv 2307.08123) as published: see `resample_seconds`.
RESAMPLE_STEPS, RESAMPLE_TRAVEL = 500, 5
PIXEL_EVENTS, PIXEL_ITERATIONS = 17, 2000
LATENT_EVENTS, LATENT_ITERATIONS = 17, 500  # the one after the last step included
PEERS = ("ldps", "gml-dps", "psld")
FIRST_STEP = ", first step"  # of silo-fast, which tries on w how it has to correct
Seconds = Mapping[str, float]


def main(argv: list[str] | None = None) -> int:
    """Run the bench; returns the exit code."""
    arguments = _parser().parse_args(argv)
    keep_freed_memory()
    device = pick_device(arguments.device)
    dtype = pick_dtype(device, arguments.dtype)
    if arguments.prior == RANDOM_SD15:
        prior = random_sd15(device, dtype)
    else:
        prior = LatentPrior.load(arguments.prior, device=device, dtype=dtype)
    timed = cases(prior, arguments.size or prior.native_size)
    memory = peaks(timed, device)
    rounds = measure(timed, arguments.repetitions, device)
    report = {
        "prior": prior.name,
        "device": describe_device(device),
        "dtype": dtype_name(dtype),
        "size": arguments.size or prior.native_size,
        "repetitions": arguments.repetitions,
        **summarise(rounds),
        "peak_memory_bytes": memory,
    }
    print(json.dumps(report, indent=1) if arguments.json else table(report))
    return 0


def random_sd15(device: torch.device, dtype: torch.dtype) -> LatentPrior:
    """Stable Diffusion 1.5's architecture with random weights, which takes as long as trained."""
    with torch.device(device):
        unet: Any = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        vae: Any = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
            up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
            block_out_channels=(128, 256, 512, 512),  # pyright: ignore[reportArgumentType]
            layers_per_block=2,
            sample_size=512,
        )
        text_encoder: Any = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
            )
        )
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    components = Components(
        vae=vae.to(dtype),
        unet=unet.to(dtype),
        text_encoder=text_encoder.to(dtype),
        tokenizer=CLIPTokenizer(vocab=words, merges=[], model_max_length=77),
        scheduler_config={
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
        },
    )
    return LatentPrior(components, name=RANDOM_SD15, device=device)


def cases(prior: LatentPrior, size: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name: each call does it once, on one picture of `size` pixels."""
    device = prior.device
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, size, size, generator=generator).to(device) * 2 - 1
    side = size // prior.scale_factor
    latent = torch.randn(1, prior.latent_channels, side, side, generator=generator).to(device)
    degradation = Degradation("gaussian_blur")
    schedule = spaced(prior.alphas_cumprod, PSLD_STEPS)
    prompt = prior.embed("")

    def problem(operator: LatentOperator | None) -> Problem:
        return Problem(prior, operator, degradation, picture, latent, None, 0.01, prompt)

    def step(sampler: str, operator: LatentOperator | None, **own: Any) -> Callable[[], object]:
        def forever() -> Iterator[object]:
            while True:
                yield from SAMPLERS[sampler].sample(
                    problem(operator), schedule, generators=generators(0, 1), **own
                )

        steps = forever()
        return lambda: next(steps)

    def first_step(sampler: str, operator: LatentOperator, **own: Any) -> Callable[[], object]:
        task = problem(operator)
        return lambda: next(
            SAMPLERS[sampler].sample(task, schedule, generators=generators(0, 1), **own)
        )

    no_gradient = torch.no_grad()
    found: dict[str, Callable[[], object]] = {
        "denoiser": no_gradient(lambda: prior.predict(latent, 500, prompt)),
        "encode": no_gradient(lambda: prior.encode(picture)),
        "decode": no_gradient(lambda: prior.decode(latent)),
        "encode_batch": no_gradient(
            lambda: prior.encode(picture.expand(TRAINING_BATCH, -1, -1, -1))
        ),
    }
    for operator in operators(prior, side):
        found[f"silo/{operator.architecture}"] = step("silo", operator, eta=0.0)
        if not operator.needs_features:
            for name in ("silo-jacobian-free", "silo-fast"):
                found[f"{name}/{operator.architecture}"] = step(name, operator, eta=1.0)
            first = f"silo-fast/{operator.architecture}{FIRST_STEP}"
            found[first] = first_step("silo-fast", operator, eta=1.0)
    for name in PEERS:
        found[name] = step(name, None, **SAMPLERS[name].published("gaussian_blur", PSLD_STEPS))
    own = {**SAMPLERS["resample"].published("gaussian_blur", PSLD_STEPS), "interval": PSLD_STEPS}
    found["resample"] = step("resample", None, **own)  # without an optimisation

    def misfit(image: Tensor) -> Tensor:
        return (degradation.operator().forward(image) - picture).square().mean()

    found["pixel_iteration"] = _with_gradient(misfit, picture)
    found["latent_iteration"] = _with_gradient(lambda z: misfit(prior.decode(z)), latent)
    found["operator_training_step"] = _training_step(prior.latent_channels, side, device)
    return found


def operators(prior: LatentPrior, side: int) -> list[LatentOperator]:
    """One operator of each architecture, of random weights, for latents of `side`."""
    channels, width = prior.latent_channels, prior.embedding_dim
    found = [
        CompactCNN(channels, scale=prior.scale_factor),
        PaperCNN(channels, side, width),
        ReadoutOperator(prior.feature_channels, channels, width),
    ]
    return [operator.requires_grad_(False).eval().to(prior.device) for operator in found]


def peaks(cases: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, int]:
    """The most memory that each case takes, bytes, networks included, where that can be told.

    Each runs once, and is warm thereafter.
    """
    found: dict[str, int] = {}
    for name, run in cases.items():
        bounded = reset_peak_memory(device)
        run()
        if bounded:
            found[name] = peak_memory(device)
    return found


def measure(
    cases: Mapping[str, Callable[[], object]], repetitions: int, device: torch.device
) -> list[Seconds]:
    """The seconds of each case, which has run before, in rounds in which each has its turn."""
    rounds: list[Seconds] = []
    for _ in range(repetitions):
        taken: dict[str, float] = {}
        for name, run in cases.items():
            _synchronise(device)
            started = time.perf_counter()
            run()
            _synchronise(device)
            taken[name] = time.perf_counter() - started
        rounds.append(taken)
    return rounds


def summarise(rounds: Sequence[Seconds]) -> dict[str, Any]:
    """What follows from the rounds: milliseconds, seconds an image, rates and ratios, all medians.

    Ratios are taken within a round: a machine that grows slower meanwhile does not change them.
    Without the cache of latents, each sample of an operator's training is encoded twice, x and
    A(x), in every step that reads it.
    """
    seconds = {name: median(each[name] for each in rounds) for name in rounds[0]}
    images, in_rounds = _image_seconds(seconds), [_image_seconds(each) for each in rounds]
    steps = [name for name in seconds if "/" in name or name in (*PEERS, "resample")]
    training, encoding = seconds["operator_training_step"], seconds["encode_batch"]
    bare = [PRESETS["quick"].steps * each["denoiser"] for each in rounds]
    sampling = [_preset_seconds(each, PRESETS["quick"]) for each in rounds]
    whole = [each["quick"] for each in in_rounds]
    return {
        "milliseconds": {name: 1000 * value for name, value in seconds.items()},
        "seconds_an_image": images,
        "step_over_denoiser": {
            name: median(each[name] / each["denoiser"] for each in rounds) for name in steps
        },
        "quick_over_its_denoiser_evaluations": {
            "sampling": _median_ratio(sampling, bare),
            "with_encoding_and_decoding": _median_ratio(whole, bare),
        },
        **{
            f"times_faster_than_{peer}": {
                name: median(each[peer] / each[name] for each in in_rounds) for name in PRESETS
            }
            for peer in ("psld", "resample")
        },
        "operator_training_steps_a_second": 1 / training,
        "operator_training_samples_a_second": {
            "latents_cached": TRAINING_BATCH / training,
            "latents_not_cached": TRAINING_BATCH / (training + 2 * encoding),
        },
        "encoded_pictures_a_second": TRAINING_BATCH / encoding,
    }


def _median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return median(a / b for a, b in zip(above, below, strict=True))


def _image_seconds(seconds: Seconds) -> dict[str, float]:
    """The seconds an image takes, encoding and decoding included, by preset and by peer."""
    around = seconds["encode"] + seconds["decode"]
    images = {name: around + _preset_seconds(seconds, preset) for name, preset in PRESETS.items()}
    images |= {name: around + PSLD_STEPS * seconds[name] for name in PEERS}
    return {**images, "resample": around + resample_seconds(seconds)}


def _preset_seconds(seconds: Seconds, preset: Preset) -> float:
    """Sampling alone; of `silo-fast` with the evaluations of H_theta that not every step makes."""
    step = f"{preset.sampler}/compact_cnn"
    first = seconds.get(step + FIRST_STEP, seconds[step])
    evaluation = (first - seconds[step]) / (PROBES + 1)
    settling = sum((k + 0.5) / preset.steps >= SETTLING for k in range(preset.steps - 1))
    return first + (preset.steps - 1) * seconds[step] + settling * evaluation


def resample_seconds(seconds: Seconds) -> float:
    """ReSample's sampling as published, with every optimisation at full length.

    500 steps with the gradient through denoiser and decoder; after 33 of them 5 more
    denoiser evaluations, and 2,000 iterations in pixels and an encoding (17 of the 33), or 500
    through the decoder (16, and once after the last step).
    """
    travels = PIXEL_EVENTS + LATENT_EVENTS - 1
    return (
        RESAMPLE_STEPS * seconds["resample"]
        + travels * RESAMPLE_TRAVEL * seconds["denoiser"]
        + PIXEL_EVENTS * (PIXEL_ITERATIONS * seconds["pixel_iteration"] + seconds["encode"])
        + LATENT_EVENTS * LATENT_ITERATIONS * seconds["latent_iteration"]
    )


def table(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        f"{report['prior']} at {report['size']} pixels, {report['dtype']}, on {report['device']}; "
        f"medians of {report['repetitions']}; peak memory with the networks",
        "",
        "| part | ms | x the denoiser | peak, MB |",
        "|---|---|---|---|",
    ]
    ratios, memory = report["step_over_denoiser"], report["peak_memory_bytes"]
    for name, value in report["milliseconds"].items():
        ratio = f"{ratios[name]:.2f}" if name in ratios else ""
        peak = f"{memory[name] / 1e6:.0f}" if name in memory else ""
        lines.append(f"| {name} | {value:.1f} | {ratio} | {peak} |")
    lines += ["", "| image | seconds | PSLD takes | ReSample takes |", "|---|---|---|---|"]
    for name, value in report["seconds_an_image"].items():
        psld = report["times_faster_than_psld"].get(name)
        resample = report["times_faster_than_resample"].get(name)
        times = "" if psld is None else f"{psld:.0f}x"
        lines.append(
            f"| {name} | {value:.2f} | {times} | {'' if resample is None else f'{resample:.0f}x'} |"
        )
    bare = report["quick_over_its_denoiser_evaluations"]
    samples = report["operator_training_samples_a_second"]
    lines += [
        "",
        f"quick: {bare['sampling']:.2f}x its denoiser evaluations, "
        f"{bare['with_encoding_and_decoding']:.2f}x with encoding and decoding. Operator training: "
        f"{report['operator_training_steps_a_second']:.1f} steps a second, "
        f"{samples['latents_cached']:.1f} samples a second with cached latents, "
        f"{samples['latents_not_cached']:.1f} without; encoding: "
        f"{report['encoded_pictures_a_second']:.1f} pictures a second.",
    ]
    return "\n".join(lines)


def _with_gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Callable[[], object]:
    def run() -> object:
        variable = at.detach().requires_grad_()
        return torch.autograd.grad(loss(variable), variable)

    return run


def _training_step(channels: int, side: int, device: torch.device) -> Callable[[], object]:
    """One update of a CompactCNN on cached latents, as `silo.train_operator` does."""
    model = CompactCNN(channels).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    z = torch.randn(TRAINING_BATCH, channels, side, side, device=device)
    sigma = torch.full((TRAINING_BATCH,), 0.01, device=device)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.l1_loss(model(z, sigma), z + 1).backward()
        optimizer.step()

    return run


def _synchronise(device: torch.device) -> None:
    """Wait for what was launched on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m silo bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--prior", default="tiny", help=f"{RANDOM_SD15}, tiny, sd15, rv51, a folder or a Hub id"
    )
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--size", type=int, help="side of the picture; the prior's own by default")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="JSON in place of a table")
    return parser
