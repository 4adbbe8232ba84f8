"""What is made of photos whose damage is not what their operator was trained for."""

import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from operators.blur import Echoes, GaussianBlur, MotionBlur
from operators.degradation import Degradation
from operators.jpeg import Jpeg
from operators.resize import SuperResolution
from silo import images, measured
from silo.images import Fit, fit, to_pil
from silo.measured import take_measurement
from silo.metrics import psnr
from silo.photo import matching
from silo.photo.blur import estimate_blur
from silo.photo.jpeg_quality import HIGHEST
from silo.photo.matching import BLUR, match
from silo.photo.noise import estimate_noise
from silo.photo.turning import TurnedFit
from silo.prior import LatentPrior
from silo.request import RestorationRequest
from silo.restorer import Restorer
from tests.photos import as_jpeg, as_of_a_camera, blurred, noisy, photo

EXPECTED = Degradation("gaussian_blur")  # of std 3


def place(picture: Tensor, max_side: int | None) -> tuple[Tensor, Fit]:
    return fit(picture, multiple=8, max_pixels=512**2, max_side=max_side)


def test_what_a_photo_lacks_of_the_expected_blur_is_added_to_it() -> None:
    sharp = photo()
    for std in (0.0, 1.2, 2.0):
        picture = blurred(sharp, std)
        matched = match(picture, place, EXPECTED, least_side=128, blur_std=std)
        assert torch.equal(matched.picture, picture) and matched.missing is not None
        assert matched.degradation.parameters["std"] == max(std, 0.1)
        completed = matched.missing.forward(picture)
        assert (completed - blurred(sharp, 3)).abs().max() < 0.02
    picture = noisy(blurred(sharp, 1.5))
    matched = match(picture, place, EXPECTED, least_side=128)
    assert matched.found is not None and re.search("1.[4-6] pixels", matched.found)
    assert matched.degradation.parameters["std"] == pytest.approx(1.5, rel=0.1)


def test_a_photo_that_is_blurred_more_is_worked_on_smaller() -> None:
    picture = noisy(blurred(photo(side=400), 5))
    for std in (5.0, None):
        matched = match(picture, place, EXPECTED, least_side=128, blur_std=std)
        assert matched.fit.scaled == pytest.approx((240, 240), rel=0.1)
        assert matched.degradation.parameters["std"] == pytest.approx(3, abs=0.02)
        assert matched.missing is None
        assert estimate_blur(matched.fit.cut(matched.picture)) == pytest.approx(3, rel=0.15)
    matched = match(picture, place, EXPECTED, least_side=128, blur_std=50.0)
    assert matched.fit.scaled == (128, 128)


def test_a_photo_that_is_blurred_as_expected_stays_as_it_is() -> None:
    picture = noisy(blurred(photo(), 3))
    for std in (None, 3.0):
        matched = match(picture, place, EXPECTED, least_side=128, blur_std=std)
        assert torch.equal(matched.picture, picture)
        assert (matched.degradation, matched.missing) == (EXPECTED, None)
        assert matched.found == (BLUR.format("about ", 3) if std is None else None)
    told = match(picture, place, EXPECTED, least_side=128, blur_std=2.95)
    assert told.missing is None and told.degradation.parameters["std"] == 2.95


@pytest.mark.parametrize(
    ("kernel_size", "std"), [(7, 3.0), (11, 5.0), (61, 2.0), (61, 0.3), (101, 8.0), (3, 0.1)]
)
def test_what_an_operator_of_ones_own_was_trained_for_is_left_as_it_is(
    kernel_size: int, std: float
) -> None:
    expected = Degradation("gaussian_blur", {"kernel_size": kernel_size, "std": std})
    picture = noisy(expected.operator().forward(photo(side=400)))
    matched = match(picture, place, expected, least_side=128)
    if std > 1:
        assert (matched.degradation, matched.missing) == (expected, None)
        assert matched.as_it_came == expected
    assert matched.fit.scaled == (400, 400)
    for told in (0.0, 0.93 * std, 100.0):
        matched = match(picture, place, expected, least_side=128, blur_std=told)
        assert matched.found is None and matched.doubt is None


@pytest.mark.parametrize("std", [6.0, 8.0, 12.0])
def test_a_strong_blur_is_found_in_a_smaller_picture(std: float) -> None:
    picture = noisy(GaussianBlur(kernel_size=121, std=std).forward(photo(side=512)))
    matched = match(picture, place, EXPECTED, least_side=128)
    assert max(matched.fit.scaled) == pytest.approx(512 * 3 / std, rel=0.15)


def test_a_large_photos_blur_is_told_in_its_own_pixels() -> None:
    picture = noisy(blurred(photo(side=1024), 3))
    matched = match(picture, place, EXPECTED, least_side=128)
    assert matched.fit.scale == 0.5
    assert matched.found is not None and re.search("(2.[89]|3.[0-3]) pixels", matched.found)
    assert matched.degradation.parameters["std"] == pytest.approx(1.5, rel=0.15)


