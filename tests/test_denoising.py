"""What of a noisy picture rises above its noise comes back to its restoration."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.fft import dctn, idctn
from torch import Tensor

from operators import denoising, wiener
from operators.colours import OPPONENT
from operators.denoising import Denoising
from operators.wiener import CAUTION, MARGIN, NEIGHBOURS, STRIDE
from silo.metrics import psnr
from silo.photo.noise import LARGEST
from silo.request import RestorationRequest
from tests.photos import as_jpeg, as_of_a_camera, photo


def _noise(like: Tensor, sigma: float) -> Tensor:
    return 2 * sigma * torch.randn(like.shape, generator=torch.Generator().manual_seed(0))


def _smooth(picture: Tensor) -> Tensor:
    """A restoration that has lost detail."""
    small = F.interpolate(picture, scale_factor=0.25, mode="bicubic", antialias=True)
    return F.interpolate(small, picture.shape[-2:], mode="bicubic")


def test_it_is_an_empirical_wiener_filter_of_sliding_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wiener, "COLOURED", 1.0)  # white noise: its energy is known
    monkeypatch.setattr(wiener, "_shares", torch.ones_like)
    monkeypatch.setattr(denoising, "LEAST_SPECKS", 1.0)
    clean = photo(side=40).double()
    x, y, sigma = _smooth(clean), clean + _noise(clean, 0.04), 0.04
    mixture = torch.tensor(OPPONENT, dtype=torch.float64)
    missed = torch.einsum("oc,chw->ohw", mixture, (y - x)[0])
    kept = torch.zeros_like(missed)
    padded = F.pad(missed[None], (MARGIN,) * 4, mode="reflect")[0]
    starts = range(0, 40 + 2 * MARGIN - 7, STRIDE)
    for channel in range(3):
        blocks: dict[tuple[int, int], Any] = {
            (i, j): dctn(padded[channel, i : i + 8, j : j + 8].numpy(), norm="ortho")
            for i in starts
            for j in starts
        }
        summed = torch.zeros_like(padded[channel])
        reach = NEIGHBOURS // 2 * STRIDE
        for (i, j), block in blocks.items():
            around: list[Any] = [
                blocks.get((k, m))
                for k in range(i - reach, i + reach + 1, STRIDE)
                for m in range(j - reach, j + reach + 1, STRIDE)
            ]
            if any(each is None for each in around):
                continue  # beyond what matters to the picture
            energy = np.mean([each**2 for each in around], axis=0)
            share = (1 - CAUTION * (2 * sigma) ** 2 / energy).clip(min=0)
            shrunk = torch.from_numpy(idctn(share * block, norm="ortho"))
            summed[i : i + 8, j : j + 8] += shrunk / (8 / STRIDE) ** 2
        kept[channel] = summed[MARGIN:-MARGIN, MARGIN:-MARGIN]
    expected = (x + torch.einsum("oc,ohw->chw", mixture, kept)).clamp(-1, 1)
    torch.testing.assert_close(Denoising().explain(x, y, sigma), expected)


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1])
def test_detail_comes_back_and_noise_does_not(sigma: float) -> None:
    clean = photo("coffee")
    x, y = _smooth(clean), clean + _noise(clean, sigma)
    better = Denoising().explain(x, y, sigma)
    assert psnr(better, clean).item() > max(psnr(x, clean).item(), psnr(y, clean).item()) + 2
    untouched = Denoising().explain(clean, y, sigma)
    assert (untouched - clean).square().mean() < 0.02 * (y - clean).square().mean()


def test_smooth_noise_is_found_where_the_restoration_is_flat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clean = photo("coffee")
    y = as_jpeg(clean + _noise(clean, 0.06), 85)  # which takes noise of high frequencies
    x = _smooth(clean)
    found = Denoising().explain(x, y, 0.045)
    monkeypatch.setattr(wiener, "COLOURED", 1.0)
    monkeypatch.setattr(wiener, "_shares", torch.ones_like)
    white = Denoising().explain(x, y, 0.045)
    assert psnr(found, clean).item() > psnr(white, clean).item() + 0.5


@pytest.mark.parametrize("size", [(1, 9), (5, 7), (8, 8), (37, 90), (150, 71)])
def test_strips_and_odd_sizes_fit_together(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = F.interpolate(photo(side=256), size, mode="bicubic", antialias=True).clamp(-1, 1)
    x, y = torch.zeros_like(clean), clean + _noise(clean, 0.05)
    whole = Denoising().explain(x, y, 0.05)
    assert whole.shape == clean.shape
    if max(size) > 100:
        assert (whole - clean).square().mean() < 0.9 * (y - clean).square().mean()
    monkeypatch.setattr(wiener, "STRIP", 32)
    torch.testing.assert_close(Denoising().explain(x, y, 0.05), whole, atol=1e-5, rtol=0)


def test_large_pictures_take_fewer_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = photo("coffee")
    x, y = _smooth(clean), clean + _noise(clean, 0.05)
    fine = Denoising().explain(x, y, 0.05)
    monkeypatch.setattr(wiener, "LARGE", 0)
    coarse = Denoising().explain(x, y, 0.05)
    assert 0 < (coarse - fine).abs().max()
    assert psnr(coarse, clean).item() == pytest.approx(psnr(fine, clean).item(), abs=0.5)


def test_of_grey_noise_brightness_has_more(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = photo("chelsea")
    y = clean + _noise(clean[:, :1], 0.08)
    better = psnr(Denoising().explain(_smooth(clean), y, 0.08), clean).item()
    monkeypatch.setattr(wiener, "_shares", torch.ones_like)
    assert better > psnr(Denoising().explain(_smooth(clean), y, 0.08), clean).item() + 1


def test_specks_are_left_out_and_white_areas_are_not() -> None:
    clean = photo("coffee")
    clean[..., 20:60, 30:90] = 1.0
    draw = torch.rand(clean.shape, generator=torch.Generator().manual_seed(0))
    y = torch.where(draw < 0.02, -1.0, torch.where(draw > 0.98, 1.0, clean))
    assert psnr(y, clean).item() < 21
    assert psnr(Denoising().explain(_smooth(clean), y, 0.01), clean).item() > 33
    assert torch.equal(
        denoising._without_specks(clean)[..., 20:60, 30:90], clean[..., 20:60, 30:90]
    )


def test_without_noise_all_comes_back() -> None:
    clean = photo(side=64)
    torch.testing.assert_close(Denoising().explain(_smooth(clean), clean, 0.0), clean)
    assert Denoising().explain(clean, clean, 0.0).isfinite().all()


def test_the_noise_of_a_photo_is_what_it_shows() -> None:
    clean = photo("coffee")
    came = (clean + _noise(clean, 0.08)).clamp(-1, 1)
    assert RestorationRequest("denoising", came).effective_noise_sigma == pytest.approx(
        0.08, rel=0.1
    )
    assert RestorationRequest("denoising", came, noise_sigma=0.03).effective_noise_sigma == 0.03
    assert RestorationRequest("denoising", came, simulate=True).effective_noise_sigma == 0.05
    rows = torch.arange(64) % 2 * 2.0 - 1
    board = (rows[:, None] * rows).expand(1, 3, -1, -1)
    assert RestorationRequest("denoising", board).effective_noise_sigma == LARGEST


def test_more_of_noise_that_a_camera_has_smoothed_is_taken_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clean = photo("coffee")
    came, white = as_of_a_camera(clean, 0.06), clean + _noise(clean, 0.06)
    errors = []
    for smoothed in (wiener.SMOOTHED, wiener.COLOURED):
        monkeypatch.setattr(wiener, "SMOOTHED", smoothed)
        kept = [Denoising().explain(_smooth(clean), y, 0.06) for y in (came, white)]
        errors.append([float((each - clean).square().mean()) for each in kept])
    (of_camera, of_white), (as_if_white, same) = errors
    assert of_camera < 0.9 * as_if_white
    assert of_white == same
