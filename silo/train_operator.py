"""Train latent operators H_theta for tasks of the catalog, or for a degradation of one's own.

    python -m silo train-operator --task T... --train_data_dir PHOTOS... --output_dir OUT
    python -m silo train-operator --degradation FILE.py:FUNCTION --train_data_dir PHOTOS ...
    python -m silo train-operator --task T --dataset_name ORG/NAME@COMMIT ...     (of the Hub)

Pictures are encoded once, clean and degraded; training then reads latents alone. The operators lie
in OUT/<task>, beside grids of restored pictures. A run that was interrupted goes on from its newest
checkpoint. Several processes share the work: accelerate launch --multi_gpu -m silo.train_operator
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from operators.catalog import TASKS, Task, get_task, own_task
from silo.allocation import keep_freed_memory
from silo.command_line import CommandParser
from silo.data import PhotoFile, list_photos
from silo.devices import pick_device
from silo.errors import BadRequest
from silo.hub import push_operator, require_online
from silo.hub_commit import check_rights
from silo.hub_dataset import fetch_dataset
from silo.lpips import find_weights
from silo.model_card import NO_LICENSE
from silo.own_degradation import load_degradation
from silo.prior import LatentPrior
from silo.training.operator_presets import PRESETS, OperatorTraining
from silo.training.operator_run import OperatorRun, RunOptions
from silo.training.options import add_mixed_precision, check_above_zero, pick_training_dtype
from silo.training.pictures import Augmentation, TrainingPictures, spread
from silo.training.processes import Processes
from silo.training.tracking import check_tracker, tracked

HELD_OUT_PICTURES = 256
LOGS_FOLDER = "logs"
ABOVE_ZERO = (
    "resolution",
    "pictures",
    "noise_draws",
    "max_train_steps",
    "train_batch_size",
    "learning_rate",
    "eta",
    "validation_steps",
    "checkpointing_steps",
    "checkpoints_total_limit",
)


def main(argv: list[str] | None = None) -> int:
    """Train an operator for each task; returns the exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.push_to_hub and not arguments.hub_model_id:
        raise BadRequest("--push_to_hub needs --hub_model_id ORG/NAME.")
    check_above_zero(arguments, ABOVE_ZERO)
    _check_validation(arguments)
    tasks, source = _tasks(arguments)
    if arguments.push_to_hub and len(tasks) > 1:
        raise BadRequest("--push_to_hub publishes one operator: name one --task.")
    if arguments.report_to is not None:
        check_tracker(arguments.report_to)
    if arguments.push_to_hub:
        require_online(f"push to {arguments.hub_model_id}")
        check_rights(arguments.hub_model_id)
    dataset = fetch_dataset(arguments.dataset_name) if arguments.dataset_name else None
    folders = arguments.train_data_dir if dataset is None else dataset.folders
    photos = {split: list_photos(folders, split) for split in ("train", "held_out")}
    keep_freed_memory()
    device = pick_device(arguments.device)
    processes = Processes(cpu=device.type == "cpu")
    if processes.count > 1:
        device = processes.device
    dtype = pick_training_dtype(device, arguments.mixed_precision)
    prior = LatentPrior.load(arguments.pretrained_model_name_or_path, device=device, dtype=dtype)
    settings = _settings(arguments, prior)
    processes.share(settings.batch)
    pictures, options = _pictures(photos, settings), _options(arguments)
    runs = [
        OperatorRun(task, prior, pictures, settings, options, processes, dtype, source, dataset)
        for task in tasks
    ]
    for run in runs:  # all of them, before the first one begins
        run.check()
    processes.wait()
    for run in runs:
        report_to = arguments.report_to if processes.is_main else None
        logs = arguments.output_dir / LOGS_FOLDER
        with tracked(report_to, f"silo-{run.task.name}", logs, asdict(settings)) as tracker:
            folder = run.train(tracker)
        if arguments.push_to_hub and processes.is_main:
            print(push_operator(folder, arguments.hub_model_id))
            if arguments.license is None:
                print(NO_LICENSE, file=sys.stderr)
    processes.leave()
    return 0


def _check_validation(arguments: argparse.Namespace) -> None:
    if arguments.num_validation_images < 0:
        count = arguments.num_validation_images
        raise BadRequest(f"--num_validation_images must be 0 or more, not {count}.")
    find_weights("alex")  # a folder without any is told now, not at the first validation


def _tasks(arguments: argparse.Namespace) -> tuple[list[Task], str | None]:
    """What to train for, and the source of a degradation that is a function."""
    if arguments.degradation is None:
        if not arguments.task:
            raise BadRequest("name a --task of the catalog, or a --degradation of your own.")
        return [get_task(name) for name in arguments.task], None
    own = load_degradation(arguments.degradation)
    names = arguments.task or [own.name]
    if len(names) > 1:
        raise BadRequest("--degradation describes one task: give it one name with --task.")
    return [own_task(names[0], own.degradation)], own.source