@pytest.mark.parametrize(("quality", "turns"), [(5, 0), (10, 0), (10, 3), (40, 1)])
def test_a_jpeg_file_is_taken_for_what_it_is(quality: int, turns: int) -> None:
    def turned(stored: Tensor) -> Tensor:
        return torch.rot90(stored, turns, (-2, -1))

    expected = Degradation("jpeg", {"quality": 10})
    picture = turned(as_jpeg(photo()[..., :250, :], quality))  # blocks that do not end at the rim
    matched = match(picture, place, expected, least_side=128)
    shown = {"quality": quality, "turns": turns}
    assert matched.degradation == replace(expected, parameters=shown)
    assert torch.equal(matched.fit.cut(matched.picture), picture) and matched.doubt is None
    assert matched.found is not None and f"quality of {quality}." in matched.found
    large = turned(as_jpeg(photo(side=1024)[..., :1010, :], quality))
    scaled = match(large, place, expected, least_side=128)
    assert scaled.as_it_came == matched.degradation
    assert scaled.degradation.parameters["quality"] == HIGHEST  # there are no blocks any more
    for other in (photo(), picture[..., 3:-2, 5:-4]):
        matched = match(other, place, expected, least_side=128)
        kept = replace(expected, parameters={"quality": HIGHEST})
        assert matched.degradation == matched.as_it_came == kept
        assert matched.doubt is not None and "does not show" in matched.doubt


def test_a_short_shake_becomes_as_long_a_one_as_operators_of_ones_own_may_expect() -> None:
    longest = Degradation("motion_blur", {"kernel_size": 255, "length": 255, "angle": 10.0})
    came = noisy(MotionBlur(61, 9, 70).forward(photo("coffee", 1024)))
    matched = match(came, place, longest, least_side=128)
    assert isinstance(matched.missing, Echoes) and matched.missing.count > 50
    assert matched.missing.count * matched.missing.spacing == pytest.approx(255)


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer(LatentPrior.load("tiny"))


@pytest.mark.parametrize(
    ("std", "told"),
    [
        (0.0, "hardly looks blurred"),
        (1.5, "Blur of 1.[4-6] pixels"),
        (3.0, "Blur of about 3.0 pixels"),
        (5.0, "Blur of [45].. pixels"),
    ],
)
def test_a_photo_is_restored_however_blurred_it_is(
    restorer: Restorer, std: float, told: str
) -> None:
    clean = photo()
    came = noisy(blurred(clean, std))
    request = RestorationRequest("gaussian_blur", came, preset="quick")
    result = restorer.run(request)
    before, after = psnr(came, clean).item(), psnr(result.images, clean).item()
    print(f"std {std}: {before:.2f} dB before, {after:.2f} dB after")
    assert after > (35 if std == 0 else before + 0.8)
    assert re.search(told, " ".join(result.notices))


def test_a_sharp_photo_that_is_called_shaken_is_doubted_and_keeps_its_colours(
    restorer: Restorer,
) -> None:
    clean = photo()
    request = RestorationRequest("motion_blur", clean, preset="quick", steps=4)
    result = restorer.run(request)
    assert any("damaged less" in line for line in result.notices)
    (kept,) = restorer.run(replace(request, keep_known=False)).images
    # What is measured would else be undone to the last: to ripples of black and white.
    assert math.isclose(result.images.std().item(), kept.std().item(), rel_tol=0.3)
    simulated = restorer.run(replace(request, simulate=True))
    assert not simulated.notices


@pytest.mark.parametrize("quality", [5, 10, 30, 60])
def test_a_jpeg_file_of_any_quality_comes_back_no_worse(restorer: Restorer, quality: int) -> None:
    clean = photo()
    came = as_jpeg(clean, quality)
    result = restorer.run(RestorationRequest("jpeg_q10", came, preset="quick", steps=4))
    before, after = psnr(came, clean).item(), psnr(result.images, clean).item()
    assumed = psnr(Jpeg(10).explain(result.images, came, 0.01), clean).item()
    print(f"quality {quality}: {before:.2f} dB before, {after:.2f} dB after")
    assert after > before - (0.7 if quality > 50 else 0.45)
    assert quality <= 10 or after > assumed + 0.3
    assert any(f"quality of {quality}" in line for line in result.notices)


