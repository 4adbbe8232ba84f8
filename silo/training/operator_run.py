"""The training of one operator, from the checks before anything is encoded to its model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from operators.catalog import Task, published_prior_name
from operators.convolutional import PaperCNN
from operators.files import write_whole
from operators.latent import LatentOperator
from silo.errors import BadCheckpoint, BadRequest
from silo.folders import make_folder
from silo.hub import CARD_NAME, EXAMPLE_NAME
from silo.hub_dataset import HubDataset
from silo.model_card import render_operator_card
from silo.own_degradation import check_degradation
from silo.prior import LatentPrior, PromptEmbedding
from silo.training.example_picture import write_example
from silo.training.latent_cache import LatentCache, LatentPairs
from silo.training.log import TrainingLog
from silo.training.loop import TrainingLoop
from silo.training.operator_prediction import Noising, Predicted, draw_noising, predict
from silo.training.operator_presets import OperatorTraining, build_operator
from silo.training.pictures import TrainingPictures, spread
from silo.training.processes import Processes
from silo.training.tracking import Tracker
from silo.training.validation import Restorations, latent_errors

WORKING_FOLDER = ".training"
RECORD_NAME = "run.json"


@dataclass(frozen=True)
class RunOptions:
    """What does not decide an operator: where it goes, how it is watched, what its card says.

    Attributes:
        output_dir: its folder TASK will be the operator.
        preset: what its card calls the settings.
        latent_cache_dir: of the latents; None for `output_dir`/.latents.
        latent_space: the prior it is for, if another of the same latent space.
        eta: consistency scale to recommend at 1,000 steps; None for the task's.
        license: of the operator, for its card.
        validation_steps: measure on held-out pictures after so many steps each.
        num_validation_images: restored at each validation, and an example for the card.
        checkpointing_steps: save after so many steps each.
        checkpoints_total_limit: how many are kept.
        resume: whether to go on from the newest checkpoint.
    """

    output_dir: Path
    preset: str
    latent_cache_dir: Path | None = None
    latent_space: str | None = None
    eta: float | None = None
    license: str | None = None
    validation_steps: int = 500
    num_validation_images: int = 4
    checkpointing_steps: int = 200
    checkpoints_total_limit: int = 2
    resume: bool = True


@dataclass
class OperatorRun:
    """The training of one operator.

    Attributes:
        task: what degrades the pictures.
        prior: in whose latent space it works.
        pictures: the crops of either side of the split, "train" and "held_out".
        settings: what decides the operator, its resolution included.
        options: what does not.
        processes: those that train together.
        dtype: of the networks, and of the operator while it is trained.
        source: of the degradation, where it is a Python function.
        dataset: where the pictures come from, if from the Hub.
    """

    task: Task
    prior: LatentPrior
    pictures: Mapping[str, TrainingPictures]
    settings: OperatorTraining
    options: RunOptions
    processes: Processes
    dtype: torch.dtype
    source: str | None = None
    dataset: HubDataset | None = None

    def __post_init__(self) -> None:
        """Say which latents are needed; nothing is encoded yet."""
        output = self.options.output_dir
        self._folder = output / self.task.name
        self._working = output / WORKING_FOLDER / self.task.name
        self._latents_folder = self.options.latent_cache_dir or output / ".latents"
        self._cache, self._held_out = self._latents("train"), self._latents("held_out")

    def check(self) -> None:
        """Make sure that the run can be done, before hours are spent on it; writes nothing.

        Raises:
            BadCheckpoint: the output folder holds another run.
            BadDegradation: what degrades the pictures does not.
            BadRequest: the operator could not restore the pictures of the validation.
            OperatorError: there is no such operator for this degradation.
        """
        operator, native = self._untrained(), self.prior.native_size
        check_degradation(self.task.degradation, self._cache.side)
        if self.options.num_validation_images and self._cache.side != native:
            check_degradation(self.task.degradation, native)
            if isinstance(operator, PaperCNN):
                raise BadRequest(
                    f"an operator of paper-cnn works at its --resolution alone and cannot restore "
                    f"at {native} pixels: leave --resolution out, or pass "
                    "--num_validation_images 0."
                )
        self._check_checkpoints()

    def train(self, tracker: Tracker) -> Path:
        """Encode, then train, validating now and then; returns the folder of the operator.

        Raises:
            CannotSave: the folders cannot be made.
            NumericalError: the loss or its gradient is not finite; the last checkpoint is kept.
            Stopped: a signal asked to stop; the same call goes on from there.
        """
        options, settings, prior = self.options, self.settings, self.prior
        if self.processes.is_main:
            self._begin()
        self.processes.wait()
        self._cache.encode()
        self._held_out.encode()
        self._say_encoded()

        operator = self._untrained().to(prior.device)
        prompt = prior.embed("")
        loop = TrainingLoop(
            operator,
            self._working,
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            decay=settings.average_decay,
            seed=settings.seed,
            checkpointing_steps=options.checkpointing_steps,
            schedule=settings.schedule,
            gradient_norm=settings.gradient_norm,
            checkpoints_total_limit=options.checkpoints_total_limit,
            processes=self.processes,
            report=partial(tracker.log, "train"),
        )
        log = TrainingLog(self._working / "validation.jsonl")
        first, share = loop.step, self.processes.share(settings.batch)
        for generator in loop:
            # The whole batch is drawn by every process, so that their number changes nothing.
            picks = torch.randint(len(self._cache), (settings.batch,), generator=generator)
            extra = self._noising(operator, settings.batch, generator)
            pairs = self._cache.pairs(picks[share]).to(prior.device)
            with torch.autocast(prior.device.type, self.dtype, self.dtype != torch.float32):
                predicted = predict(operator, prior, prompt, pairs, extra, share)
            loop.update({"l1": F.l1_loss(predicted.measured.float(), pairs.measured)})
            due = loop.step % options.validation_steps == 0 and loop.step < settings.steps
            if due and self.processes.is_main:
                self._validate(loop, prompt, log, tracker)
        self._say_trained(loop, first)
        if self.processes.is_main:
            errors, results = self._validate(loop, prompt, log, tracker)
            operator = self._described(loop, errors, results)
            operator.save_pretrained(self._folder, dtype=torch.float16)
            card = render_operator_card(operator, self._write_example(self._folder))
            write_whole(self._folder / CARD_NAME, card.encode())
            print(json.dumps({"task": self.task.name, **errors, **results}), flush=True)
        self.processes.wait()
        return self._folder

    def _untrained(self) -> LatentOperator:
        """The operator that training begins with, on the CPU."""
        torch.manual_seed(self.settings.seed)
        return build_operator(
            self.settings,
            self.prior,
            self._cache.side,
            mask=self.task.degradation.needs_mask,
        )

    def _noising(
        self, operator: LatentOperator, batch: int, generator: torch.Generator
    ) -> Noising | None:
        side, power = self._cache.side, self.settings.timestep_power
        return draw_noising(operator, self.prior, batch, side, generator, power=power)

    def _latents(self, split: str) -> LatentCache:
        return LatentCache(
            self._latents_folder,
            self.prior,
            self.pictures[split],
            self.task.degradation,
            name=f"{self.task.name}-{split}",
            noise_range=self.settings.noise_range,
            draws=self.settings.noise_draws if split == "train" else 1,
            processes=self.processes,
        )

    def _validate(
        self,
        loop: TrainingLoop[LatentOperator],
        prompt: PromptEmbedding,
        log: TrainingLog,
        tracker: Tracker,
    ) -> tuple[dict[str, float], dict[str, float | int | str]]:
        """Measure the averaged weights; returns errors on latents and of restorations."""
        prior, operator = self.prior, loop.average.eval()

        def held_out_prediction(pairs: LatentPairs, generator: torch.Generator) -> Predicted:
            extra = self._noising(operator, len(pairs.clean), generator)
            pairs = pairs.to(prior.device)
            return predict(operator, prior, prompt, pairs, extra, slice(None))

        errors = latent_errors(held_out_prediction, self._held_out)
        results: dict[str, float | int | str] = {}
        if self.options.num_validation_images:
            folder = self._working / "operator"
            self._described(loop, errors, {}).save_pretrained(folder)
            files = spread(self.pictures["held_out"].files, self.options.num_validation_images)
            grid = self.options.output_dir / f"{self.task.name}.step_{loop.step:06d}.png"
            results = Restorations(prior, self.task, files).run(folder, grid)
            tracker.show("validation/pictures", loop.step, grid)
        # Of the rest, the same is true at every step.
        curves = {name: value for name, value in results.items() if isinstance(value, float)}
        log.write(loop.step, {**errors, **curves})
        tracker.log("validation", loop.step, {**errors, **curves})
        return {name: round(value, 4) for name, value in errors.items()}, results

    def _write_example(self, folder: Path) -> str | None:
        """Write the card's picture, where a restoration with the operator's own prior is wanted."""
        path = folder / EXAMPLE_NAME
        path.unlink(missing_ok=True)  # of an earlier training
        if self.options.latent_space is not None or not self.options.num_validation_images:
            return None
        return write_example(path, self.prior, self.task, folder)

    def _described(
        self,
        loop: TrainingLoop[LatentOperator],
        errors: dict[str, float],
        results: dict[str, float | int | str],
    ) -> LatentOperator:
        """The averaged weights, with what they were trained for and how well as metadata."""
        operator, eta = loop.average, self.options.eta
        operator.metadata = {
            "task": self.task.name,
            "degradation": self.task.degradation.to_dict(),
            "prior": published_prior_name(self.options.latent_space or self.prior.name),
            "rmse": errors["rmse"],
            "eta": self.task.eta if eta is None else eta,
            "noise_range": list(self.settings.noise_range),
            "training": {
                **asdict(self.settings),
                "steps": loop.step,  # more than asked for, where a longer run was resumed
                "mixed_precision": "no" if self.dtype == torch.float32 else "bf16",
                "preset": self.options.preset,
                "photos": len(self.pictures["train"].files),
                **self._dataset_record(),
            },
            "errors": {name: round(value, 4) for name, value in errors.items()},
            "results": results,
        }
        if self.source is not None:
            operator.metadata["source"] = self.source
        if self.options.license is not None:
            operator.metadata["license"] = self.options.license
        if self.options.latent_space is not None:
            operator.metadata["trained_through"] = published_prior_name(self.prior.name)
        return operator

    def _dataset_record(self) -> dict[str, str]:
        if self.dataset is None:
            return {}
        return {"dataset_name": self.dataset.repo_id, "dataset_revision": self.dataset.commit}

    def _record(self) -> dict[str, Any]:
        """What checkpoints have to agree in, as it is read from JSON."""
        # A run may be continued beyond the steps it was begun with.
        settings = asdict(replace(self.settings, steps=0))
        return json.loads(json.dumps({"settings": settings, "latents": self._cache.key}))

    def _check_checkpoints(self) -> None:
        path, run = self._working / RECORD_NAME, self._record()
        if not self.options.resume or not path.is_file():
            return
        found = json.loads(path.read_text())
        if found != run:
            now, then = run["settings"], found["settings"]
            differing = [name for name, value in now.items() if then.get(name) != value]
            differing = differing or ["pictures, degradation, autoencoder or --mixed_precision"]
            raise BadCheckpoint(
                f"{self._working} holds the checkpoints of another run (other "
                f"{', '.join(differing)}): choose another --output_dir, or begin again with "
                "--resume_from_checkpoint none."
            )

    def _begin(self) -> None:
        """Make the folders, and say whose the checkpoints are."""
        if not self.options.resume:
            shutil.rmtree(self._working, ignore_errors=True)
        for folder in (self._working, self._latents_folder):
            make_folder(folder)
        path = self._working / RECORD_NAME
        if not path.is_file():
            write_whole(path, json.dumps(self._record(), indent=1).encode(), durable=True)

    def _say_encoded(self) -> None:
        cache = self._cache
        if self.processes.is_main:
            source = "latents from the cache"
            if cache.encoded:
                source = f"{cache.encoded / cache.seconds:.1f} pictures/s encoded"
            print(f"{len(cache)} pairs; {source}", flush=True)

    def _say_trained(self, loop: TrainingLoop[LatentOperator], first: int) -> None:
        if self.processes.is_main and loop.step > first:
            samples = (loop.step - first) * self.settings.batch
            print(f"{samples / loop.seconds:.1f} samples/s in training", flush=True)
