import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from silo.images import from_pil, to_pil
from silo.photo.noise import estimate_camera_noise, estimate_noise, estimate_noise_where_flat
from tests.photos import as_of_a_camera, noisy
from tests.photos import photo as skimage_photo


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.2])
def test_the_noise_of_a_smooth_picture_is_found(sigma: float):
    ramp = torch.linspace(-0.4, 0.4, 256).expand(1, 3, 256, 256)
    noise = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    assert estimate_noise(to_pil(ramp + 2 * sigma * noise)) == pytest.approx(
        sigma, rel=0.05, abs=0.0015
    )


@pytest.mark.parametrize("sigma", [0.05, 0.1])
def test_the_noise_of_a_photo_is_found(sigma: float):
    photo = from_pil(Image.fromarray(skimage.data.astronaut()))
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))
    assert estimate_noise(to_pil(photo + 2 * sigma * noise)) == pytest.approx(sigma, rel=0.15)


def test_a_flat_picture_and_a_single_row_have_none():
    assert estimate_noise(Image.new("RGB", (8, 8), "grey")) == 0
    assert estimate_noise(Image.effect_noise((50, 1), 80).convert("RGB")) == 0


def test_edges_are_not_taken_for_noise():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, 20:40] = 255
    assert estimate_noise(Image.fromarray(stripes)) == 0


def test_of_a_large_photo_every_part_is_looked_at():
    photo = Image.new("RGB", (3001, 3000))
    photo.paste(Image.effect_noise((3001, 2000), 25.5).convert("RGB"), (0, 0))  # noise of 0.1
    # The median of the whole lies where a quarter of the noise is smaller: 0.3186 of its sigma.
    assert estimate_noise(photo) == pytest.approx(0.1 * 0.3186 / 0.6745, rel=0.05)


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
@pytest.mark.parametrize("sigma", [0.03, 0.06])
def test_noise_that_a_camera_has_smoothed_is_found(name: str, sigma: float):
    came = to_pil(as_of_a_camera(skimage_photo(name, 384), sigma))
    assert estimate_noise(came) < 0.5 * sigma
    assert estimate_camera_noise(came) == pytest.approx(sigma, rel=0.25)


def test_white_noise_is_found_in_flat_blocks_too_and_detail_is_none():
    for name in ("astronaut", "coffee", "chelsea"):
        clean = skimage_photo(name, 384)
        assert estimate_camera_noise(to_pil(clean)) < 0.012
        assert estimate_noise_where_flat(to_pil(noisy(clean))) == pytest.approx(0.01, abs=0.003)


def test_blocks_that_are_few_or_cut_off_tell_no_noise():
    assert estimate_noise_where_flat(to_pil(skimage_photo("astronaut", 160))) is None
    white = Image.new("RGB", (400, 400), "white")
    assert estimate_noise_where_flat(white) is None
    white.paste(Image.effect_noise((400, 200), 25.5).convert("RGB"), (0, 0))
    assert estimate_noise_where_flat(white) == pytest.approx(0.1, rel=0.1)
