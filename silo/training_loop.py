"""What all training runs share: learning rate, averaging, the log, checkpoints and resuming."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from silo import checkpoints
from silo.errors import NumericalError
from silo.training_log import TrainingLog

GRADIENT_NORM = 1.0
LOG_EVERY = 50

Model = TypeVar("Model", bound=nn.Module)


class TrainingLoop(Generic[Model]):
    """Steps of AdamW with a warm-up, a cosine and an average of the weights, resumed from `output`.

        loop = TrainingLoop(model, output, steps=..., ...)
        for generator in loop:
            loop.update({"loss": ...})
        loop.average

    Attributes:
        model: what is trained, in place.
        average: the exponential moving average of its weights: the result.
        log: the losses.
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
        """
        self.model = model
        self.average: Model = copy.deepcopy(model).requires_grad_(False)
        self.log = TrainingLog(output / "log.jsonl")
        self._output, self._steps, self._decay, self._seed = output, steps, decay, seed
        self._learning_rate, self._checkpointing_steps = learning_rate, checkpointing_steps
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=learning_rate, betas=betas, weight_decay=weight_decay
        )
        self._step = 0
        self._sums: dict[str, float] = {}
        if found := checkpoints.latest(output):
            self._step = found[0]
            checkpoints.restore(found[1], self.model, self.average, self._optimizer)

    def __iter__(self) -> Iterator[torch.Generator]:
        """Yield the random generator of each step that is left; call `update` once in each."""
        bar = tqdm(total=self._steps, initial=self._step, unit="step", desc=self._output.name)
        with bar:
            while self._step < self._steps:
                # From (seed, step) alone: a resumed run repeats an unbroken one.
                yield torch.Generator().manual_seed(self._seed * 1_000_003 + self._step)
                self._step += 1
                self._keep()
                bar.update()

    def update(self, losses: dict[str, Tensor]) -> None:
        """One optimizer step on the sum of `losses`.

        Raises:
            NumericalError: the loss is not finite; the last checkpoint stays as it is.
        """
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss.detach()):
            raise NumericalError(
                f"the loss is not finite at step {self._step + 1}; the last checkpoint is kept: "
                "resume with a lower learning rate."
            )
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate * warmup_cosine(self._step, self._steps)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._trained, GRADIENT_NORM)
        self._optimizer.step()
        checkpoints.update_average(self.average, self.model, self._step, self._decay)
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach()) / LOG_EVERY

    def _keep(self) -> None:
        if self._step % LOG_EVERY == 0:
            self.log.write(self._step, self._sums)
            self._sums = {}
        if self._step % self._checkpointing_steps == 0 or self._step == self._steps:
            tensors = checkpoints.training_tensors(self.model, self.average, self._optimizer)
            checkpoints.save(self._output, self._step, tensors)


def warmup_cosine(step: int, steps: int, warmup: int = 100, floor: float = 0.02) -> float:
    """Learning-rate factor: linear to 1 over `warmup` steps, then a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
