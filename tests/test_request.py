import dataclasses
import math
from typing import Any

import pytest
import torch

from operators.catalog import TASKS
from silo.errors import BadMask, BadRequest, SiloError
from silo.request import PRESETS, RestorationRequest
from silo.samplers import SAMPLERS

IMAGE = torch.zeros(1, 3, 8, 10)
HOLE = torch.ones(1, 1, 8, 10)
HOLE[..., 2:4, 3:5] = 0


def make(**changes: Any) -> RestorationRequest:
    return RestorationRequest(**{"task": "denoising", "image": IMAGE, **changes})


def test_every_task_sampler_and_preset_is_accepted():
    for task in TASKS:
        assert make(task=task, simulate=True).task == task
    for sampler in SAMPLERS:
        make(sampler=sampler)
    for preset in PRESETS:
        make(preset=preset)


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().seed = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_presets_name_a_sampler_and_its_steps_which_both_can_be_overridden():
    assert list(PRESETS) == ["quick", "balanced", "paper"]
    quick, paper = make(preset="quick"), make(preset="paper")
    assert (quick.effective_sampler, quick.effective_steps) == ("silo-fast", 16)
    assert (paper.effective_sampler, paper.effective_steps) == ("silo", 1000)
    assert make(preset="balanced", sampler="silo").effective_steps == 100
    assert make(preset="quick", sampler="silo").effective_steps == 1000
    assert make(preset="quick", steps=7).effective_steps == 7


def test_the_noise_level_is_the_tasks_unless_given():
    for task in ("denoising", "jpeg_q10"):
        simulated = make(task=task, simulate=True)
        assert simulated.effective_noise_sigma == TASKS[task].degradation.noise_sigma
    assert make(noise_sigma=0.0).effective_noise_sigma == 0.0


@pytest.mark.parametrize("name", ["task", "sampler", "preset"])
def test_an_unknown_name_is_answered_with_the_known_ones(name: str):
    with pytest.raises(
        BadRequest, match=f"there is no {name} 'nonsense': choose one of ."
    ) as caught:
        make(**{name: "nonsense"})
    known = {"task": TASKS, "sampler": SAMPLERS, "preset": PRESETS}[name]
    assert all(choice in str(caught.value) for choice in known)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("steps", [0, 1001, -5, 2.5, True, "9"]),
        ("eta", [-0.1, math.nan, math.inf, True, "1"]),
        ("noise_sigma", [-0.01, 1.5, math.nan]),
        ("blur_std", [-0.1, 101, math.nan, True]),
        ("clamp", [0.0, -1.0, math.nan]),
        ("working_size", [255, 4097, 512.0, True]),
        ("guidance_scale", [0.0, 0.99, 51.0, math.nan]),
        ("samples", [0, 17, 1.0]),
        ("seed", [-1, 2**32, 0.5]),
    ],
)
def test_a_number_out_of_range_is_named(name: str, values: list[Any]):
    for value in values:
        with pytest.raises(BadRequest, match=rf"^{name} must be .* from .* to .*, not "):
            make(**{name: value})


def test_the_ends_of_the_ranges_are_in():
    lowest = {"steps": 1, "eta": 0, "noise_sigma": 0, "samples": 1, "seed": 0, "guidance_scale": 1}
    highest = {"steps": 1000, "noise_sigma": 1, "samples": 16, "seed": 2**32 - 1}
    for values in (lowest, {**highest, "guidance_scale": 50}):
        request = make(**values)
        assert {name: getattr(request, name) for name in values} == values


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 8, 8), "shape"),
        (torch.zeros(2, 3, 8, 8), "shape"),
        (torch.zeros(1, 4, 8, 8), "shape"),
        (torch.zeros(1, 3, 0, 8), "shape"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "floating-point"),
        (torch.full((1, 3, 8, 8), math.nan), "finite"),
        (torch.full((1, 3, 8, 8), 255.0), "255.*scale"),
    ],
)
def test_an_image_that_is_none_is_refused(image: torch.Tensor, message: str):
    with pytest.raises(BadRequest, match=message):
        make(image=image)


def test_a_noisy_measurement_may_leave_the_range_of_pictures():
    image = torch.full((1, 3, 8, 8), 1.3)
    assert torch.equal(make(image=image).image, image)


def test_a_negative_prompt_needs_guidance():
    with pytest.raises(BadRequest, match="guidance_scale above 1"):
        make(negative_prompt="blurry")
    make(negative_prompt="blurry", guidance_scale=4.0)


