"""Half precision, on the embedded prior: it matters less than the seed does."""

import pytest
import torch
from torch import Tensor

from silo.prior import LatentPrior
from silo.request import RestorationRequest
from silo.restorer import Restorer


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """A small picture of smooth colours."""
    noise = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(noise, size=(32, 32), mode="bicubic").clamp(-1, 1)


def restored(dtype: torch.dtype, photo: Tensor, sampler: str, steps: int, seed: int) -> Tensor:
    restorer = Restorer(LatentPrior.load("tiny", dtype=dtype))
    request = RestorationRequest(
        "super_resolution_x4", photo, sampler=sampler, steps=steps, seed=seed
    )
    result = restorer.run(request)
    assert not result.notices
    return result.images


@pytest.mark.parametrize(("sampler", "steps"), [("silo-fast", 4), ("silo", 4)])
def test_half_precision_changes_a_picture_less_than_another_seed(
    photo: Tensor, sampler: str, steps: int
) -> None:
    exact = restored(torch.float32, photo, sampler, steps, seed=0)
    seeds = (exact - restored(torch.float32, photo, sampler, steps, seed=1)).abs().mean()
    for dtype in (torch.bfloat16, torch.float16):
        half = (exact - restored(dtype, photo, sampler, steps, seed=0)).abs().mean()
        print(f"{sampler}, {dtype}: {half:.4f}, between seeds: {seeds:.4f}")
        assert 0 < half < seeds
