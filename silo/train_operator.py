"""Train compact operators H_theta for tasks of the catalog in the latent space of a prior.

    python -m silo train-operator --task T... --train_data_dir PHOTOS... --output_dir OUT

Each picture is encoded once, clean and degraded; training then reads latents alone. A run that was
interrupted resumes from its newest checkpoint. The operators lie in OUT/<task>.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from operators.blur import GaussianBlur
from operators.catalog import TASKS, Task, get_task
from operators.convolutional import CompactCNN
from operators.latent import LatentOperator
from silo.allocation import keep_freed_memory
from silo.data import Photo, iterate_photos, random_resized_crop
from silo.devices import pick_device, pick_dtype
from silo.model_card import render_operator_card
from silo.prior import LatentPrior
from silo.training_loop import TrainingLoop

NOISE_RANGE = (0.0, 0.05)
AVERAGE_DECAY = 0.995
# At high noise levels the clean estimate is a blurred picture, so H_theta must know such pictures.
BLURRED_RATE, BLUR_STD = 0.3, (0.5, 6.0)


@dataclass(frozen=True)
class OperatorTraining:
    """What decides an operator, but for the pictures, the task and the prior."""

    resolution: int = 256
    pictures: int = 2400
    steps: int = 1200
    batch: int = 8
    learning_rate: float = 2e-3
    seed: int = 0


@dataclass(frozen=True)
class LatentPairs:
    """Training examples of one task; `noise_sigma` (N,) in [0, 1] units.

    Attributes:
        clean: (N, C, h, w) E(x).
        measured: (N, C, h, w) E(A(x) + n).
        noise_sigma: (N,) the noise level of each.
        mask: (N, 1, H, W) bool, or None.
    """

    clean: Tensor
    measured: Tensor
    noise_sigma: Tensor
    mask: Tensor | None


def training_pictures(
    photos: list[Photo], count: int, resolution: int, seed: int, *, blurred_rate: float
) -> Tensor:
    """`count` random crops (N, 3, resolution, resolution) fp16 in [-1, 1], some of them blurred."""
    crops = torch.empty(count, 3, resolution, resolution, dtype=torch.float16)
    for index in range(count):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        crop = random_resized_crop(photos[index % len(photos)], resolution, generator)
        if torch.rand((), generator=generator) < blurred_rate:
            low, high = BLUR_STD
            std = low + (high - low) * float(torch.rand((), generator=generator))
            crop = GaussianBlur(kernel_size=2 * round(3 * std) + 1, std=std).forward(crop[None])[0]
        crops[index] = crop
    return crops


@torch.no_grad()
def encode(prior: LatentPrior, pictures: Tensor, title: str) -> Tensor:
    """E of pictures (N, 3, H, W): (N, C, h, w) fp16 on the CPU."""
    batches = tqdm(range(0, len(pictures), 8), desc=title, unit="batch")
    return torch.cat([prior.encode(pictures[i : i + 8].float()).half().cpu() for i in batches])


@torch.no_grad()
def make_pairs(
    prior: LatentPrior, pictures: Tensor, clean: Tensor, task: Task, seed: int
) -> LatentPairs:
    """Degrade and encode `pictures`, whose latents are `clean`, each with its own noise level."""
    operator = task.degradation.operator()
    measured, sigmas, masks = [], [], []
    for index in tqdm(range(len(pictures)), desc=task.name, unit="picture"):
        generator = torch.Generator().manual_seed((seed + 1) * 1_000_003 + index)
        picture = pictures[index : index + 1].float()
        low, high = NOISE_RANGE
        sigma = low + (high - low) * float(torch.rand((), generator=generator))
        mask = operator.draw_mask(picture.shape[-2], picture.shape[-1], generator)
        y = operator.forward(picture, mask)
        y = y + 2 * sigma * torch.randn(y.shape, generator=generator)
        measured.append(prior.encode(operator.to_full_size(y)).half().cpu())
        sigmas.append(sigma)
        if mask is not None:
            masks.append(mask.bool())
    mask = torch.cat(masks) if masks else None
    return LatentPairs(clean, torch.cat(measured), torch.tensor(sigmas), mask)


def train_operator(
    pairs: LatentPairs,
    settings: OperatorTraining,
    scale: int,
    output: Path,
    *,
    device: torch.device,
    checkpointing_steps: int,
) -> LatentOperator:
    """Train a CompactCNN with L1 on the pairs, resuming; returns the averaged weights."""
    torch.manual_seed(settings.seed)
    model = CompactCNN(pairs.clean.shape[1], mask=pairs.mask is not None, scale=scale).to(device)
    loop = TrainingLoop(
        model,
        output,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        decay=AVERAGE_DECAY,
        seed=settings.seed,
        checkpointing_steps=checkpointing_steps,
    )
    for generator in loop:
        picks = torch.randint(len(pairs.clean), (settings.batch,), generator=generator)
        target = pairs.measured[picks].float().to(device)
        loop.update({"l1": F.l1_loss(_predict(model, pairs, picks, device), target)})
    return loop.average.eval()


@torch.no_grad()
def validate(
    operator: LatentOperator, pairs: LatentPairs, device: torch.device
) -> dict[str, float]:
    """Held-out errors per latent element: L1 and RMSE of H_theta, and L1 of the identity."""
    every = torch.arange(len(pairs.clean))
    predicted = torch.cat([_predict(operator, pairs, i, device).cpu() for i in every.split(8)])
    error = predicted - pairs.measured.float()
    identity = F.l1_loss(pairs.clean.float(), pairs.measured.float())
    return {
        "l1": float(error.abs().mean()),
        "l1_identity": float(identity),
        "rmse": float(error.square().mean().sqrt()),
    }


def _predict(
    operator: LatentOperator, pairs: LatentPairs, picks: Tensor, device: torch.device
) -> Tensor:
    mask = None if pairs.mask is None else pairs.mask[picks].float().to(device)
    sigma = pairs.noise_sigma[picks].to(device)
    return operator(pairs.clean[picks].float().to(device), sigma, mask=mask)


def main(argv: list[str] | None = None) -> int:
    """Train an operator for each task; returns the exit code."""
    arguments = _parser().parse_args(argv)
    tasks = [get_task(name) for name in arguments.task]
    keep_freed_memory()
    device = pick_device(arguments.device)
    dtype = torch.bfloat16 if arguments.mixed_precision == "bf16" else pick_dtype(device)
    prior = LatentPrior.load(arguments.pretrained_model_name_or_path, device=device, dtype=dtype)
    settings = OperatorTraining(
        resolution=arguments.resolution,
        pictures=arguments.pictures,
        steps=arguments.max_train_steps,
        batch=arguments.train_batch_size,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    folders = arguments.train_data_dir
    photos = list(iterate_photos(folders, "train", settings.resolution))
    held_out = list(iterate_photos(folders, "held_out", settings.resolution))
    pictures = training_pictures(
        photos, settings.pictures, settings.resolution, settings.seed, blurred_rate=BLURRED_RATE
    )
    unseen = training_pictures(
        held_out, len(held_out), settings.resolution, settings.seed, blurred_rate=0.0
    )
    clean, unseen_clean = encode(prior, pictures, "train"), encode(prior, unseen, "held out")
    for task in tasks:
        folder: Path = arguments.output_dir / task.name
        pairs = make_pairs(prior, pictures, clean, task, settings.seed)
        unseen_pairs = make_pairs(prior, unseen, unseen_clean, task, settings.seed)
        operator = train_operator(
            pairs,
            settings,
            prior.scale_factor,
            arguments.output_dir / ".training" / task.name,
            device=device,
            checkpointing_steps=arguments.checkpointing_steps,
        )
        errors = validate(operator, unseen_pairs, device)
        operator.metadata = {
            "task": task.name,
            "degradation": task.degradation.to_dict(),
            "prior": prior.name,
            "rmse": errors["rmse"],
            "eta": task.eta if arguments.eta is None else arguments.eta,
            "noise_range": list(NOISE_RANGE),
            "training": asdict(settings),
            "errors": {name: round(value, 4) for name, value in errors.items()},
        }
        operator.save_pretrained(folder, dtype=torch.float16)
        (folder / "README.md").write_text(render_operator_card(operator, len(photos)))
        print(json.dumps({"task": task.name, **operator.metadata["errors"]}), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m silo train-operator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = OperatorTraining()
    parser.add_argument("--task", nargs="+", required=True, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--pretrained_model_name_or_path", default="tiny", help="the prior")
    parser.add_argument("--train_data_dir", type=Path, nargs="+", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--resolution", type=int, default=defaults.resolution)
    parser.add_argument(
        "--pictures", type=int, default=defaults.pictures, help="how many crops to encode"
    )
    parser.add_argument("--max_train_steps", type=int, default=defaults.steps)
    parser.add_argument("--train_batch_size", type=int, default=defaults.batch)
    parser.add_argument("--learning_rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--eta", type=float, help="consistency scale to recommend at 1,000 steps")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--checkpointing_steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
