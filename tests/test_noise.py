import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from silo.images import from_pil
from silo.noise import estimate_noise


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.2])
def test_the_noise_of_a_smooth_picture_is_found(sigma: float):
    ramp = torch.linspace(-0.4, 0.4, 256).expand(1, 3, 256, 256)
    noise = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    assert estimate_noise(ramp + 2 * sigma * noise) == pytest.approx(sigma, rel=0.05)


@pytest.mark.parametrize("sigma", [0.05, 0.1])
def test_the_noise_of_a_photo_is_found(sigma: float):
    photo = from_pil(Image.fromarray(skimage.data.astronaut()))
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))
    assert estimate_noise(photo + 2 * sigma * noise) == pytest.approx(sigma, rel=0.15)


def test_a_flat_picture_and_a_single_row_have_none():
    assert estimate_noise(torch.full((1, 3, 8, 8), 0.3)) == 0
    assert estimate_noise(torch.zeros(1, 3, 1, 50)) == 0


def test_edges_are_not_taken_for_noise():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, 20:40] = 255
    assert estimate_noise(from_pil(Image.fromarray(stripes))) == 0
