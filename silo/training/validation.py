"""How good an operator is: its error on held-out latents, and a few pictures restored with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor

from operators.catalog import TASKS, Task
from silo.data import PhotoFile, center_crop
from silo.images import save_png
from silo.metrics import scores
from silo.prior import LatentPrior
from silo.request import PRESETS, RestorationRequest
from silo.restorer import Restorer, Result
from silo.training.latent_cache import LatentCache, LatentPairs
from silo.training.operator_prediction import Predicted

# Of Algorithm 1, for operators that `quick` cannot use. Enough to rank them by, though not to
# restore at their best; the loss alone does not rank operators.
READOUT_STEPS = 50
CHUNK = 8


@torch.no_grad()
def latent_errors(
    predict: Callable[[LatentPairs, torch.Generator], Predicted], held_out: LatentCache
) -> dict[str, float]:
    """Errors per latent element over all held-out pairs: L1 and RMSE, and L1 of H = identity.

    Args:
        predict: H_theta, on pairs and with a generator for what else it reads.
        held_out: pairs that were not trained on.
    """
    total = {"l1": 0.0, "l1_identity": 0.0, "square": 0.0}
    generator = torch.Generator().manual_seed(0)
    for picks in torch.arange(len(held_out)).split(CHUNK):
        pairs = held_out.pairs(picks)
        given, predicted = (each.float().cpu() for each in predict(pairs, generator))
        error = predicted - pairs.measured
        share = len(picks) / len(held_out)
        total["l1"] += share * float(error.abs().mean())
        total["square"] += share * float(error.square().mean())
        total["l1_identity"] += share * float(F.l1_loss(given, pairs.measured))
    square = total.pop("square")
    return {**total, "rmse": square**0.5}


@dataclass(frozen=True)
class Restorations:
    """A few held-out pictures that are degraded and restored again and again, always alike.

    Attributes:
        prior: restores them.
        task: what degrades them.
        files: the pictures.
    """

    prior: LatentPrior
    task: Task
    files: list[PhotoFile]

    def run(self, operator: Path, grid: Path) -> dict[str, float | int | str]:
        """Restore them with the operator in a folder, and write a picture of clean ones,
        measurements and restorations side by side.

        Returns:
            Means over the pictures: PSNR and, where its weights are at hand (`silo.lpips`), LPIPS
            of the restorations and of the measurements; by which sampler, in how many steps.
        """  # noqa: D205
        restorer = Restorer(self.prior, operator=operator)
        preset, steps = "quick", PRESETS["quick"].steps
        if restorer.reads_features(self.task.name):
            preset, steps = "balanced", READOUT_STEPS
        size = self.prior.native_size
        results = [
            restore_simulated(
                restorer,
                self.task,
                center_crop(file.load(size), size)[None],
                preset=preset,
                steps=steps,
            )
            for file in self.files
        ]
        save_png(grid, torch.cat([side_by_side(result) for result in results], dim=-2))
        pairs = [scores(result) for result in results]
        means: dict[str, float | int | str] = {
            "pictures": len(results),
            "sampler": PRESETS[preset].sampler,
            "steps": steps,
        }
        for name in ("psnr", "lpips"):
            for title, which in (("", 0), ("_measurement", 1)):
                values = [getattr(pair[which], name) for pair in pairs]
                if None not in values:
                    means[name + title] = round(mean(values), 4)
        return means


def restore_simulated(
    restorer: Restorer, task: Task, picture: Tensor, *, preset: str, steps: int | None = None
) -> Result:
    """Degrade and restore a clean picture (1, 3, H, W), always alike.

    Args:
        restorer: with the operator for the task.
        task: what degrades the picture.
        picture: in [-1, 1].
        preset: of `silo.request.PRESETS`.
        steps: in place of the preset's.
    """
    request = RestorationRequest(
        task.name,
        picture,
        simulate=True,
        degradation=None if task.name in TASKS else task.degradation,
        preset=preset,
        steps=steps,
    )
    return restorer.run(request)


def side_by_side(result: Result) -> Tensor:
    """Clean, measurement and restoration side by side, (1, 3, H, 3 W)."""
    assert result.clean is not None, "validation simulates the damage"
    return torch.cat([result.clean, result.measurement, result.images], dim=-1)
