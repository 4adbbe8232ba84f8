"""Training state that survives a kill: written aside, synced, renamed; older ones pruned after."""

import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from operators.files import sync
from silo.training.muon import MuonAdamW

_FILE = "state.safetensors"
_NAME = re.compile(r"^step_(\d{8})$")


def save(folder: Path, step: int, tensors: dict[str, Tensor], keep: int = 2) -> Path:
    """Write `tensors` as the checkpoint of `step` and prune all but the newest `keep`.

    A checkpoint appears under its name only once it is complete on disk, and nothing older is
    removed before that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".step_{step:08d}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    # Clones: safetensors refuses tensors that share memory.
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, aside / _FILE)
    sync(aside / _FILE)
    sync(aside)
    final = folder / f"step_{step:08d}"
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    sync(folder)
    for _, old in _complete(folder)[:-keep]:
        shutil.rmtree(old)
    for left in folder.glob(".step_*.partial"):  # by a run that was killed
        shutil.rmtree(left)
    return final


def latest(folder: Path) -> tuple[int, dict[str, Tensor]] | None:
    """The newest readable checkpoint as (step, tensors), or None."""
    for step, path in reversed(_complete(folder)):
        try:
            return step, load_file(path / _FILE)
        except SafetensorError:  # damaged by the file system: an older one is still good
            continue
    return None


def steps_done(folder: Path) -> int:
    """The step of the newest checkpoint in `folder`, 0 without any."""
    complete = _complete(folder)
    return complete[-1][0] if complete else 0


def training_tensors(
    model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer | MuonAdamW
) -> dict[str, Tensor]:
    """Weights, averaged weights and optimizer state, flat, for `save`."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
    return tensors


def restore(
    tensors: dict[str, Tensor],
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer | MuonAdamW,
) -> None:
    """Undo `training_tensors` in place."""
    model.load_state_dict(_under(tensors, "model."))
    average.load_state_dict(_under(tensors, "average."))
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in _under(tensors, "optimizer.").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """One step of the weights' exponential moving average, shorter while training is young."""
    weight = 1.0 - min(decay, (1 + step) / (10 + step))
    for averaged, current in zip(average.parameters(), model.parameters(), strict=True):
        averaged.lerp_(current, weight)


def _complete(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    found = [(m, p) for p in folder.iterdir() if (m := _NAME.match(p.name))]
    return sorted((int(m.group(1)), p) for m, p in found if (p / _FILE).is_file())


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
