"""Results are told apart by the version: what changes a picture must change `silo.__version__`."""

import json
from pathlib import Path

import pytest
import torch

from operators.catalog import TASKS
from silo import __version__
from silo.prior import LatentPrior
from silo.request import RestorationRequest
from silo.restorer import Restorer
from silo.samplers import SAMPLERS

RECORDED = Path(__file__).with_name("results.json")
TOLERANCE = 0.01  # one thread and two differ by up to 0.0016; other processors may by more
OTHERS = SAMPLERS.keys() - {"silo-fast", "resample"}  # the latter takes ten seconds even so
CASES = [("silo-fast", task) for task in TASKS]
CASES += [(sampler, "super_resolution_x4") for sampler in sorted(OTHERS)]


@pytest.fixture(scope="module")
def prior() -> LatentPrior:
    return LatentPrior.load("tiny")


def restored(prior: LatentPrior, sampler: str, task: str) -> list[float]:
    """Restore 64 pixels of stripes in four steps; return every eighth."""
    stripes = torch.linspace(0, 12, 64).sin()
    image = torch.stack([stripes.expand(64, 64), stripes.expand(64, 64).T, torch.zeros(64, 64)])
    mask = torch.ones(1, 1, 64, 64)
    mask[..., 20:40, 20:40] = 0
    request = RestorationRequest(
        task,
        image[None],
        simulate=True,
        mask=mask if task == "inpainting_free" else None,
        sampler=sampler,
        steps=4,
    )
    result = Restorer(prior).run(request)
    return [round(float(value), 4) for value in result.restored[0, :, 4::8, 4::8].flatten()]


@pytest.mark.parametrize(("sampler", "task"), CASES)
def test_pictures_change_with_the_version_alone(
    prior: LatentPrior, sampler: str, task: str
) -> None:
    recorded = json.loads(RECORDED.read_text())
    found = restored(prior, sampler, task)
    advice = (
        f"If that is meant, raise silo.__version__ ({__version__}), unless weights alone changed, "
        f"and put into {RECORDED.name}: {json.dumps({f'{sampler} {task}': found})}"
    )
    assert recorded["version"] == __version__, advice
    expected = recorded["pixels"].get(f"{sampler} {task}")
    assert found == pytest.approx(expected, abs=TOLERANCE), advice
