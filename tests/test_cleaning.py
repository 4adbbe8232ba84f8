"""Noise that an operator does not expect is taken from what it is shown."""

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from operators.blur import MotionBlur
from operators.degradation import Degradation
from operators.pixel_operator import PixelOperator
from silo.measured import take_measurement
from silo.metrics import psnr
from silo.prior import LatentPrior
from silo.request import RestorationRequest
from silo.restorer import Restorer
from tests.photos import as_jpeg, blurred, noisy, photo

KINDS = [
    Degradation("gaussian_blur"),
    Degradation("motion_blur"),
    Degradation("super_resolution", {"factor": 4}),
    Degradation("denoising"),
]


@pytest.fixture(scope="module")
def prior() -> LatentPrior:
    return LatentPrior.load("tiny")


def _damaged(operator: PixelOperator, sigma: float) -> tuple[Tensor, Tensor]:
    """What an operator makes of a photo, without noise and with it."""
    clean = operator.forward(photo(side=512))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    return clean, (clean + 2 * sigma * noise).clamp(-1, 1)


@pytest.mark.parametrize("kind", KINDS, ids=lambda each: each.kind)
@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1])
def test_most_of_the_noise_goes_and_little_else(kind: Degradation, sigma: float) -> None:
    operator = kind.operator()
    clean, y = _damaged(operator, sigma)
    cleaned = operator.clean(y, sigma, 0.01)
    assert psnr(cleaned, clean).item() > psnr(y, clean).item() + (4 if sigma > 0.02 else 2)


def test_as_much_noise_as_is_expected_stays_where_detail_is_as_small() -> None:
    operator = Degradation("super_resolution", {"factor": 4}).operator()
    _, y = _damaged(operator, 0.05)
    taken = y - operator.clean(y, 0.05, 0.0)
    torch.testing.assert_close(y - operator.clean(y, 0.05, 0.02), 0.6 * taken)
    torch.testing.assert_close(operator.clean(y, 0.05, 0.05), y)


def test_what_has_a_mask_or_is_not_linear_is_left_alone() -> None:
    y = noisy(photo())
    for kind in ("inpainting_box", "jpeg"):
        assert Degradation(kind).operator().clean(y, 0.05, 0.01) is y


def test_measurements_as_noisy_as_expected_are_encoded_as_they_are(prior: LatentPrior) -> None:
    request = RestorationRequest("super_resolution_x4", photo(), simulate=True)
    for each in (
        request,
        replace(request, noise_sigma=0.05, keep_known=False),  # as the paper's tables are made
        replace(request, task="denoising"),  # whose operator expects 0.05
    ):
        measured = take_measurement(each, prior)
        assert torch.equal(
            measured.to_encode, measured.degradation.operator().to_full_size(measured.y)
        )
    for each in (
        replace(request, noise_sigma=0.05),
        replace(request, task="denoising", noise_sigma=0.1),
    ):
        measured = take_measurement(each, prior)
        assert measured.clean is not None
        without = measured.degradation.operator()
        without = without.to_full_size(without.forward(measured.clean))
        gained = psnr(measured.to_encode, without) - psnr(measured.full_size, without)
        assert gained.item() > 2


@pytest.mark.parametrize(
    ("std", "quality", "gain"), [(3.0, 15, 0.2), (3.0, 30, 0.7), (1.5, 15, 0.0)]
)
def test_a_blurred_photo_may_be_a_jpeg_file_of_low_quality(
    prior: LatentPrior, std: float, quality: int, gain: float
) -> None:
    clean = photo()
    came = as_jpeg(blurred(clean, std), quality)
    result = Restorer(prior).run(RestorationRequest("gaussian_blur", came, preset="quick", steps=4))
    before, after = psnr(came, clean).item(), psnr(result.images, clean).item()
    print(f"std {std}, quality {quality}: {before:.2f} dB before, {after:.2f} dB after")
    assert after > before + gain
    (told,) = result.notices
    assert "JPEG compression was found" in told


@pytest.mark.parametrize(("quality", "gain"), [(15, 1.0), (30, 4.0)])
def test_a_shaken_photo_may_be_a_jpeg_file_of_low_quality(
    prior: LatentPrior, quality: int, gain: float
) -> None:
    clean = photo()
    came = as_jpeg(MotionBlur(length=21, angle=0).forward(clean), quality)
    result = Restorer(prior).run(RestorationRequest("motion_blur", came, preset="quick", steps=4))
    before, after = psnr(came, clean).item(), psnr(result.images, clean).item()
    print(f"shaken, quality {quality}: {before:.2f} dB before, {after:.2f} dB after")
    assert after > before + gain
    assert re.search(r"A shake of 2\d pixels at 0 degrees", " ".join(result.notices))


def test_a_blurred_photo_may_be_noisy(prior: LatentPrior) -> None:
    clean, std = photo(), 3.0
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    came = (blurred(clean, std) + 0.1 * noise).clamp(-1, 1)
    result = Restorer(prior).run(RestorationRequest("gaussian_blur", came, preset="quick", steps=4))
    before, after = psnr(came, clean).item(), psnr(result.images, clean).item()
    print(f"std {std}, noise 0.05: {before:.2f} dB before, {after:.2f} dB after")
    assert after > before + 2
    (told,) = re.findall(r"Noise of (0\.\d+)", " ".join(result.notices))
    assert float(told) == pytest.approx(0.05, abs=0.01)


def test_colours_stay() -> None:
    colour = torch.tensor([0.1, 0.05, -0.3]).view(1, 3, 1, 1)
    noise = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    for sigma in (0.1, 0.3):
        y = colour + 2 * sigma * noise
        cleaned = Degradation("denoising").operator().clean(y, sigma, 0.05)
        assert torch.allclose(cleaned.mean((2, 3)), y.mean((2, 3)), atol=0.005)
        assert (cleaned - colour).square().mean() < 0.05 * (y - colour).square().mean()


def test_a_description_of_the_damage_does_not_change_what_an_operator_expects() -> None:
    request = RestorationRequest("gaussian_blur", photo(), simulate=True)
    noisier = replace(request, degradation=Degradation("gaussian_blur", noise_sigma=0.05))
    assert request.expected_noise_sigma == noisier.expected_noise_sigma == 0.01
    assert noisier.effective_noise_sigma == 0.05
