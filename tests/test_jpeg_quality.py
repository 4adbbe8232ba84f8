"""The JPEG quality that a photo is found to have been stored with."""

import pytest
import torch

from silo.photo.jpeg_quality import Compression, find_compression
from tests.photos import NAMES, as_jpeg, photo


@pytest.mark.parametrize("quality", [4, 7, 10, 20, 35, 50, 75, 90])
@pytest.mark.parametrize("name", NAMES)
def test_the_quality_of_a_photo_is_found(name: str, quality: int) -> None:
    found = find_compression(as_jpeg(photo(name), quality))
    assert found is not None and found.turns == 0
    assert found.quality == pytest.approx(quality, abs=1)  # neighbours share most of their steps


@pytest.mark.parametrize(("first", "second"), [(10, 75), (20, 75), (30, 85), (40, 90)])
@pytest.mark.parametrize("name", NAMES)
def test_of_a_photo_that_was_stored_again_the_worse_quality_is_found(
    name: str, first: int, second: int
) -> None:
    found = find_compression(as_jpeg(as_jpeg(photo(name), first), second))
    assert found is not None and found.quality == pytest.approx(first, abs=1)
    better_first = find_compression(as_jpeg(as_jpeg(photo(name), second), first))
    assert better_first is not None and better_first.quality == pytest.approx(first, abs=1)


def test_a_photo_that_is_cut_off_at_the_right_keeps_its_blocks() -> None:
    cut = as_jpeg(photo(), 30)[..., :203, :197]
    for turns in range(4):
        turned = torch.rot90(cut, turns, (-2, -1))
        assert find_compression(turned) == Compression(quality=30, turns=turns)


@pytest.mark.parametrize("name", NAMES)
def test_no_quality_is_found_where_none_shows(name: str) -> None:
    assert find_compression(photo(name)) is None
    assert find_compression(as_jpeg(photo(name), 30)[..., 3:-2, 5:-4]) is None
    assert find_compression(as_jpeg(photo(name), 97)) is None


def test_of_flat_clipped_and_tiny_pictures_no_quality_is_told() -> None:
    ramp = (torch.arange(256) / 127.5 - 1).expand(1, 3, 256, 256)
    for picture in (
        ramp,
        ramp.mT,
        (ramp + ramp.mT) / 2,
        *photo().unfold(-2, 16, 48).unfold(-2, 16, 48).flatten(2, 3).unbind(2),
        torch.full((1, 3, 64, 64), 0.3),
        torch.ones(1, 3, 64, 64),
        photo()[..., :5, :5],
    ):
        assert find_compression(picture) is None