def _settings(arguments: argparse.Namespace, prior: LatentPrior) -> OperatorTraining:
    """The preset's settings, but for what the command line says."""
    asked = {
        "resolution": arguments.resolution or prior.native_size,
        "pictures": arguments.pictures,
        "noise_draws": arguments.noise_draws,
        "steps": arguments.max_train_steps,
        "batch": arguments.train_batch_size,
        "learning_rate": arguments.learning_rate,
        "schedule": arguments.lr_scheduler,
        "seed": arguments.seed,
    }
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    settings = replace(PRESETS[arguments.preset], **given)
    if given["resolution"] % prior.size_multiple:
        raise BadRequest(f"--resolution must be a multiple of {prior.size_multiple}.")
    return settings


def _options(arguments: argparse.Namespace) -> RunOptions:
    return RunOptions(
        arguments.output_dir,
        arguments.preset,
        latent_cache_dir=arguments.latent_cache_dir,
        latent_space=arguments.latent_space,
        eta=arguments.eta,
        license=arguments.license,
        validation_steps=arguments.validation_steps,
        num_validation_images=arguments.num_validation_images,
        checkpointing_steps=arguments.checkpointing_steps,
        checkpoints_total_limit=arguments.checkpoints_total_limit,
        resume=arguments.resume_from_checkpoint == "latest",
    )


def _pictures(
    photos: dict[str, list[PhotoFile]], settings: OperatorTraining
) -> dict[str, TrainingPictures]:
    """The crops of either side of the split; held-out ones are neither blurred nor turned."""
    assert settings.resolution is not None, "the prior has a native size"
    held_out = spread(photos["held_out"], HELD_OUT_PICTURES)
    plain = TrainingPictures(
        tuple(held_out), len(held_out), settings.resolution, Augmentation(), settings.seed
    )
    train = replace(
        plain,
        files=tuple(photos["train"]),
        count=settings.pictures,
        augmentation=settings.augmentation,
    )
    return {"train": train, "held_out": plain}


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m silo train-operator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--task", nargs="+", metavar="TASK", help=f"{', '.join(TASKS)}, or a name of your own")
    add(
        "--degradation", metavar="FILE", help="your own: FILE.py:FUNCTION (it is run), or FILE.json"
    )
    presets = "; ".join(
        f"{name}: {p.architecture}, {p.pictures:,} crops, {p.steps:,} steps of {p.batch}"
        for name, p in PRESETS.items()
    )
    add(
        "--preset",
        choices=tuple(PRESETS),
        default="fast",
        help=f"what the other options have by default; {presets}",
    )
    add("--pretrained_model_name_or_path", default="tiny", help="the prior")
    add("--latent_space", metavar="PRIOR", help="the prior it is for, if another of the same space")
    pictures = parser.add_mutually_exclusive_group(required=True)
    pictures.add_argument("--train_data_dir", type=Path, nargs="+", help="folders, or of tars")
    pictures.add_argument(
        "--dataset_name",
        metavar="ORG/NAME[@REVISION]",
        help="pictures, tar shards or Parquet tables on the Hub",
    )
    add("--output_dir", type=Path, required=True, help="its folder TASK will be the operator")
    add("--latent_cache_dir", type=Path, help="of the latents; OUTPUT_DIR/.latents by default")
    add("--resolution", type=int, help="of the crops; the prior's native size by default")
    add("--pictures", type=int, help="how many crops to encode")
    add("--noise_draws", type=int, help="how many measurements of each crop to encode")
    add("--max_train_steps", type=int, help="in all, those of a run that is resumed included")
    add("--train_batch_size", type=int, help="of all processes together")
    add("--learning_rate", type=float, help="the highest")
    add("--lr_scheduler", choices=("cosine", "constant"), help="cosine warms up, then falls")
    add_mixed_precision(parser)
    add("--eta", type=float, help="consistency scale to recommend at 1,000 steps")
    often = "after so many steps each; %(default)s by default"
    add(
        "--validation_steps",
        type=int,
        default=RunOptions.validation_steps,
        help=f"measure on held-out pictures {often}",
    )
    add(
        "--num_validation_images",
        type=int,
        default=RunOptions.num_validation_images,
        help="restored at each validation, and an example for the card; %(default)s by default",
    )
    add(
        "--checkpointing_steps",
        type=int,
        default=RunOptions.checkpointing_steps,
        help=f"save {often}",
    )
    add(
        "--checkpoints_total_limit",
        type=int,
        default=RunOptions.checkpoints_total_limit,
        help="kept; %(default)s by default",
    )
    add(
        "--resume_from_checkpoint",
        choices=("latest", "none"),
        default="latest",
        help="latest, the default, or none: begin again",
    )
    add("--report_to", metavar="TRACKER", help="tensorboard, wandb or another of accelerate's")
    add("--push_to_hub", action="store_true", help="publish the operator when it is trained")
    add("--hub_model_id", metavar="ORG/NAME", help="its repository")
    add("--license", metavar="ID", help="of the operator, for its card, such as cc-by-4.0")
    add("--seed", type=int, help="of everything that is drawn")
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    return parser


if __name__ == "__main__":
    from silo.__main__ import main as run_command

    raise SystemExit(run_command(["train-operator", *sys.argv[1:]]))