def test_inpainting_needs_a_mask_unless_simulated():
    with pytest.raises(BadMask, match="inpainting_free needs a mask"):
        make(task="inpainting_free")
    make(task="inpainting_free", mask=HOLE)
    make(task="inpainting_free", simulate=True)
    make(task="inpainting_free", simulate=True, mask=HOLE)


def test_a_task_without_holes_takes_no_mask():
    with pytest.raises(BadMask, match="denoising takes no mask"):
        make(mask=HOLE)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(1, 1, 10, 8), "8 x 10 pixels and the picture 10 x 8"),
        (torch.ones(1, 3, 8, 10), "shape"),
        (torch.ones(8, 10), "shape"),
        (torch.full((1, 1, 8, 10), 0.5), "nothing but 1"),
        (torch.full((1, 1, 8, 10), math.nan), "nothing but 1"),
        (torch.ones(1, 1, 8, 10), "marks nothing"),
        (torch.zeros(1, 1, 8, 10), "whole picture"),
    ],
)
def test_a_mask_that_makes_no_sense_is_refused(mask: torch.Tensor, message: str):
    with pytest.raises(BadMask, match=message):
        make(task="inpainting_free", mask=mask)


def test_every_refusal_is_one_line():
    for changes in ({"task": "a\nb"}, {"seed": -1}, {"image": IMAGE + 300}):
        with pytest.raises(SiloError) as caught:
            make(**changes)
        assert "\n" not in str(caught.value)


def test_what_is_not_linear_is_refused_by_name_where_a_sampler_needs_it():
    with pytest.raises(
        BadRequest, match="psld restores linear .* jpeg_q10 is not: use silo, .*silo-fast, ldps"
    ):
        make(task="jpeg_q10", sampler="psld")
    for sampler, facts in SAMPLERS.items():
        if not facts.linear_only:
            make(task="jpeg_q10", sampler=sampler)


def test_the_papers_number_of_steps_is_the_samplers():
    assert make(sampler="psld", preset="paper").effective_steps == 1000
    assert make(sampler="resample", preset="paper").effective_steps == 500
    assert make(sampler="resample", preset="quick").effective_steps == 500


def test_peers_have_their_published_hyperparameters_unless_given():
    def of(**changes: Any) -> dict[str, float | int]:
        return make(simulate=True, preset="paper", **changes).effective_hyperparameters

    assert of() == {}
    assert of(sampler="ldps") == {"omega": 1.0}
    for sampler in ("gml-dps", "psld"):
        assert of(sampler=sampler) == {"omega": 1.0, "gamma": 0.1}
        box = of(sampler=sampler, task="inpainting_box")
        assert box == {"omega": 0.1, "gamma": 0.01}
    given = {"omega": 0.5}
    assert of(sampler="psld", hyperparameters=given) == {"omega": 0.5, "gamma": 0.1}
    fewer = make(sampler="psld", steps=50).effective_hyperparameters
    assert fewer == pytest.approx({"omega": 20.0, "gamma": 2.0})
    fewer = make(sampler="resample", steps=50, hyperparameters={"interval": 5})
    assert fewer.effective_hyperparameters == {
        "zeta": 5.0,
        "gamma": 40.0,
        "interval": 5,
        "pixel_iterations": 2000,
        "latent_iterations": 500,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "psld", "eta": 1.0}, "psld has the hyper-parameters omega, gamma"),
        ({"sampler": "ldps", "clamp": 1.0}, "ldps has the hyper-parameters omega"),
        ({"sampler": "ldps", "hyperparameters": {"gamma": 1.0}}, "no 'gamma': it has omega"),
        ({"hyperparameters": {"omega": 1.0}}, "silo has no 'omega': it has eta and clamp"),
        ({"sampler": "psld", "hyperparameters": {"omega": math.nan}}, "omega must be a number"),
        ({"sampler": "psld", "hyperparameters": {"omega": "1"}}, "omega must be a number"),
        ({"sampler": "resample", "hyperparameters": {"interval": 2.5}}, "interval must be an int"),
        ({"sampler": "resample", "hyperparameters": {"interval": 0}}, "interval must be an int"),
    ],
)
def test_hyperparameters_that_a_sampler_does_not_have_or_take_are_named(
    changes: dict[str, Any], message: str
):
    with pytest.raises(BadRequest, match=message):
        make(**changes)


def test_a_blur_is_told_of_pictures_that_came_with_one_only():
    assert make(task="gaussian_blur", blur_std=1.5).blur_std == 1.5
    for other in ({"task": "gaussian_blur", "simulate": True}, {"task": "motion_blur"}):
        with pytest.raises(BadRequest, match="blur_std is for photos"):
            make(**other, blur_std=1.5)
