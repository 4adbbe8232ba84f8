"""How blurred a photo is found to be; `pytest -s` prints the figures."""

import pytest
import torch

from operators.blur import GaussianBlur, MotionBlur
from operators.resize import SuperResolution
from silo.photo.blur import estimate_blur
from tests.photos import NAMES, as_jpeg, blurred, noisy, photo


@pytest.mark.parametrize("stored", [noisy, as_jpeg])
@pytest.mark.parametrize("std", [1.0, 1.5, 2.0, 3.0, 4.0, 5.0])
@pytest.mark.parametrize("name", NAMES)
def test_the_blur_of_a_photo_is_found(name: str, std: float, stored) -> None:
    found = estimate_blur(stored(blurred(photo(name), std)))
    print(f"{name}, {stored.__name__}, std {std}: {found:.2f}")
    assert found == pytest.approx(std, rel=0.2)


@pytest.mark.parametrize("stored", [noisy, as_jpeg])
@pytest.mark.parametrize("name", NAMES)
def test_a_sharp_photo_is_found_sharp(name: str, stored) -> None:
    found = estimate_blur(stored(photo(name)))
    print(f"{name}, {stored.__name__}, sharp: {found:.2f}")
    assert found is not None and found < 0.75


def test_of_flat_and_tiny_pictures_no_blur_is_told() -> None:
    assert estimate_blur(torch.full((1, 3, 128, 128), 0.3)) is None
    assert estimate_blur(photo()[..., :40, :200]) is None
    assert estimate_blur(photo()[..., :64, :200]) is not None


@pytest.mark.parametrize("operator", [GaussianBlur(), MotionBlur(), GaussianBlur(std=8)])
def test_detail_that_a_blur_would_have_taken_is_noticed(operator) -> None:
    clean = photo("chelsea")
    measured = operator.forward(clean)
    for sigma in (0.01, 0.04):
        noise = 2 * sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        assert operator.unexplainable(measured + noise) == pytest.approx(sigma, rel=0.1)
    assert operator.unexplainable(measured) < 0.003
    assert operator.unexplainable(as_jpeg(measured)) < 0.01
    assert operator.unexplainable(clean) > 0.03


def test_where_a_kind_takes_next_to_nothing_all_may_be_explained() -> None:
    assert GaussianBlur(std=0.5).unexplainable(photo()) == 0
    assert SuperResolution(4).unexplainable(photo()) == 0


def test_flat_and_small_pictures_have_nothing_that_a_blur_would_have_taken() -> None:
    for operator in (GaussianBlur(), MotionBlur()):
        for size in ((8, 8), (1, 400), (12, 400), (40, 400), (64, 80)):
            assert operator.unexplainable(torch.full((1, 3, *size), 0.8)) < 1e-4
        assert operator.unexplainable(photo()[..., :40, :]) == 0
