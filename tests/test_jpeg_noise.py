"""What JPEG compression was off by is estimated from what it has left."""

import pytest
import torch
from torch import Tensor

from operators.jpeg import luma_coefficients
from silo.photo.jpeg_noise import LOW, _energy_lost, estimate_jpeg_noise
from tests.photos import NAMES, as_jpeg, blurred, photo


def _off(clean: Tensor, stored: Tensor) -> float:
    """What the file is off by at the lower frequencies, in [0, 1]."""
    off = luma_coefficients(stored) - luma_coefficients(clean)
    return off[..., :LOW, :LOW].square().mean().sqrt().item() / 255


@pytest.mark.parametrize("quality", [10, 30, 85])
@pytest.mark.parametrize("std", [1.5, 3.0])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_a_file_of_a_blurred_photo_is_off_by(
    name: str, std: float, quality: int
) -> None:
    clean = blurred(photo(name), std)
    stored = as_jpeg(clean, quality)
    estimate = estimate_jpeg_noise(stored)
    print(f"{name}, std {std}, quality {quality}: {estimate:.4f} of {_off(clean, stored):.4f}")
    assert estimate == pytest.approx(_off(clean, stored), rel=0.25)


def test_a_photo_that_was_turned_since_has_the_same() -> None:
    stored = as_jpeg(blurred(photo(), 2), 20)[..., :203, :197]
    for turns in (1, 2, 3):
        turned = torch.rot90(stored, turns, (-2, -1))
        assert estimate_jpeg_noise(turned) == pytest.approx(estimate_jpeg_noise(stored))


def test_there_is_none_where_no_compression_shows() -> None:
    assert estimate_jpeg_noise(photo()) == 0
    assert estimate_jpeg_noise(blurred(photo(), 2)) == 0


def test_what_a_laplacian_loses_below_a_threshold_is_its_integral() -> None:
    scale, threshold = 7.0, torch.tensor([2.0, 10.0, 30.0], dtype=torch.float64)
    values = torch.linspace(0, 1, 200_001, dtype=torch.float64)[:, None] * threshold
    density = (-values / scale).exp() / scale  # of |c|
    integral = torch.trapezoid(values.square() * density, values, dim=0)
    kept = (-threshold / scale).exp()
    torch.testing.assert_close(_energy_lost(kept, threshold), integral)
    assert _energy_lost(torch.zeros(1), torch.ones(1)) == 0
