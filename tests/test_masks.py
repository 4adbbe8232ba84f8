from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from silo import masks
from silo.errors import BadMask
from silo.images import fit
from silo.masks import check_size, load_mask


def save(path: Path, values: list, mode: str) -> Path:
    pixels = np.array(values, np.uint16 if mode == "I;16" else np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_white_is_the_hole(tmp_path: Path):
    mask = load_mask(save(tmp_path / "m.png", [[0, 255, 0]], "L"))
    assert mask.shape == (1, 1, 1, 3)
    assert mask.dtype == torch.float32
    assert mask.flatten().tolist() == [1, 0, 1]


def test_greys_are_split_half_way(tmp_path: Path):
    eight = load_mask(save(tmp_path / "m.png", [[1, 127, 128, 254]], "L"))
    sixteen = load_mask(save(tmp_path / "n.png", [[9, 32000, 33000, 65000]], "I;16"))
    assert eight.flatten().tolist() == sixteen.flatten().tolist() == [1, 1, 0, 0]


def test_colours_count_by_their_brightness(tmp_path: Path):
    path = save(tmp_path / "m.png", [[[255, 255, 0], [0, 0, 255], [255, 255, 255]]], "RGB")
    assert load_mask(path).flatten().tolist() == [0, 1, 0]


def test_in_a_layer_what_is_painted_is_the_hole_whatever_its_colour(tmp_path: Path):
    clear, black, white = [255, 255, 255, 0], [0, 0, 0, 255], [255, 255, 255, 255]
    faint, strong = [9, 9, 9, 127], [9, 9, 9, 128]
    path = save(tmp_path / "m.png", [[clear, black, white, faint, strong]], "RGBA")
    assert load_mask(path).flatten().tolist() == [1, 0, 0, 1, 0]


def test_an_opaque_file_with_an_alpha_channel_counts_by_its_brightness(tmp_path: Path):
    path = save(tmp_path / "m.png", [[[0, 0, 0, 255], [255, 255, 255, 255]]], "RGBA")
    assert load_mask(path).flatten().tolist() == [1, 0]


def test_an_empty_layer_has_no_hole(tmp_path: Path):
    assert load_mask(save(tmp_path / "m.png", [[[0, 0, 0, 0]] * 3], "RGBA")).min() == 1


def test_a_mask_is_turned_as_its_photo_is(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.array([[255, 0, 0]], np.uint8)).save(tmp_path / "m.png", exif=exif)
    mask = load_mask(tmp_path / "m.png")
    assert mask.shape == (1, 1, 3, 1)
    assert mask.flatten().tolist() == [0, 1, 1]


def test_an_unreadable_mask_is_a_bad_mask(tmp_path: Path):
    (tmp_path / "m.png").write_bytes(b"no picture")
    with pytest.raises(BadMask, match=r"^m\.png: this is not a picture"):
        load_mask(tmp_path / "m.png")


def test_another_size_is_refused_with_both_sizes():
    check_size(torch.ones(1, 1, 4, 6), torch.zeros(1, 3, 4, 6))
    with pytest.raises(BadMask, match="6 x 4 pixels and the picture 4 x 6;"):
        check_size(torch.ones(1, 1, 4, 6), torch.zeros(1, 3, 6, 4))


def test_a_mask_goes_where_its_picture_goes():
    picture = torch.rand(1, 3, 37, 53, generator=torch.Generator().manual_seed(0))
    _, plan = fit(picture, multiple=16, max_pixels=10**6)
    known = (torch.rand(1, 1, 37, 53, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    fitted = masks.fit(known, plan)
    assert torch.equal(fitted[..., :37, :53], known)
    # The padding mirrors the picture, holes included: what lies in a hole never counts as known.
    expected = np.pad(known[0, 0].numpy(), ((0, 11), (0, 11)), mode="reflect")
    assert (fitted[0, 0].numpy() == expected).all()


def test_the_padding_of_an_intact_edge_is_known():
    _, plan = fit(torch.zeros(1, 3, 30, 30), multiple=32, max_pixels=10**6)
    mask = torch.ones(1, 1, 30, 30)
    mask[..., 5:10, 5:10] = 0
    fitted = masks.fit(mask, plan)
    assert fitted.sum() == 32 * 32 - 25


def test_the_thinnest_scratch_survives_scaling():
    size = (1000, 700)
    _, plan = fit(torch.zeros(1, 3, *size), multiple=8, max_pixels=128 * 128)
    for row in range(0, size[0], 97):
        mask = torch.ones(1, 1, *size)
        mask[..., row, :] = 0
        fitted = masks.fit(mask, plan)[0, 0, : plan.scaled[0], : plan.scaled[1]]
        holes = (fitted == 0).nonzero()[:, 0].unique()
        assert (fitted[holes] == 0).all()
        covering = row * plan.scaled[0] / size[0]
        assert holes.min() <= covering < holes.max() + 1
        assert len(holes) <= 2
    assert set(fitted.unique().tolist()) == {0.0, 1.0}


def test_nothing_known_at_the_working_size_is_an_error_that_says_so():
    size = (128, 128)
    _, plan = fit(torch.zeros(1, 3, *size), multiple=8, max_pixels=32 * 32)
    dots = torch.zeros(1, 1, *size)
    dots[..., ::2, ::2] = 1  # a quarter is known, but no 4 x 4 pixels are
    with pytest.raises(BadMask, match="25% of the picture .* scaled to 32 x 32"):
        masks.fit(dots, plan)
    dots[..., :4, :4] = 1
    assert masks.fit(dots, plan).sum() == 1