@pytest.mark.parametrize(
    ("task", "damage", "least"),
    [
        ("gaussian_blur", lambda clean: clean, 35),
        ("gaussian_blur", lambda clean: noisy(blurred(clean, 2)), None),
        ("jpeg_q10", lambda clean: as_jpeg(clean, 10), None),
        ("super_resolution_x4", SuperResolution(4).forward, None),
    ],
)
def test_of_a_large_photo_what_is_measured_comes_back_at_its_own_size(
    restorer: Restorer, task: str, damage: Callable[[Tensor], Tensor], least: float | None
) -> None:
    clean = torch.cat([photo("astronaut", 512), photo("coffee", 512)], dim=-1)
    request = RestorationRequest(task, damage(clean), preset="quick", steps=4, working_size=512)
    result = restorer.run(request)
    assert max(result.measured.fit.scaled) < 1024 and result.images.shape == clean.shape
    assert any("own size" in line for line in result.notices)
    before, after = psnr(result.measurement, clean).item(), psnr(result.images, clean).item()
    print(f"large, {task}: {before:.2f} dB before, {after:.2f} dB after")
    assert after > (before - 0.1 if least is None else least)
    scaled_up = result.measured.fit.undo(result.restored)
    assert after > psnr(scaled_up, clean).item() + 1


@pytest.mark.parametrize(
    ("task", "damage", "gain"),
    [
        ("motion_blur", lambda clean: noisy(MotionBlur(61, 40, 60.0).forward(clean)), 4),
        ("super_resolution_x4", SuperResolution(4).forward, -0.3),
    ],
)
def test_a_photo_of_several_windows_is_restored_at_its_own_size(
    restorer: Restorer, task: str, damage: Callable[[Tensor], Tensor], gain: float
) -> None:
    clean = photo("coffee", 560)
    result = restorer.run(RestorationRequest(task, damage(clean), preset="quick", steps=4))
    assert not any("larger working size" in line for line in result.notices)
    assert math.prod(result.measured.fit.working) > 512**2
    before, after = psnr(result.measurement, clean).item(), psnr(result.images, clean).item()
    sharper = edges(result.images) / edges(result.measurement)
    print(f"{task}: {before:.2f} dB before, {after:.2f} dB after, edges x {sharper:.2f}")
    assert after > before + gain and sharper > 1.2


def edges(picture: Tensor) -> float:
    return picture.diff(dim=-1).abs().mean().item()


def test_a_large_noisy_photo_is_kept_less_of_at_its_own_size(restorer: Restorer) -> None:
    clean = photo("coffee", 700)
    came = blurred(clean, 2) + 0.1 * torch.randn(
        clean.shape, generator=torch.Generator().manual_seed(0)
    )
    request = RestorationRequest(
        "gaussian_blur", came.clamp(-1, 1), preset="quick", steps=4, blur_std=2, working_size=512
    )
    result = restorer.run(request)
    original = result.measured.original
    assert original is not None and original.noise_sigma == pytest.approx(0.05, rel=0.2)
    assert psnr(result.images, clean).item() > psnr(came, clean).item() + 3


