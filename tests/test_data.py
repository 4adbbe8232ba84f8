import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from silo.data import (
    HELD_OUT_ONE_IN,
    Photo,
    center_crop,
    is_held_out,
    iterate_photos,
    list_photos,
    random_crop,
    random_resized_crop,
    to_tensor,
)
from silo.errors import BadImage, BadRequest
from silo.images import load_image, to_pil


def _png(value: int, size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for index in range(100):
            for suffix, content in ((".png", _png(index)), (".txt", f"number {index}\n".encode())):
                member = tarfile.TarInfo(f"tarred_{index}{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (tmp_path / "single.png").write_bytes(_png(200))
    return tmp_path


def test_reads_folders_and_tars_with_their_captions(folder: Path) -> None:
    photos = {photo.name: photo for photo in iterate_photos([folder], "all")}
    assert len(photos) == 101
    assert photos["tarred_7"].caption == "number 7"
    assert photos["tarred_7"].pixels[0, 0].tolist() == [7, 0, 255]
    assert photos["single"].caption == ""


def test_the_split_is_a_partition_of_the_stated_size(folder: Path) -> None:
    train = {photo.name for photo in iterate_photos([folder], "train")}
    held_out = {photo.name for photo in iterate_photos([folder], "held_out")}
    assert train | held_out == {photo.name for photo in iterate_photos([folder], "all")}
    assert not train & held_out
    share = sum(is_held_out(f"picture {i}") for i in range(8000)) / 8000
    assert share == pytest.approx(1 / HELD_OUT_ONE_IN, rel=0.2)


@pytest.mark.parametrize("suffix", ["_face", "_whole", "_q01", "_h14", "_f02", "_512", "_f02_512"])
def test_crops_fall_on_the_side_of_their_picture(suffix: str) -> None:
    names = [f"picture_{i}" for i in range(300)]
    assert [is_held_out(name + suffix) for name in names] == [is_held_out(name) for name in names]


def test_small_pictures_are_enlarged_to_the_smallest_side(folder: Path) -> None:
    photo = next(iterate_photos([folder], "train", min_side=60))
    assert photo.pixels.shape == (60, 80, 3)


def test_pictures_are_decoded_as_those_to_restore_are(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 4), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    Image.fromarray(noise[..., :3]).save(tmp_path / "turned.jpg", exif=turned)
    Image.fromarray(noise).save(tmp_path / "see-through.png")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 256).save(tmp_path / "sixteen.png")
    found = {photo.name: photo.pixels for photo in iterate_photos([tmp_path], "all")}
    for path in tmp_path.iterdir():
        expected = to_pil(load_image(path).pixels)
        assert np.array_equal(found[path.stem], np.asarray(expected)), path.name
    assert found["turned"].shape == (9, 6, 3)
    assert found["sixteen"].max() > 200


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_the_values_of_an_ordinary_picture_are_those_of_its_file(
    tmp_path: Path, suffix: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).resize((90, 60)).save(path)
    (photo,) = iterate_photos([tmp_path], "all")
    with Image.open(path) as image:
        assert np.array_equal(photo.pixels, np.asarray(image))


def test_a_damaged_picture_and_one_that_is_gone_are_named(folder: Path) -> None:
    (folder / "broken.png").write_bytes(_png(1)[:60])
    (folder / "letter.png").write_text("no picture")
    files = {photo.name: photo for photo in list_photos([folder], "all")}
    with pytest.raises(BadImage, match="'broken' in .*broken.png: the file is damaged"):
        files["broken"].load()
    with pytest.raises(BadImage, match="'letter' in .*letter.png: this is not a picture"):
        files["letter"].load()
    (folder / "shard.tar").unlink()
    with pytest.raises(BadImage, match="'tarred_3' in .*shard.tar cannot be read .No such file"):
        files["tarred_3"].load()


def test_what_is_only_called_like_a_picture_is_none(folder: Path) -> None:
    before = list_photos([folder], "all")
    (folder / "folder.png").mkdir()
    (folder / "folder.tar").mkdir()
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    assert list_photos([folder], "all") == before


def test_a_caption_that_is_not_utf_8_is_read_as_far_as_it_is(tmp_path: Path) -> None:
    caption = "ein Käfer, 甲虫, ".encode() + "grün".encode("latin-1")
    (tmp_path / "a.png").write_bytes(_png(1))
    (tmp_path / "a.txt").write_bytes(caption)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name, content in (("b.png", _png(2)), ("b.txt", caption)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    captions = [photo.caption for photo in list_photos([tmp_path], "all")]
    assert captions == ["ein Käfer, 甲虫, gr\N{REPLACEMENT CHARACTER}n"] * 2


def test_missing_folders_and_empty_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no folder"):
        next(iterate_photos([tmp_path / "none"], "all"))
    inside = tmp_path / "cats"
    inside.mkdir()
    Image.new("RGB", (8, 8)).save(inside / "a.png")
    with pytest.raises(BadRequest, match="No pictures.* name the folders inside"):
        next(iterate_photos([tmp_path], "all"))
    assert next(iterate_photos([inside], "all")).name == "a"
    with pytest.raises(BadRequest, match="split"):
        next(iterate_photos([tmp_path], "test"))


def test_crops_are_parts_of_the_picture() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    photo = Photo("p", "", pixels)
    found = set()
    for seed in range(20):
        crop = random_crop(photo, 32, torch.Generator().manual_seed(seed))
        places = [
            (top, left, mirrored)
            for mirrored, view in enumerate((crop, crop[:, ::-1]))
            for top in range(19)
            for left in range(39)
            if np.array_equal(view, pixels[top : top + 32, left : left + 32])
        ]
        assert len(places) == 1
        found.add(places[0])
    assert {mirrored for _, _, mirrored in found} == {0, 1}
    assert len(found) > 15
    whole = center_crop(photo, 50)
    assert torch.equal(whole, to_tensor(pixels[:, 10:60]))
    assert whole.min() >= -1 and whole.max() <= 1


def test_resized_crops_have_the_size_asked_for_and_repeat_by_seed() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    one, two, other = (
        random_resized_crop(Photo("p", "", pixels), 24, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert one.shape == (3, 24, 24)
    assert torch.equal(one, two) and not torch.equal(one, other)
