"""Train the network that finds scratches, on clean photos that scratches are drawn on.

    python -m silo train-scratches --train_data_dir PHOTOS... --output_dir OUT

What is left to do is timed first, and the time it will take printed. It resumes from its newest
checkpoint; the result is OUT/scratches, with what it finds on held-out photos in its config.json.
"""

import argparse
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from operators.pretrained import write_files
from silo.allocation import keep_freed_memory
from silo.command_line import CommandParser
from silo.data import PhotoFile, list_photos, random_crop, to_tensor
from silo.devices import pick_device
from silo.scratches.drawing import draw_marks
from silo.scratches.network import ScratchNet
from silo.training import checkpoints
from silo.training.cost import Stage, estimate
from silo.training.loop import TrainingLoop
from silo.training.options import add_run, check_above_zero
from silo.training.pictures import spread

LARGEST_SCALE = 2.5  # of a photo that is enlarged, as scans are that show no detail of a pixel
AVERAGE_DECAY = 0.998
HELD_OUT_MEASURED = 100


@dataclass(frozen=True)
class ScratchTraining:
    """What decides the network, but for the pictures."""

    steps: int = 2400
    batch: int = 12
    crop: int = 192
    learning_rate: float = 6e-3
    seed: int = 0


def train_scratches(
    photos: list[PhotoFile],
    settings: ScratchTraining,
    output: Path,
    *,
    device: torch.device,
    checkpointing_steps: int,
) -> ScratchNet:
    """Train, resuming from the newest checkpoint in `output`; returns the averaged weights.

    Args:
        photos: to draw on.
        settings: see there.
        output: folder of the checkpoints.
        device: where to train.
        checkpointing_steps: how many steps lie between two checkpoints.
    """
    torch.manual_seed(settings.seed)
    network = ScratchNet().to(device)
    loop = TrainingLoop(
        network,
        output,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        decay=AVERAGE_DECAY,
        seed=settings.seed,
        checkpointing_steps=checkpointing_steps,
        matrices=network.inner_convolutions(),
    )
    for generator in loop:
        picks = torch.randint(len(photos), (settings.batch,), generator=generator).tolist()
        pairs = [_example(photos[index], settings.crop, generator) for index in picks]
        pictures, marks = (torch.stack(parts).to(device) for parts in zip(*pairs, strict=True))
        loop.update(_losses(loop.model(pictures), marks))
    return loop.average


@torch.no_grad()
def measure_scratches(
    network: ScratchNet, photos: list[PhotoFile], crop: int, device: torch.device
) -> dict[str, float]:
    """What share of the marks' pixels is found, and how much of what is found are marks.

    With `clean_share`, that of pixels that are found in photos without a mark.
    """
    counts = torch.zeros(3)
    clean: list[float] = []
    for index, photo in enumerate(photos):
        generator = torch.Generator().manual_seed(index)
        picture, marks = _example(photo, crop, generator)
        found = network(picture[None].to(device))[0].cpu() > 0
        if marks.any():
            counts += torch.tensor(
                [float((found * marks).sum()), float(marks.sum()), float(found.sum())]
            )
        else:
            clean.append(float(found.float().mean()))
    both, drawn, found_in_all = counts.tolist()
    return {
        "recall": both / max(drawn, 1),
        "precision": both / max(found_in_all, 1),
        "clean_share": sum(clean) / max(len(clean), 1),
    }


def main(argv: list[str] | None = None) -> int:
    """Say what it will take, then train; returns the exit code."""
    arguments = _parser().parse_args(argv)
    check_above_zero(arguments, ("steps", "checkpointing_steps"))
    device = pick_device(arguments.device)
    keep_freed_memory()
    output: Path = arguments.output_dir
    photos = list_photos(arguments.train_data_dir, "train")
    held_out = spread(list_photos(arguments.train_data_dir, "held_out"), HELD_OUT_MEASURED)
    settings = ScratchTraining(steps=arguments.steps, seed=arguments.seed)

    def train(steps: int, folder: Path) -> ScratchNet:
        return train_scratches(
            photos,
            replace(settings, steps=steps),
            folder,
            device=device,
            checkpointing_steps=arguments.checkpointing_steps,
        )

    left = settings.steps - checkpoints.steps_done(output / "network")
    print(f"{len(photos)} pictures to train on, {len(held_out)} held out")
    print(f"What is left:\n{estimate([Stage('network', left, 'step', train)])}", flush=True)
    network = train(settings.steps, output / "network")
    measured = measure_scratches(network, held_out, settings.crop, device)
    config: dict[str, Any] = {"training": asdict(settings), "held_out": measured}
    write_files(output / "scratches", config, network.state_dict(), torch.float16)
    print(f"The network lies in {output / 'scratches'}: {measured}")
    return 0


def _example(file: PhotoFile, crop: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A photo (3, crop, crop) in [-1, 1] with marks on it, and these: 1 in (1, crop, crop)."""
    random = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
    photo = file.load(crop)
    scale = random.uniform(1, LARGEST_SCALE)
    part = random_crop(photo, max(round(crop / scale), 1), generator)
    picture = Image.fromarray(part).resize((crop, crop), Image.Resampling.BICUBIC)
    marked, seen = draw_marks(np.asarray(picture) / 255, random)
    pixels = to_tensor(np.rint(marked * 255).astype(np.uint8))
    return pixels, torch.from_numpy(seen)[None].float()


def _losses(log_odds: Tensor, marks: Tensor) -> dict[str, Tensor]:
    """Cross entropy, and what the overlap lacks (Milletari et al., V-Net, 2016): marks are rare."""
    found = log_odds.sigmoid()
    overlap = 2 * (found * marks).sum() / (found.square().sum() + marks.sum()).clamp(min=1)
    return {
        "cross_entropy": F.binary_cross_entropy_with_logits(log_odds, marks),
        "overlap": 0.2 * (1 - overlap),
    }


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m silo train-scratches", description=__doc__)
    parser.add_argument(
        "--train_data_dir", type=Path, nargs="+", required=True, help="folders, or of tars"
    )
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="its folder scratches will be the result"
    )
    steps = "in all; %(default)s by default"
    parser.add_argument("--steps", type=int, default=ScratchTraining.steps, help=steps)
    add_run(parser)
    return parser
