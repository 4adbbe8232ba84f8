"""A straight shake is found in a photo, and a photo is turned to another one's direction."""

import math

import pytest
import torch
from torch import Tensor

from operators.blur import Echoes, GaussianBlur, MotionBlur
from silo.images import Fit
from silo.photo.jpeg_noise import estimate_jpeg_noise
from silo.photo.matching import has_unexplained
from silo.photo.shake import estimate_shake
from silo.photo.turning import Turn, TurnedFit
from tests.photos import NAMES, as_jpeg, noisy, photo


def shaken(picture: Tensor, length: int, angle: float) -> Tensor:
    return MotionBlur(max(61, 2 * length + 1), length, angle).forward(picture)


def apart(one: float, other: float) -> float:
    """Degrees between two directions."""
    return abs((one - other + 90) % 180 - 90)


@pytest.mark.parametrize("stored", [noisy, as_jpeg])
@pytest.mark.parametrize(("length", "angle"), [(9, 70), (16, 135), (31, 45), (31, 100), (45, 5)])
def test_the_shake_of_a_photo_is_found(stored, length: int, angle: float) -> None:
    found = [estimate_shake(stored(shaken(photo(name), length, angle))) for name in NAMES]
    close = [
        each is not None
        and abs(each.length - length) < 1.5
        and math.radians(apart(each.angle, angle)) * length < 2
        for each in found
    ]
    assert sum(close) >= 3, found


def test_a_long_shake_is_found_in_a_smaller_picture() -> None:
    large = photo("coffee", 1024)
    found = estimate_shake(noisy(MotionBlur(255, 120, 30).forward(large)))
    assert found is not None
    assert found.length == pytest.approx(120, abs=4) and apart(found.angle, 30) < 2


@pytest.mark.parametrize("name", NAMES)
def test_no_shake_is_taken_where_there_is_none(name: str) -> None:
    for picture in (photo(name)[..., :100, :100], torch.zeros(1, 3, 256, 256)):
        assert estimate_shake(picture) is None
    sharp = noisy(photo(name))
    found = estimate_shake(sharp)
    assert found is None or has_unexplained(sharp, MotionBlur(61, round(found.length), found.angle))
    for quality in (10, 20, 40):  # whose blocks a shake would have taken, too
        stored = as_jpeg(photo(name), quality)
        found = estimate_shake(stored)
        assert found is None or has_unexplained(
            stored, MotionBlur(61, round(found.length), found.angle)
        )
        came = as_jpeg(shaken(photo(name), 31, 45), quality)
        assert not has_unexplained(came, MotionBlur(), estimate_jpeg_noise(came))
    came = noisy(shaken(photo(name), 31, 45))
    assert not has_unexplained(came, MotionBlur()) and has_unexplained(sharp, MotionBlur())


def test_a_turn_is_counter_clockwise_and_turns_shakes_along() -> None:
    dot = torch.full((1, 3, 65, 65), -1.0)
    dot[..., 32, 48] = 1.0  # to the right of the middle
    up = Turn((65, 65), 90.0, mirrored=False).apply(dot)
    assert up.shape == dot.shape and int(up[0, 0].argmax()) == 16 * 65 + 32
    left = Turn((65, 65), 0.0, mirrored=True).apply(dot)
    assert int(left[0, 0].argmax()) == 32 * 65 + 16
    spot = GaussianBlur(std=2.0).forward(dot.roll(-16, dims=-1)) + 1
    turned = Turn((65, 65), 30.0, mirrored=False).apply(shaken(spot, 21, 20) - 1) + 1
    middle = turned[..., turned.shape[-2] // 2 - 32 :, turned.shape[-1] // 2 - 32 :][..., :65, :65]
    assert (middle - shaken(spot, 21, 50)).abs().max() < 0.1 * spot.max()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0.0, 20.0, -45.0])
def test_what_is_turned_and_scaled_comes_back(degrees: float, mirrored: bool) -> None:
    picture = GaussianBlur(std=2.0).forward(photo("coffee", 200))[..., :120, :]
    turn = Turn((96, 160), degrees, mirrored)
    height, width = turn.canvas
    padded = (height + -height % 8, width + -width % 8)
    fit = TurnedFit(
        (120, 200), (96, 160), padded, turn=turn, canvas=Fit(turn.canvas, turn.canvas, padded)
    )
    placed = fit.apply(picture)
    assert placed.shape == (1, 3, *padded)
    back = fit.undo(placed)
    assert back.shape == picture.shape and (back - picture).abs().mean() < 0.02
    inside = (..., slice(10, -10), slice(10, -10))
    assert (back - picture)[inside].abs().max() < 0.15


def test_echoes_of_a_shake_are_a_longer_one() -> None:
    picture = photo(side=128)
    for angle in (0.0, 90.0):
        echoed = Echoes(3, 5.0, angle).forward(shaken(picture, 5, angle))
        inside = (..., slice(20, -20), slice(20, -20))
        assert (echoed - shaken(picture, 15, angle))[inside].abs().max() < 1e-5
    kernel = Echoes(2, 10.5, 45.0).kernel()
    assert kernel.sum().item() == pytest.approx(1) and kernel.shape[0] % 2 == 1
