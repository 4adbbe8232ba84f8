"""What all training runs share: learning rate, averaging, the log, checkpoints and resuming."""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from silo.errors import NumericalError, Stopped
from silo.training import checkpoints
from silo.training.interruption import Interruption, signals_postponed
from silo.training.log import TrainingLog
from silo.training.muon import MuonAdamW

if TYPE_CHECKING:  # it imports accelerate, which takes seconds
    from silo.training.processes import Processes

GRADIENT_NORM = 1.0
LOG_EVERY = 50
_LOG = "log."  # in the names of a checkpoint's tensors

Model = TypeVar("Model", bound=nn.Module)


class TrainingLoop(Generic[Model]):
    """Steps of AdamW with an average of the weights, resumed from `output`, by several processes.

    SIGTERM and Ctrl-C are answered at the end of a step, with a checkpoint.

        loop = TrainingLoop(model, output, steps=..., ...)
        for generator in loop:
            loop.update({"loss": ...})
        loop.average

    Attributes:
        model: what is trained, in place.
        average: the exponential moving average of its weights: the result.
        log: the losses.
        step: how many steps are done.
        seconds: that this process has spent in steps, each from its generator to its update.
    """

    def __init__(
        self,
        model: Model,
        output: Path,
        *,
        steps: int,
        learning_rate: float,
        decay: float,
        seed: int,
        checkpointing_steps: int,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        matrices: Sequence[Tensor] = (),
        schedule: str = "cosine",
        gradient_norm: float | None = GRADIENT_NORM,
        checkpoints_total_limit: int = 2,
        processes: Processes | None = None,
        report: Callable[[int, dict[str, float]], None] | None = None,
    ) -> None:
        """Load the newest checkpoint in `output`, if any.

        Args:
            model: its parameters that require gradients are trained.
            output: folder of the checkpoints and the log.
            steps: how many there are in all.
            learning_rate: the highest.
            decay: of the average.
            seed: whence, with the number of the step, all randomness of a step follows.
            checkpointing_steps: how many lie between two checkpoints.
            betas: AdamW's.
            weight_decay: AdamW's.
            matrices: weights that Muon trains in place of AdamW (see `silo.training.muon`).
            schedule: of the learning rate, "cosine" (see `warmup_cosine`) or "constant".
            gradient_norm: longer gradients are shortened to it; None for never.
            checkpoints_total_limit: how many checkpoints are kept.
            processes: those that train together, each with its share of every batch.
            report: also told what goes to the log, with the step and the learning rate.
        """
        self.model = model
        self.average: Model = copy.deepcopy(model).requires_grad_(False)
        self.log = TrainingLog(output / "log.jsonl")
        self._output, self._steps, self._decay, self._seed = output, steps, decay, seed
        self._learning_rate, self._checkpointing_steps = learning_rate, checkpointing_steps
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = (
            MuonAdamW(self._trained, matrices, learning_rate, betas, weight_decay)
            if matrices
            else torch.optim.AdamW(
                self._trained, lr=learning_rate, betas=betas, weight_decay=weight_decay
            )
        )
        self._schedule, self._gradient_norm = schedule, gradient_norm
        self._keep_checkpoints = checkpoints_total_limit
        self._processes, self._report = processes, report
        self._is_main = processes is None or processes.is_main
        self.step, self.seconds = 0, 0.0
        self._started = time.monotonic()
        self._sums: dict[str, float] = {}
        self._interruption = Interruption()
        self._stopping = False
        if found := checkpoints.latest(output):
            self.step, tensors = found
            checkpoints.restore(tensors, self.model, self.average, self._optimizer)
            sums = {key: value for key, value in tensors.items() if key.startswith(_LOG)}
            self._sums = {key.removeprefix(_LOG): float(value) for key, value in sums.items()}

    def __iter__(self) -> Iterator[torch.Generator]:
        """Yield the random generator of each step that is left; call `update` once in each.

        Raises:
            Stopped: a signal asked to stop; a checkpoint of the last step is kept.
        """
        bar = tqdm(
            total=self._steps,
            initial=self.step,
            unit="step",
            desc=self._output.name,
            disable=not self._is_main,
        )
        with bar, signals_postponed() as self._interruption:
            while self.step < self._steps:
                self._started = time.monotonic()
                # From (seed, step) alone: a resumed run repeats an unbroken one.
                yield torch.Generator().manual_seed(self._seed * 1_000_003 + self.step)
                if self._is_main:
                    self._keep()
                bar.update()
                if self._stopping and self.step < self._steps:
                    raise Stopped(
                        f"stopped after step {self.step}; the same command goes on from there.",
                        self._interruption.signal_number or signal.SIGTERM,
                    )

    def update(self, losses: dict[str, Tensor]) -> None:
        """One optimizer step on the sum of `losses`.

        Raises:
            NumericalError: the loss or its gradient is not finite; the weights and the last
                checkpoint stay as they are.
        """
        loss = torch.stack(list(losses.values())).sum()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self._processes is not None:
            self._average_gradients(self._processes)
        longest = math.inf if self._gradient_norm is None else self._gradient_norm
        norm = nn.utils.clip_grad_norm_(self._trained, longest)
        # The processes have to agree on whether to go on: one that left would keep the others
        # waiting for its gradients.
        asked_to_stop = loss.new_tensor(float(self._interruption.signal_number is not None))
        shared = torch.stack([*(value.detach() for value in losses.values()), norm, asked_to_stop])
        if self._processes is not None:
            self._processes.average_(shared)
        # Read all at once, since a GPU is waited for each time.
        *values, norm_value, stopping = shared.tolist()
        self._stopping = stopping > 0
        if not all(math.isfinite(value) for value in (*values, norm_value)):
            what = "gradient" if all(math.isfinite(value) for value in values) else "loss"
            raise NumericalError(
                f"the {what} is not finite at step {self.step + 1}; the last checkpoint is kept: "
                "resume with a lower learning rate."
            )
        factor = 1.0 if self._schedule == "constant" else warmup_cosine(self.step, self._steps)
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate * factor
        self._optimizer.step()
        checkpoints.update_average(self.average, self.model, self.step, self._decay)
        for name, value in zip(losses, values, strict=True):
            self._sums[name] = self._sums.get(name, 0.0) + value / LOG_EVERY
        self.step += 1
        self.seconds += time.monotonic() - self._started

    def _average_gradients(self, processes: Processes) -> None:
        gradients = [p.grad for p in self._trained if p.grad is not None]
        flat = processes.average_(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(
            gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def _keep(self) -> None:
        if self.step % LOG_EVERY == 0:
            self.log.write(self.step, self._sums)
            if self._report is not None:
                learning_rate = self._optimizer.param_groups[0]["lr"]
                self._report(self.step, {**self._sums, "learning_rate": learning_rate})
            self._sums = {}
        due = self.step % self._checkpointing_steps == 0
        if due or self._stopping or self.step == self._steps:
            tensors = checkpoints.training_tensors(self.model, self.average, self._optimizer)
            # What the next line of the log is to be the mean of.
            tensors |= {
                _LOG + name: torch.tensor(value, dtype=torch.float64)
                for name, value in self._sums.items()
            }
            checkpoints.save(self._output, self.step, tensors, self._keep_checkpoints)


def warmup_cosine(step: int, steps: int, warmup: int = 100, floor: float = 0.02) -> float:
    """Learning-rate factor: linear to 1 over `warmup` steps, then a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
