"""On a GPU, every sampler computes what it does on the CPU, and no tensor is left behind."""

from typing import Any

import pytest
import torch
from torch import Tensor

from silo import windows
from silo.devices import generators
from silo.prior import LatentPrior
from silo.request import RestorationRequest
from silo.restorer import Restorer, Result
from silo.samplers import SAMPLERS
from silo.sampling import draw
from tests.photos import photo
from tests.pretended_gpu import PRETENDED, OnGPU, pretended_gpu

READOUT = "operators/trained/super_resolution_x4_readout"
STEPS = 3
BRIEF = {"interval": 1, "pixel_iterations": 2, "latent_iterations": 2}  # ReSample's, in as few


def restored(prior: LatentPrior, request: RestorationRequest, operator: str | None) -> Tensor:
    events = list(Restorer(prior, operator=operator).restore(request))
    assert isinstance(events[-1], Result)
    return torch.cat(list(events[-1].image_by_image()))


def assert_same(found: Tensor, expected: Tensor) -> None:
    """But for rounding, which a gradient through the decoder multiplies here and there."""
    assert (found - expected).abs().mean() < 1e-4


@pytest.mark.parametrize(
    ("task", "options", "operator"),
    [
        *(
            ("super_resolution_x4", {"sampler": name}, None)
            for name in sorted(SAMPLERS.keys() - {"resample"})
        ),
        ("super_resolution_x4", {"sampler": "resample", "hyperparameters": BRIEF}, None),
        ("super_resolution_x4", {"sampler": "silo"}, READOUT),
        ("super_resolution_x8", {"samples": 2, "prompt": "a cup", "guidance_scale": 2.0}, None),
        ("gaussian_blur", {"noise_sigma": 0.1}, None),
        ("motion_blur", {}, None),
        ("inpainting_box", {}, None),
        ("inpainting_box", {"sampler": "psld"}, None),
        ("jpeg_q10", {"sampler": "gml-dps"}, None),
    ],
)
def test_a_restoration_is_the_same(
    task: str, options: dict[str, Any], operator: str | None
) -> None:
    picture = photo("coffee")[..., 64:192, 64:192]
    options = {"sampler": "silo-fast", "steps": STEPS, **options}
    request = RestorationRequest(task, picture, simulate=True, **options)
    prior = LatentPrior.load("tiny")
    expected = restored(prior, request, operator)
    with pretended_gpu() as gpu:
        prior.to(gpu)
        found = restored(prior, request, operator)
    assert not isinstance(found, OnGPU)
    assert_same(found, expected)


def test_so_it_is_where_one_network_at_a_time_is_on_the_gpu() -> None:
    request = RestorationRequest("super_resolution_x4", photo("coffee", 32), steps=STEPS)
    prior = LatentPrior.load("tiny")
    expected = restored(prior, request, None)
    with pretended_gpu() as gpu:
        prior.to(gpu)
        prior.offload()
        assert_same(restored(prior, request, None), expected)


@pytest.mark.parametrize("kept", [1, 4])  # of four windows; the others' are computed again
def test_so_it_is_in_windows(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    monkeypatch.setattr(windows, "KEPT", kept)
    picture = photo("coffee")[..., 64:192, 64:192]
    request = RestorationRequest(
        "super_resolution_x4", picture, simulate=True, sampler="silo", steps=1
    )
    prior = LatentPrior.load("tiny")
    prior.native_size = 32  # a window is as large as half the picture, and what is shared
    expected = restored(prior, request, READOUT)
    with pretended_gpu() as gpu:
        prior.to(gpu)
        assert_same(restored(prior, request, READOUT), expected)


def test_a_picture_is_drawn_the_same() -> None:
    prior = LatentPrior.load("tiny")

    def drawn() -> Tensor:
        return draw(prior, prior.embed("a rose", guidance_scale=3.0), STEPS, generators(0, 2)).cpu()

    expected = drawn()
    with pretended_gpu() as gpu:
        prior.to(gpu)
        assert_same(drawn(), expected)


def test_it_refuses_what_a_gpu_refuses() -> None:
    with pretended_gpu() as gpu:
        there = torch.ones(2).to(gpu)
        assert there.device == PRETENDED and not isinstance(there.cpu(), OnGPU)
        assert float((2 * there).sum()) == 4
        with pytest.raises(RuntimeError, match="among those of the GPU"):
            _ = there + torch.ones(2)
        with pytest.raises(RuntimeError, match="draws nothing"):
            torch.randn(2, generator=torch.Generator(), device=gpu)
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()
