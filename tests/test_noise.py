import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from silo.images import from_pil, to_pil
from silo.noise import estimate_noise


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
