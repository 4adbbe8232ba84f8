"""Degradation: strict, complete, JSON-able and immutable."""

import copy
import json
import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from operators.blur import GaussianBlur
from operators.degradation import Degradation
from operators.errors import OperatorError, OperatorFileError, OperatorNotFound
from operators.pixel import KINDS

EVERY_KIND = [
    Degradation("gaussian_blur", {"std": 1.5}, 0.03),
    Degradation("super_resolution", {"factor": 8}),
    Degradation("inpainting_box", {"fraction": 0.25}),
    Degradation("inpainting_free"),
    Degradation("inpainting_random", {"keep": 0.5}),
    Degradation("motion_blur", {"kernel_size": 31, "length": 12, "angle": -10.5}),
    Degradation("jpeg", {"quality": 30}, 0),
    Degradation("denoising", noise_sigma=0.25),
    Degradation("destriping", {"period": 9, "width": 2}),
]


def test_every_kind_is_listed_here():
    assert {each.kind for each in EVERY_KIND} == set(KINDS)


@pytest.mark.parametrize("degradation", EVERY_KIND, ids=lambda each: each.kind)
def test_json_round_trip(degradation):
    text = json.dumps(degradation.to_dict(), allow_nan=False)
    again = Degradation.from_dict(json.loads(text))
    assert again == degradation
    assert hash(again) == hash(degradation)
    assert json.dumps(again.to_dict()) == text
    assert again.operator() == degradation.operator()


@pytest.mark.parametrize("degradation", EVERY_KIND, ids=lambda each: each.kind)
def test_pickle_and_copy(degradation):
    assert pickle.loads(pickle.dumps(degradation)) == degradation
    assert copy.deepcopy(degradation) == degradation


def test_defaults_are_filled_in_and_types_are_settled():
    numbers: Any = {"std": np.int64(2)}, np.float32(0.5)
    blur = Degradation("gaussian_blur", *numbers)
    assert blur.to_dict() == {
        "kind": "gaussian_blur",
        "parameters": {"kernel_size": 61, "std": 2.0},
        "noise_sigma": 0.5,
    }
    assert type(blur.parameters["std"]) is float
    assert type(blur.noise_sigma) is float
    assert blur == Degradation("gaussian_blur", {"std": 2.0, "kernel_size": 61}, 0.5)
    assert Degradation.from_dict({"kind": "jpeg"}) == Degradation("jpeg", {"quality": 10}, 0.01)
    assert blur.operator() == GaussianBlur(kernel_size=61, std=2.0)


def test_unequal_descriptions_differ():
    blur = Degradation("gaussian_blur")
    assert blur != Degradation("gaussian_blur", {"std": 4.0})
    assert blur != Degradation("gaussian_blur", noise_sigma=0.02)
    assert blur != Degradation("denoising")


def test_with_noise_changes_the_noise_alone():
    blur = Degradation("gaussian_blur", {"std": 2.0})
    assert blur.with_noise(0.03) == Degradation("gaussian_blur", {"std": 2.0}, 0.03)
    assert blur.noise_sigma == 0.01
    with pytest.raises(OperatorError, match="noise_sigma"):
        blur.with_noise(-0.01)


def test_it_cannot_be_changed():
    given = {"std": 2.0}
    blur = Degradation("gaussian_blur", given)
    given["std"] = 9.0
    blur.to_dict()["parameters"]["std"] = 9.0
    assert blur.parameters["std"] == 2.0
    parameters: Any = blur.parameters
    with pytest.raises(TypeError):
        parameters["std"] = 9.0
    with pytest.raises(FrozenInstanceError):
        blur.noise_sigma = 0.5  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"kind": "fog"}, "'fog'.*gaussian_blur.*destriping"),
        ({"kind": ["jpeg"]}, "Unknown kind"),
        ({"kind": None}, "Unknown kind"),
        ({}, "kind is missing"),
        ([], "described by a mapping"),
        ({"kind": "jpeg", "qualty": 3}, "'qualty'.*parameters"),
        ({"kind": "jpeg", "parameters": {"qualty": 3}}, "'qualty'.*jpeg takes quality"),
        ({"kind": "denoising", "parameters": {"std": 3}}, "'std'.*no parameters"),
        ({"kind": "jpeg", "parameters": {1: 3}}, "Unknown parameter 1"),
        ({"kind": "jpeg", "parameters": [10]}, "parameters must map"),
        ({"kind": "jpeg", "parameters": None}, "parameters must map"),
        ({"kind": "super_resolution"}, "needs the parameter 'factor'"),
    ],
)
def test_unknown_and_missing_entries_are_named(description, message):
    with pytest.raises(OperatorError, match=message):
        Degradation.from_dict(description)


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        ("gaussian_blur", "kernel_size", [0, -3, 60, 61.0, "61", None, True, 10**400]),
        ("gaussian_blur", "std", [0, -1.0, float("nan"), float("inf"), "3", [3.0], 1j]),
        ("super_resolution", "factor", [1, 0, -4, 4.0, 65, float("nan")]),
        ("inpainting_box", "fraction", [0, 1, 1.5, -0.5, float("nan")]),
        ("inpainting_random", "keep", [0, 1, -0.1, float("nan")]),
        ("motion_blur", "kernel_size", [2, 0, 1001]),
        ("motion_blur", "length", [0, 62, 2.5]),
        ("motion_blur", "angle", [181, float("nan"), "up"]),
        ("jpeg", "quality", [0, 101, 10.5, -1]),
        ("destriping", "period", [1, 0, 8.0]),
        ("destriping", "width", [0, 16, 40]),
    ],
)
def test_values_out_of_range_are_named(kind, name, values):
    complete = {"factor": 4} if kind == "super_resolution" else {}
    for value in values:
        with pytest.raises(OperatorError, match=rf"{name} must be .*not ") as caught:
            Degradation(kind, {**complete, name: value})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("noise_sigma", [-0.01, 1.1, float("nan"), float("inf"), "0.1", None, True])
def test_the_noise_level_has_a_range(noise_sigma):
    with pytest.raises(OperatorError, match="noise_sigma must be a number from 0.0 to 1.0"):
        Degradation("denoising", noise_sigma=noise_sigma)


def test_operators_check_their_own_parameters():
    with pytest.raises(OperatorError, match="odd number from 1 to 255"):
        Degradation("gaussian_blur", {"kernel_size": 4})
    with pytest.raises(OperatorError, match="at most kernel_size"):
        Degradation("motion_blur", {"kernel_size": 11, "length": 12})
    with pytest.raises(OperatorError, match="less than period"):
        Degradation("destriping", {"period": 4, "width": 4})


def test_every_named_error_is_an_operator_error():
    assert issubclass(OperatorNotFound, OperatorError)
    assert issubclass(OperatorFileError, OperatorError)
    assert issubclass(OperatorError, ValueError)
