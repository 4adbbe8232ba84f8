"""What is wrong with a photo is found from it alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from operators.blur import MotionBlur
from operators.catalog import TASKS
from silo.diagnosis import diagnose
from silo.images import from_pil, to_pil
from tests.photos import NAMES, as_jpeg, blurred, noisy, photo

Damage = Callable[[Tensor], Tensor]


def in_noise(picture: Tensor, sigma: float) -> Tensor:
    """A picture with noise of this standard deviation, in eight bits."""
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    return from_pil(to_pil(picture + 2 * sigma * noise))


def shaken(picture: Tensor, length: int, angle: float) -> Tensor:
    return MotionBlur(61, length, angle).forward(picture)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda clean: clean, None),
        (lambda clean: as_jpeg(clean, 85), None),
        (lambda clean: in_noise(clean, 0.008), None),
        (lambda clean: clean[..., :200, :160], "super_resolution_x4"),
        (lambda clean: in_noise(clean, 0.05), "denoising"),
        (lambda clean: as_jpeg(in_noise(clean, 0.05), 85), "denoising"),
        (lambda clean: as_jpeg(clean, 40), "jpeg_q10"),
        (lambda clean: as_jpeg(clean, 10), "jpeg_q10"),
        (lambda clean: blurred(clean, 1.5), "gaussian_blur"),
        (lambda clean: blurred(clean, 5), "gaussian_blur"),
        (lambda clean: in_noise(blurred(clean, 2), 0.05), "gaussian_blur"),
        (lambda clean: as_jpeg(blurred(clean, 2), 15), "gaussian_blur"),
        (lambda clean: shaken(clean, 12, 160), "motion_blur"),
        (lambda clean: shaken(clean, 31, 45), "motion_blur"),
        (lambda clean: as_jpeg(shaken(clean, 21, 0), 90), "motion_blur"),
    ],
)
def test_the_damage_of_a_photo_is_found(name: str, damage: Damage, found: str | None) -> None:
    assert found is None or found in TASKS
    came = from_pil(to_pil(damage(photo(name))))
    assert diagnose(came) == found


@pytest.mark.parametrize("name", NAMES)
def test_a_shake_is_told_from_a_blur_in_noise(name: str) -> None:
    clean = photo(name, 512)
    assert diagnose(noisy(shaken(clean, 21, 0))) == "motion_blur"
    assert diagnose(noisy(blurred(clean, 3))) == "gaussian_blur"


@pytest.mark.parametrize("side", [1, 5, 40])
def test_of_a_tiny_or_flat_picture_nothing_but_its_size_is_told(side: int) -> None:
    for picture in (photo()[..., 100 : 100 + side, :side], torch.zeros(1, 3, side, side)):
        assert diagnose(picture) in ("super_resolution_x4", "denoising")
    assert diagnose(torch.zeros(1, 3, side, 2000)) is None
