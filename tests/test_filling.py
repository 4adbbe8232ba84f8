"""A hole is filled on the tones around it, and what is known stays."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from silo.photo import filling
from silo.photo.filling import DEPTH, LEAST_DETAIL, keep_known, membrane
from tests.photos import photo


def hole(height: int, width: int, rows: slice, columns: slice) -> Tensor:
    mask = torch.ones(1, 1, height, width)
    mask[..., rows, columns] = 0
    return mask


def scattered(height: int, width: int, share: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(1, 1, height, width, generator=generator) < share).float()


MASKS = {
    "box": hole(21, 30, slice(6, 14), slice(9, 22)),
    "at the rim": hole(21, 30, slice(0, 9), slice(20, 30)),
    "scratch": hole(21, 30, slice(0, 21), slice(12, 14)),
    "scattered": scattered(21, 30, 0.2),
    "one pixel": 1 - hole(21, 30, slice(3, 4), slice(5, 6)),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_membrane_is_where_each_unknown_pixel_is_the_mean_of_its_neighbours(name: str) -> None:
    mask = MASKS[name]
    height, width = mask.shape[-2:]
    pixels = photo("coffee", 64)[..., :height, :width].double()
    unknown = (mask[0, 0] == 0).flatten()
    # The same as one linear system: each unknown pixel less the mean of the pixels beside it.
    index = torch.arange(height * width).reshape(1, 1, height, width).double()
    padded = F.pad(index, (1, 1, 1, 1), mode="replicate")[0, 0].long()
    system = torch.eye(height * width, dtype=torch.float64)
    for rows, columns in ((0, 1), (2, 1), (1, 0), (1, 2)):
        beside = padded[rows : rows + height, columns : columns + width].flatten()
        for pixel in unknown.nonzero()[:, 0].tolist():
            system[pixel, beside[pixel]] -= 0.25
    known = pixels[0].flatten(1).T * ~unknown[:, None]
    expected = torch.linalg.solve(system, known).T.reshape(1, 3, height, width)
    found = membrane(pixels, mask.double())
    assert (found - expected).abs().max() < 0.1
    assert (found - expected)[(mask == 0).expand_as(found)].square().mean().sqrt() < 0.025


@pytest.mark.parametrize("name", MASKS)
def test_what_is_known_stays_and_what_lies_in_a_hole_makes_no_difference(name: str) -> None:
    mask = MASKS[name]
    height, width = mask.shape[-2:]
    truth, restored = photo("coffee", 64)[..., :height, :width], photo("cat", 64)
    restored = torch.cat([restored, -restored])[..., :height, :width]
    filled = [keep_known(restored, truth * mask + (1 - mask) * value, mask) for value in (-1, 0.5)]
    assert filled[0].shape == restored.shape and torch.equal(*filled)
    known = (mask == 1).expand_as(restored)
    assert torch.equal(filled[0][known], truth.expand_as(restored)[known])
    assert filled[0].abs().max() <= 1


def test_a_restoration_that_is_off_by_a_tone_is_put_right() -> None:
    truth, mask = photo("astronaut", 128), hole(128, 128, slice(30, 90), slice(40, 100))
    inside = (mask == 0).expand_as(truth)
    ramp = torch.linspace(0.2, 0.4, 128).expand(1, 3, 128, 128)
    truth = 0.5 * truth
    off = (keep_known(truth + ramp, truth, mask) - truth).abs()
    assert off[inside].mean() < 0.03
    deep = hole(128, 128, slice(55, 65), slice(65, 75))
    assert off[(deep == 0).expand_as(off)].max() < 0.02  # all detail is there


def test_beside_what_is_known_half_of_the_painted_detail_counts() -> None:
    for width, magnified in ((1, 1.0), (4, 4.0)):  # a scratch, one restored pixel wide
        middle = slice(32, 32 + width)
        mask = hole(64, 64, middle, slice(0, 64))
        detail = torch.zeros(1, 3, 64, 64)
        detail[..., middle, :] = 0.4
        filled = keep_known(detail, torch.zeros(1, 3, 64, 64), mask, magnified=magnified)
        weight = (1 - (1 - LEAST_DETAIL) * math.exp(-1 / DEPTH)) ** (1 if magnified == 1 else 2)
        mean = filled[..., middle, :].mean().item()
        assert mean == pytest.approx(0.4 * weight, rel=1e-4 if width == 1 else 0.15)


def test_of_a_picture_that_is_all_hole_or_all_known_there_is_nothing_to_carry_on() -> None:
    restored, truth = photo("coffee", 8), photo("cat", 8)
    assert torch.equal(keep_known(restored, truth, torch.zeros(1, 1, 8, 8)), restored)
    assert torch.equal(keep_known(restored, truth, torch.ones(1, 1, 8, 8)), truth)


def test_large_holes_are_filled_about_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, mask = photo("coffee", 128), hole(128, 128, slice(40, 90), slice(20, 101))
    small = keep_known(-truth, truth, mask)
    monkeypatch.setattr(filling, "LARGE", 10)
    large = keep_known(-truth, truth, mask)
    assert not torch.equal(large, small) and (large - small).abs().mean() < 0.02