@pytest.mark.parametrize("task", ["gaussian_blur", "jpeg_q10"])
def test_a_photo_that_is_too_large_comes_back_scaled_up(
    restorer: Restorer, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.setattr(measured, "MOST_EXPLAINED", 600**2)
    for dtype in (torch.float16, torch.float64):
        came = as_jpeg(photo(side=700), 20).to(dtype)
        request = RestorationRequest(task, came, preset="quick", steps=2, working_size=512)
        result = restorer.run(request)
        assert result.measured.original is None and result.images.shape == came.shape
        assert psnr(result.images, came.to(result.images)).item() > 25


def test_a_caption_on_a_blurred_photo_does_not_ruin_it(restorer: Restorer) -> None:
    clean = photo()
    came = blurred(clean, 3)
    came[..., 225:240:3, 20:180] = 1  # lines as thin as letters, near the rim
    request = RestorationRequest("gaussian_blur", came, preset="quick", steps=4, blur_std=3)
    kept, decoded = (
        restorer.run(replace(request, keep_known=keep)).images[..., :200, :]
        for keep in (True, False)
    )
    clean = clean[..., :200, :]
    assert psnr(kept, clean).item() > psnr(decoded, clean).item()


@pytest.mark.parametrize(
    ("side", "length", "angle"), [(256, 21, 0.0), (256, 12, 160.0), (700, 60, 100.0)]
)
def test_any_straight_shake_is_undone(
    restorer: Restorer, side: int, length: int, angle: float
) -> None:
    clean = photo("coffee", side)
    came = noisy(MotionBlur(121, length, angle).forward(clean))
    result = restorer.run(shaken_request(came))
    assert result.images.shape == clean.shape
    (found,) = (line for line in result.notices if "shake" in line)
    assert re.search(rf"A shake of {length} pixels at {angle:.0f} degrees", found)
    assert not any("likely to be wrong" in line for line in result.notices)
    before, after = psnr(came, clean).item(), psnr(result.images, clean).item()
    print(f"shake of {length} pixels, {side}: {before:.2f} dB before, {after:.2f} dB after")
    assert after > before + 2
    # On the grid it has, with what is missing, the length and the angle that are expected.
    measured = result.measured
    assert measured.missing is not None and isinstance(measured.fit, TurnedFit)
    sharp = MotionBlur().forward(measured.fit.apply(clean))
    middle = (..., *(slice(side // 3, -side // 3) for side in sharp.shape[-2:]))
    assert (measured.missing.forward(measured.y) - sharp)[middle].abs().mean() < 0.02
    # What explains a turned photo is found before it is turned, of what is not much larger.
    start = measured.fit.apply(came)
    draft = measured.draft(start)
    assert (draft is None) == (measured.fit.scale < 0.5) == (side == 700)
    if draft is not None:
        assert psnr(measured.fit.undo(draft), clean).item() > before + 2.5
    decoded = restorer.run(replace(shaken_request(came), keep_known=False))
    assert decoded.images.shape == clean.shape
    assert decoded.measured.original is None and psnr(decoded.images, clean).item() > before - 3


def test_a_turned_photo_stays_within_what_pictures_may_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    came = MotionBlur(61, 21, 0.0).forward(photo("coffee"))
    whole = match(came, place, Degradation("motion_blur"), least_side=128).fit
    for module in (images, matching):  # turned at its largest scale, it would have more
        monkeypatch.setattr(module, "MAX_PIXELS", 150_000)
    assert match(came, place, Degradation("motion_blur"), least_side=128).fit == whole


def shaken_request(came: Tensor) -> RestorationRequest:
    return RestorationRequest("motion_blur", came, preset="quick", steps=4, working_size=512)


def test_the_shake_that_is_expected_is_undone_as_it_is(restorer: Restorer) -> None:
    came = noisy(MotionBlur().forward(photo("coffee")))
    measured = restorer.run(shaken_request(came)).measured
    assert torch.equal(measured.y, came) and measured.missing is None
    assert measured.degradation == Degradation("motion_blur")
    assert measured.notices() == ["A shake of 31 pixels at 45 degrees was found in the photo."]


@pytest.mark.parametrize("side", [256, 640])
def test_a_noisy_photo_keeps_its_detail_and_one_without_is_kept(
    restorer: Restorer, side: int
) -> None:
    clean = photo("coffee", side)
    for sigma, told in ((0.0, True), (0.05, False)):
        noise = 2 * sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        came = (clean + noise).clamp(-1, 1)
        result = restorer.run(
            RestorationRequest("denoising", came, preset="quick", steps=4, working_size=512)
        )
        assert any("hardly any noise" in line for line in result.notices) == told
        before, after = psnr(came, clean).item(), psnr(result.images, clean).item()
        print(f"denoising {side} pixels, noise {sigma}: {before:.2f} dB before, {after:.2f} after")
        assert after > (35 if sigma == 0 else before + 4)
        assert result.parameters["noise_sigma"] == pytest.approx(sigma, abs=0.012)


@pytest.mark.parametrize("task", ["denoising", "gaussian_blur"])
@pytest.mark.parametrize("side", [256, 640])
def test_a_photo_is_as_noisy_as_is_said_where_it_shows_less(
    tiny_prior: LatentPrior, task: str, side: int
) -> None:
    request = RestorationRequest(task, photo(side=side), noise_sigma=0.1, working_size=512)
    measured = take_measurement(request, tiny_prior)
    scale = measured.fit.scale
    assert measured.noise_sigma == pytest.approx(0.1 * scale)
    assert measured.original is None or measured.original.noise_sigma == pytest.approx(0.1)
    assert "hardly any noise" not in " ".join(measured.notices())
    # Of more than it expects, its operator sees and is told nothing.
    seen = min(measured.noise_sigma, measured.expected_noise_sigma)
    assert measured.encoded_noise_sigma == pytest.approx(seen)


def test_noise_that_a_camera_has_smoothed_is_taken_away(restorer: Restorer) -> None:
    clean = photo("coffee")
    came = as_of_a_camera(clean, 0.05)
    request = RestorationRequest("denoising", came, preset="quick", steps=4)
    result = restorer.run(request)
    white = restorer.run(replace(request, noise_sigma=estimate_noise(to_pil(came))))
    before, after, less = (psnr(x, clean).item() for x in (came, result.images, white.images))
    print(f"noise of a camera, 0.05: {before:.2f} dB before, {after:.2f} dB after")
    assert after > before + 2 and after > less + 1


def test_of_a_tiny_photo_the_blur_is_assumed_and_told(restorer: Restorer) -> None:
    tiny = photo()[..., :48, :48]
    request = RestorationRequest("gaussian_blur", tiny, preset="quick", steps=2)
    assert any("3 pixels are assumed" in line for line in restorer.run(request).notices)
    told = restorer.run(replace(request, blur_std=0.0))
    assert not told.notices and psnr(told.images, tiny).item() > 30
