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
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from operators.catalog import TASKS, Task, get_task, own_task, published_prior_name
from operators.latent import LatentOperator
from silo.allocation import keep_freed_memory
from silo.checkpoints import sync
from silo.data import PhotoFile, list_photos
from silo.devices import pick_device, pick_dtype
from silo.errors import BadCheckpoint, BadRequest
from silo.example_picture import write_example
from silo.hub import CARD_NAME, EXAMPLE_NAME, push_operator, require_online
from silo.hub_commit import check_rights
from silo.hub_dataset import HubDataset, fetch_dataset
from silo.latent_cache import LatentCache, LatentPairs
from silo.model_card import NO_LICENSE, render_operator_card
from silo.operator_presets import PRESETS, OperatorTraining, build_operator
from silo.own_degradation import check_degradation, load_degradation
from silo.prior import LatentPrior, PromptEmbedding
from silo.processes import Processes
from silo.schedule import noised
from silo.tracking import Tracker, check_tracker, tracked
from silo.training_log import TrainingLog
from silo.training_loop import TrainingLoop
from silo.training_pictures import Augmentation, TrainingPictures
from silo.validation import Restorations, latent_errors

HELD_OUT_PICTURES = 256
WORKING_FOLDER = ".training"
LOGS_FOLDER = "logs"


