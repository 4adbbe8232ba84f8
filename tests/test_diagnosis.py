"""What is wrong with a photo is found from it alone."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from operators.blur import MotionBlur
from silo.errors import Unrestorable
from silo.images import from_pil, to_pil
from silo.photo.diagnosis import diagnose, require_task
from tests.photos import NAMES, as_jpeg, as_of_a_camera, blurred, noisy, photo

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
        (lambda clean: as_of_a_camera(clean, 0.05), "denoising"),
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
    assert diagnose(from_pil(to_pil(damage(photo(name))))) == found


@pytest.mark.parametrize("name", NAMES)
def test_a_shake_is_told_from_a_blur_in_noise(name: str) -> None:
    clean = photo(name, 512)
    assert diagnose(noisy(shaken(clean, 21, 0))) == "motion_blur"
    assert diagnose(noisy(blurred(clean, 3))) == "gaussian_blur"


@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_an_enlarged_photo_is_blurred_and_not_shaken(name: str) -> None:
    enlarged = F.interpolate(photo(name, 128), scale_factor=8, mode="bicubic").clamp(-1, 1)
    assert diagnose(from_pil(to_pil(enlarged))) == "gaussian_blur"


def test_of_a_flat_picture_nothing_but_its_size_is_told() -> None:
    for side in (1, 5, 40):
        assert diagnose(torch.zeros(1, 3, side, side)) == "super_resolution_x4"
        assert diagnose(torch.zeros(1, 3, side, 2000)) is None


def test_a_photo_that_shows_nothing_is_refused_where_it_has_to_be_restored() -> None:
    assert require_task(blurred(photo(), 2)) == "gaussian_blur"
    with pytest.raises(Unrestorable, match="name the task"):
        require_task(photo())