def main(argv: list[str] | None = None) -> int:
    """Train an operator for each task; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.push_to_hub and not arguments.hub_model_id:
        raise BadRequest("--push_to_hub needs --hub_model_id ORG/NAME.")
    tasks, source = _tasks(arguments)
    if arguments.push_to_hub and len(tasks) > 1:
        raise BadRequest("--push_to_hub publishes one operator: name one --task.")
    if arguments.report_to is not None:
        check_tracker(arguments.report_to)
    if arguments.push_to_hub:
        require_online(f"push to {arguments.hub_model_id}")
        check_rights(arguments.hub_model_id)
    dataset = fetch_dataset(arguments.dataset_name) if arguments.dataset_name else None
    keep_freed_memory()
    device = pick_device(arguments.device)
    processes = Processes(cpu=device.type == "cpu")
    if processes.count > 1:
        device = processes.device
    dtype = torch.bfloat16 if arguments.mixed_precision == "bf16" else pick_dtype(device)
    prior = LatentPrior.load(arguments.pretrained_model_name_or_path, device=device, dtype=dtype)
    settings = _settings(arguments, prior)
    processes.share(settings.batch)
    for task in tasks:
        check_degradation(task.degradation, prior.native_size)
        report_to = arguments.report_to if processes.is_main else None
        logs = arguments.output_dir / LOGS_FOLDER
        with tracked(report_to, f"silo-{task.name}", logs, asdict(settings)) as tracker:
            folder = _Run(
                arguments, dataset, prior, task, source, settings, processes, dtype, tracker
            ).train()
        if arguments.push_to_hub and processes.is_main:
            print(push_operator(folder, arguments.hub_model_id))
            if arguments.license is None:
                print(NO_LICENSE, file=sys.stderr)
    processes.leave()
    return 0


@dataclass
class _Run:
    """The training of one operator.

    Attributes:
        arguments: of the command line, for what does not decide the operator.
        dataset: the pictures, where they come from the Hub.
        prior: in whose latent space it works.
        task: what degrades the pictures.
        source: of the degradation, where it is a Python function.
        settings: what decides the operator.
        processes: those that train together.
        dtype: of the networks, and of the operator while it is trained.
        tracker: is told how it goes.
    """

    arguments: argparse.Namespace
    dataset: HubDataset | None
    prior: LatentPrior
    task: Task
    source: str | None
    settings: OperatorTraining
    processes: Processes
    dtype: torch.dtype
    tracker: Tracker

    def train(self) -> Path:
        """Train, validating now and then; returns the folder of the operator."""
        arguments, settings, prior = self.arguments, self.settings, self.prior
        working = arguments.output_dir / WORKING_FOLDER / self.task.name
        cache, held_out = self._cache("train"), self._cache("held_out")
        self._say_encoded(cache)
        with self._main_first():
            self._check_checkpoints(working, cache.key)

        torch.manual_seed(settings.seed)
        operator = build_operator(
            settings.architecture,
            prior,
            cache.side,
            mask=self.task.degradation.needs_mask,
        ).to(prior.device)
        prompt = prior.embed("")
        loop = TrainingLoop(
            operator,
            working,
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            decay=settings.average_decay,
            seed=settings.seed,
            checkpointing_steps=arguments.checkpointing_steps,
            schedule=settings.schedule,
            gradient_norm=settings.gradient_norm,
            checkpoints_total_limit=arguments.checkpoints_total_limit,
            processes=self.processes,
            report=partial(self.tracker.log, "train"),
        )
        log = TrainingLog(working / "validation.jsonl")
        first, share = loop.step, self.processes.share(settings.batch)
        for generator in loop:
            # The whole batch is drawn by every process, so that their number changes nothing.
            picks = torch.randint(len(cache), (settings.batch,), generator=generator)
            extra = draw_noising(operator, prior, settings.batch, cache.side, generator)
            pairs = cache.pairs(picks[share]).to(prior.device)
            with torch.autocast(prior.device.type, self.dtype, self.dtype != torch.float32):
                predicted = predict(operator, prior, prompt, pairs, extra, share)
            loop.update({"l1": F.l1_loss(predicted.float(), pairs.measured)})
            if loop.step % arguments.validation_steps == 0 and self.processes.is_main:
                self._validate(loop, held_out, prompt, log)
        self._say_trained(loop, first)
        folder: Path = arguments.output_dir / self.task.name
        if self.processes.is_main:
            errors, results = self._validate(loop, held_out, prompt, log)
            operator = self._described(loop.average, errors, results)
            operator.save_pretrained(folder, dtype=torch.float16)
            card = render_operator_card(operator, self._write_example(folder))
            (folder / CARD_NAME).write_text(card)
            print(json.dumps({"task": self.task.name, **errors, **results}), flush=True)
        self.processes.wait()
        return folder

    def _files(self, split: str) -> list[PhotoFile]:
        """The pictures of one side of the split."""
        dataset, own = self.dataset, self.arguments.train_data_dir
        return list_photos(own if dataset is None else dataset.folders, split)

    def _cache(self, split: str) -> LatentCache:
        """The pairs of one side of the split; held-out ones are neither blurred nor turned."""
        arguments, settings = self.arguments, self.settings
        files = self._files(split)
        training = split == "train"
        pictures = TrainingPictures(
            tuple(files if training else _spread(files, HELD_OUT_PICTURES)),
            settings.pictures if training else min(len(files), HELD_OUT_PICTURES),
            settings.resolution or self.prior.native_size,
            settings.augmentation if training else Augmentation(),
            settings.seed,
        )
        return LatentCache(
            arguments.latent_cache_dir or arguments.output_dir / ".latents",
            self.prior,
            pictures,
            self.task.degradation,
            name=f"{self.task.name}-{split}",
            noise_range=settings.noise_range,
            draws=settings.noise_draws if training else 1,
            processes=self.processes,
        )

    def _validate(
        self,
        loop: TrainingLoop[LatentOperator],
        held_out: LatentCache,
        prompt: PromptEmbedding,
        log: TrainingLog,
    ) -> tuple[dict[str, float], dict[str, float | int]]:
        """Measure the averaged weights; returns errors on latents and of restorations."""
        prior, operator = self.prior, loop.average.eval()

        def held_out_prediction(pairs: LatentPairs, generator: torch.Generator) -> Tensor:
            extra = draw_noising(operator, prior, len(pairs.clean), held_out.side, generator)
            pairs = pairs.to(prior.device)
            return predict(operator, prior, prompt, pairs, extra, slice(None))

        errors = latent_errors(held_out_prediction, held_out)
        results: dict[str, float | int] = {}
        if self.arguments.num_validation_images:
            working = self.arguments.output_dir / WORKING_FOLDER / self.task.name
            self._described(operator, errors, {}).save_pretrained(working / "operator")
            files = _spread(self._files("held_out"), self.arguments.num_validation_images)
            grid = self.arguments.output_dir / f"{self.task.name}.step_{loop.step:06d}.png"
            grid.parent.mkdir(parents=True, exist_ok=True)
            results = Restorations(prior, self.task, files).run(working / "operator", grid)
            self.tracker.show("validation/pictures", loop.step, grid)
        log.write(loop.step, {**errors, **results})
        self.tracker.log("validation", loop.step, {**errors, **results})
        return {name: round(value, 4) for name, value in errors.items()}, results

    def _write_example(self, folder: Path) -> str | None:
        """Write the card's picture, where a restoration with the operator's own prior is wanted."""
        path = folder / EXAMPLE_NAME
        path.unlink(missing_ok=True)  # of an earlier training
        if self.arguments.latent_space is not None or not self.arguments.num_validation_images:
            return None
        return write_example(path, self.prior, self.task, folder)

    def _described(
        self, operator: LatentOperator, errors: dict[str, float], results: dict[str, float | int]
    ) -> LatentOperator:
        """The operator, with what it was trained for and how well as its metadata."""
        eta = self.arguments.eta
        operator.metadata = {
            "task": self.task.name,
            "degradation": self.task.degradation.to_dict(),
            "prior": published_prior_name(self.arguments.latent_space or self.prior.name),
            "rmse": errors["rmse"],
            "eta": self.task.eta if eta is None else eta,
            "noise_range": list(self.settings.noise_range),
            "training": {
                **asdict(self.settings),
                "preset": self.arguments.preset,
                "photos": len(self._files("train")),
                **self._dataset_record(),
            },
            "errors": {name: round(value, 4) for name, value in errors.items()},
            "results": results,
        }
        if self.source is not None:
            operator.metadata["source"] = self.source
        if self.arguments.license is not None:
            operator.metadata["license"] = self.arguments.license
        if self.arguments.latent_space is not None:
            operator.metadata["trained_through"] = published_prior_name(self.prior.name)
        return operator

    def _dataset_record(self) -> dict[str, str]:
        if self.dataset is None:
            return {}
        return {"dataset_name": self.dataset.repo_id, "dataset_revision": self.dataset.commit}

    def _check_checkpoints(self, working: Path, cache_key: str) -> None:
        """Begin the run in a folder, or make sure that its checkpoints belong to the same one.

        Raises:
            BadCheckpoint: they belong to another run.
        """
        # A run may be continued beyond the steps it was begun with.
        settings = asdict(replace(self.settings, steps=0))
        run = json.loads(json.dumps({"settings": settings, "latents": cache_key}))
        record = working / "run.json"
        if self.arguments.resume_from_checkpoint == "none":
            shutil.rmtree(working, ignore_errors=True)
        elif record.is_file() and (found := json.loads(record.read_text())) != run:
            now, then = run["settings"], found["settings"]
            differing = [name for name, value in now.items() if then.get(name) != value]
            differing = differing or ["pictures, degradation or autoencoder"]
            raise BadCheckpoint(
                f"{working} holds the checkpoints of another run (other "
                f"{', '.join(differing)}): choose another --output_dir, or begin again with "
                "--resume_from_checkpoint none."
            )
        working.mkdir(parents=True, exist_ok=True)
        if not record.is_file():
            record.write_text(json.dumps(run, indent=1))
            sync(record)

    @contextmanager
    def _main_first(self) -> Iterator[None]:
        """Let the main process go through a block before the others."""
        if not self.processes.is_main:
            self.processes.wait()
        yield
        if self.processes.is_main:
            self.processes.wait()

    def _say_encoded(self, cache: LatentCache) -> None:
        if self.processes.is_main:
            source = "latents from the cache"
            if cache.encoded:
                source = f"{cache.encoded / cache.seconds:.1f} pictures/s encoded"
            print(f"{len(cache)} pairs; {source}", flush=True)

    def _say_trained(self, loop: TrainingLoop[LatentOperator], first: int) -> None:
        if self.processes.is_main and loop.step > first:
            samples = (loop.step - first) * self.settings.batch
            print(f"{samples / loop.seconds:.1f} samples/s, validation included", flush=True)


@dataclass(frozen=True)
class Noising:
    """What the denoiser is given, to read its features: (B,) timesteps and (B, C, h, w) noise."""

    timesteps: Tensor
    noise: Tensor


def draw_noising(
    operator: LatentOperator, prior: LatentPrior, batch: int, side: int, generator: torch.Generator
) -> Noising | None:
    """A timestep from 1 to T - 1 and noise for each sample; None for operators without features."""
    if not operator.needs_features:
        return None
    size = side // prior.scale_factor
    timesteps = torch.randint(1, len(prior.alphas_cumprod), (batch,), generator=generator)
    noise = torch.randn(batch, prior.latent_channels, size, size, generator=generator)
    return Noising(timesteps, noise)


def predict(
    operator: LatentOperator,
    prior: LatentPrior,
    prompt: PromptEmbedding,
    pairs: LatentPairs,
    noising: Noising | None,
    share: slice,
) -> Tensor:
    """H_theta of the clean latents (B, C, h, w), on the prior's device.

    Args:
        operator: H_theta.
        prior: whose denoiser it may read.
        prompt: the empty one.
        pairs: the samples, on the prior's device.
        noising: for the whole batch; None for an operator without features.
        share: which of the batch `pairs` are.
    """
    features = time_embedding = None
    if noising is not None:
        timesteps = noising.timesteps[share]
        alpha_bar = prior.alphas_cumprod[timesteps].float().view(-1, 1, 1, 1).to(prior.device)
        noisy = noised(pairs.clean, noising.noise[share].to(prior.device), alpha_bar)
        with torch.no_grad():
            prediction = prior.predict(noisy, timesteps.to(prior.device), prompt, features=True)
        features, time_embedding = prediction.features, prediction.time_embedding
    with_embedding = operator.needs_sigma_embedding
    return operator(
        pairs.clean,
        pairs.noise_sigma,
        mask=pairs.mask,
        features=features,
        time_embedding=time_embedding,
        sigma_embedding=prior.sigma_embedding(pairs.noise_sigma) if with_embedding else None,
    )


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
    if not names[0].replace("_", "").replace("-", "").isalnum():
        raise BadRequest(f"{names[0]!r} is no name for a task: use letters, digits, _ and -.")
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
    for name, value in given.items():
        if name not in ("schedule", "seed") and value <= 0:
            raise BadRequest(f"{name.replace('_', ' ')} must be above 0, not {value}.")
    settings = replace(PRESETS[arguments.preset], **given)
    if given["resolution"] % prior.size_multiple:
        raise BadRequest(f"--resolution must be a multiple of {prior.size_multiple}.")
    return settings


def _spread(files: list[Any], count: int) -> list[Any]:
    """At most `count` of `files`, evenly spaced, so that every folder has its share."""
    count = min(count, len(files))
    return [files[index * len(files) // count] for index in range(count)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m silo train-operator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--task", nargs="+", metavar="TASK", help=f"{', '.join(TASKS)}, or a name of your own")
    add(
        "--degradation", metavar="FILE", help="your own: FILE.py:FUNCTION (it is run), or FILE.json"
    )
    add("--preset", choices=tuple(PRESETS), default="fast", help="settings; other options win")
    add("--pretrained_model_name_or_path", default="tiny", help="the prior")
    add("--latent_space", metavar="PRIOR", help="the prior it is for, if another of the same space")
    pictures = parser.add_mutually_exclusive_group(required=True)
    pictures.add_argument("--train_data_dir", type=Path, nargs="+", help="folders, or of tars")
    pictures.add_argument(
        "--dataset_name", metavar="ORG/NAME[@REVISION]", help="pictures or tar shards on the Hub"
    )
    add("--output_dir", type=Path, required=True)
    add("--latent_cache_dir", type=Path, help="of the latents; OUTPUT_DIR/.latents by default")
    add("--resolution", type=int, help="of the crops; the prior's native size by default")
    add("--pictures", type=int, help="how many crops to encode")
    add("--noise_draws", type=int, help="how many measurements of each crop to encode")
    add("--max_train_steps", type=int)
    add("--train_batch_size", type=int, help="of all processes together")
    add("--learning_rate", type=float)
    add("--lr_scheduler", choices=("cosine", "constant"))
    add("--mixed_precision", choices=("no", "bf16"), default="bf16")
    add("--eta", type=float, help="consistency scale to recommend at 1,000 steps")
    add("--validation_steps", type=int, default=500)
    add("--num_validation_images", type=int, default=4, help="restored at each validation")
    add("--checkpointing_steps", type=int, default=200)
    add("--checkpoints_total_limit", type=int, default=2)
    add("--resume_from_checkpoint", choices=("latest", "none"), default="latest")
    add("--report_to", metavar="TRACKER", help="tensorboard, wandb or another of accelerate's")
    add("--push_to_hub", action="store_true", help="publish the operator when it is trained")
    add("--hub_model_id", metavar="ORG/NAME", help="its repository")
    add("--license", metavar="ID", help="of the operator, for its card, such as cc-by-4.0")
    add("--seed", type=int)
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    return parser


if __name__ == "__main__":
    from silo.__main__ import main as run_command

    raise SystemExit(run_command(["train-operator", *sys.argv[1:]]))
