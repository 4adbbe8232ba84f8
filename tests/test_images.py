import io
import json
import os
import resource
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from silo import decoding
from silo.decoding import MAX_FILE_BYTES, MAX_PIXELS, SUFFIXES, read_header
from silo.errors import BadImage, BadRequest, CannotSave, NumericalError
from silo.images import fit, from_pil, load_image, read_parameters, save_png, to_pil


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Reproducible uint8 noise (H, W, channels)."""
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def eight_bits(path: Path) -> np.ndarray:
    """What `load_image` makes of a file, back as uint8 (H, W, 3)."""
    return np.asarray(to_pil(load_image(path).pixels))


def chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG put together by hand, for what Pillow cannot write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [
        chunk(b"IHDR", header),
        *extra,
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_an_rgb_file_is_read_value_for_value(tmp_path: Path):
    pixels = noise(5, 7)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert loaded.pixels.shape == (1, 3, 5, 7)
    assert loaded.notices == []
    expected = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    torch.testing.assert_close(loaded.pixels, expected)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_accepted_suffix_is_a_format_that_is_read(tmp_path: Path, suffix: str):
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (9, 6), (250, 128, 10)).save(path)
    found = eight_bits(path).astype(int)
    assert found.shape == (6, 9, 3)
    assert np.abs(found - (250, 128, 10)).max() <= 4  # lossy formats


@pytest.mark.parametrize(
    ("suffix", "stored"),
    [
        ("tif", {"compression": "tiff_lzw"}),  # its directory is at the end
        ("webp", {"lossless": True, "quality": 0, "method": 0}),
        ("png", {"compress_level": 0}),
        ("bmp", {}),
    ],
)
def test_the_header_of_a_file_of_some_megabytes_is_read(
    tmp_path: Path, suffix: str, stored: dict[str, Any]
):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(600, 700)).save(path, **stored)
    assert path.stat().st_size > 1_200_000
    assert read_header(path).size == (700, 600)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str):
    values = np.array([[0, 255, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    expected = np.round(values / 65535 * 255).astype(int)
    assert (eight_bits(tmp_path / f"a.{suffix}")[..., 0] == expected).all()


def test_sixteen_bit_colour_is_scaled_not_clipped(tmp_path: Path):
    values = np.array([[[0, 65535, 25700], [65535, 514, 128]]], ">u2")
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 2, b"\0" + values.tobytes()))
    assert np.abs(eight_bits(tmp_path / "a.png") - values.astype(float) / 257).max() <= 1


def test_the_transparent_level_of_a_sixteen_bit_grey_becomes_white(tmp_path: Path):
    values = np.array([[0, 1000]], ">u2")
    data = png(2, 1, 16, 0, b"\0" + values.tobytes(), chunk(b"tRNS", struct.pack(">H", 1000)))
    (tmp_path / "a.png").write_bytes(data)
    assert eight_bits(tmp_path / "a.png")[0, :, 0].tolist() == [0, 255]


def test_transparency_is_composited_on_white_and_told(tmp_path: Path):
    pixels = np.array([[[200, 0, 0, 255], [0, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert np.asarray(to_pil(loaded.pixels)).tolist() == [[[200, 0, 0], [255] * 3, [204] * 3]]
    assert len(loaded.notices) == 1 and "white" in loaded.notices[0]


def test_an_opaque_alpha_channel_is_no_notice(tmp_path: Path):
    Image.new("RGBA", (4, 4), (1, 2, 3, 255)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").notices == []


def test_a_palette_with_a_transparent_entry_is_composited(tmp_path: Path):
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=1)
    assert eight_bits(tmp_path / "a.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_cmyk_becomes_rgb(tmp_path: Path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red, green, blue = eight_bits(tmp_path / "a.jpg")[8, 8]
    assert red > 240 and green < 15 and blue < 15


def test_bilevel_and_grey_become_three_equal_channels(tmp_path: Path):
    Image.new("1", (3, 3), 1).save(tmp_path / "one.png")
    Image.new("L", (3, 3), 77).save(tmp_path / "grey.png")
    assert (eight_bits(tmp_path / "one.png") == 255).all()
    assert (eight_bits(tmp_path / "grey.png") == 77).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(tmp_path: Path, orientation: int):
    upright = noise(4, 6)
    # How the camera stored the upright picture, by the EXIF standard's definition of the tag.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert (eight_bits(tmp_path / "a.png") == upright).all()


@pytest.mark.parametrize("odd", [(0x0132, 11, 1, 1.0), (0x0100, 3, 1, -1), (0x010E, 99, 1, 0)])
def test_tags_that_cannot_be_written_do_not_keep_a_picture_from_being_turned(
    tmp_path: Path, odd: tuple[int, int, int, float]
):
    tag, kind, count, value = odd
    field = struct.pack("<f" if kind == 11 else "<i", value)
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHI", tag, kind, count)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + field + bytes(4)
    Image.fromarray(noise(8, 16)).save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").pixels.shape == (1, 3, 16, 8)


def test_a_picture_with_damaged_metadata_is_taken_as_it_is_stored(tmp_path: Path):
    damaged = chunk(b"eXIf", b"no TIFF structure")
    (tmp_path / "a.png").write_bytes(png(2, 1, 8, 0, b"\0\7\1", damaged))
    assert load_image(tmp_path / "a.png").pixels.shape == (1, 3, 1, 2)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_an_animation_the_first_frame_is_used_and_told(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.{suffix}"
    first, second = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "black")
    first.save(path, save_all=True, append_images=[second])
    loaded = load_image(path)
    assert loaded.pixels.min() > 0.9
    assert len(loaded.notices) == 1 and "first" in loaded.notices[0]


def test_thirty_two_bit_pixels_are_refused(tmp_path: Path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(BadImage, match="32-bit.*save it as"):
        load_image(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file_is_called_damaged(tmp_path: Path, suffix: str):
    buffer = tmp_path / f"whole{suffix}"
    Image.fromarray(noise(64, 64)).save(buffer)
    data = buffer.read_bytes()
    path = tmp_path / f"cut{suffix}"
    for length in (len(data) // 2, 12):
        path.write_bytes(data[:length])
        with pytest.raises(BadImage, match=rf"^cut\{suffix}: .*damaged"):
            load_image(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.png", b"", "empty"),
        ("text.jpg", b"not a picture, but a letter\n" * 20, "not a picture"),
        ("sound.webp", b"RIFF\x24\0\0\0WAVEfmt " + bytes(64), "not a picture"),
        ("drawing.svg", b'<?xml version="1.0"?>\n<svg width="9" height="9"/>', "SVG"),
        ("phone.jpg", b"\0\0\0\x18ftypheic" + bytes(64), "HEIC"),
        ("program.png", b"\x7fELF" + bytes(100), "not a picture"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadImage, match=message) as caught:
        load_image(tmp_path / name)
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_named(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadImage, match="folder"):
        load_image(tmp_path)
    with pytest.raises(BadImage, match="no such file"):
        load_image(tmp_path / "missing.png")
    with pytest.raises(BadImage, match="regular file"):
        load_image(tmp_path / "pipe.png")
    with pytest.raises(BadImage, match="valid path"):
        load_image("a\0b.png")
    with pytest.raises(BadImage, match="cannot be read"):
        load_image(tmp_path / ("x" * 300))


def test_a_name_that_would_break_the_line_is_made_printable(tmp_path: Path):
    with pytest.raises(BadImage, match=r"^two\?lines\.png: "):
        load_image(tmp_path / "two\nlines.png")


def test_a_file_that_is_too_large_is_refused_with_the_cap(tmp_path: Path):
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(BadImage, match="200 MB"):
        load_image(path)


@pytest.mark.parametrize("kind", ["png", "gif", "bmp", "tif", "jpg"])
def test_a_bomb_is_refused_from_its_header(tmp_path: Path, kind: str):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind))
    data = bytearray(buffer.getvalue())
    if kind == "png":
        data = bytearray(png(30000, 30000, 1, 0, b""))
    elif kind == "gif":
        data[6:10] = struct.pack("<HH", 30000, 30000)
    elif kind == "bmp":
        data[18:26] = struct.pack("<ii", 30000, 30000)
    elif kind == "tif":
        for tag in (256, 257):  # width and length, one value each
            at = (
                data.index(struct.pack("<HHI", tag, 4, 1))
                if struct.pack("<HHI", tag, 4, 1) in data
                else data.index(struct.pack("<HHI", tag, 3, 1))
            )
            data[at : at + 12] = struct.pack("<HHII", tag, 4, 1, 30000)
    else:
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 30000, 30000)
    (tmp_path / f"bomb.{kind}").write_bytes(data)
    for read in (load_image, read_header):
        with pytest.raises(BadImage, match="30000 x 30000 is 900 megapixels.* 50"):
            read(tmp_path / f"bomb.{kind}")


def test_refusing_a_bomb_takes_little_memory(tmp_path: Path):
    (tmp_path / "bomb.png").write_bytes(png(30000, 30000, 8, 2, bytes(10_000_000)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImage):
        load_image(tmp_path / "bomb.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_frame_that_outgrows_its_header_is_refused(tmp_path: Path):
    buffer = io.BytesIO()
    Image.new("P", (8, 8)).save(buffer, "GIF")
    data = bytearray(buffer.getvalue())
    at = data.index(b"\x2c", 13 + 3 * 2)
    data[at + 5 : at + 9] = struct.pack("<HH", 60000, 60000)
    (tmp_path / "a.gif").write_bytes(data)
    with pytest.raises(BadImage):
        load_image(tmp_path / "a.gif")


def test_odd_metadata_warns_nobody(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker" * 20
    Image.fromarray(noise(8, 8)).save(tmp_path / "a.jpg", exif=exif.tobytes()[:-40])
    (tmp_path / "apng.png").write_bytes(
        png(1, 1, 8, 0, b"\0\7", chunk(b"acTL", struct.pack(">II", 0, 0)))
    )
    load_image(tmp_path / "a.jpg")
    load_image(tmp_path / "apng.png")
    assert not recwarn.list


def test_pictures_are_decoded_side_by_side_and_warnings_come_back(tmp_path: Path):
    path, filters, sizes = tmp_path / "a.png", list(warnings.filters), []
    Image.new("RGB", (3, 2)).save(path)
    with decoding._quiet():  # as while a large picture is decoded
        other = threading.Thread(target=lambda: sizes.append(read_header(path).size), daemon=True)
        other.start()
        other.join(60)
        assert sizes == [(3, 2)]
        assert warnings.filters[0][0] == "ignore"
    assert list(warnings.filters) == filters


def test_to_pil_rounds_and_cuts():
    values = torch.tensor([-3.0, -1.0, 0.0, 0.999, 1.0, 7.0]).expand(3, 1, 6)
    assert np.asarray(to_pil(values))[0, :, 0].tolist() == [0, 0, 128, 255, 255, 255]


def test_from_pil_and_to_pil_are_inverses():
    pixels = noise(9, 11)
    assert (np.asarray(to_pil(from_pil(Image.fromarray(pixels)))) == pixels).all()


def test_a_picture_that_is_not_finite_is_not_painted_black():
    with pytest.raises(NumericalError, match="float32"):
        to_pil(torch.full((1, 3, 2, 2), float("nan")))


def test_parameters_travel_in_the_png(tmp_path: Path):
    parameters = {"task": "jpeg_q10", "eta": 0.5, "prompt": "ein Käfer, 甲虫", "clamp": None}
    save_png(tmp_path / "a.png", from_pil(Image.fromarray(noise(6, 5))), parameters)
    assert read_parameters(tmp_path / "a.png") == parameters
    assert (eight_bits(tmp_path / "a.png") == noise(6, 5)).all()
    with Image.open(tmp_path / "a.png") as image:
        assert json.loads(image.info["silo"]) == parameters
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o644


def test_a_result_of_many_megabytes_is_a_photo_again(tmp_path: Path):
    save_png(tmp_path / "a.png", from_pil(Image.fromarray(noise(2700, 2700))), {"seed": 3})
    assert 20e6 < (tmp_path / "a.png").stat().st_size < 1.01 * 3 * 2700**2
    assert 1.01 * 3 * MAX_PIXELS < MAX_FILE_BYTES
    assert load_image(tmp_path / "a.png").pixels.shape == (1, 3, 2700, 2700)
    assert read_parameters(tmp_path / "a.png") == {"seed": 3}


def test_pictures_without_parameters_have_none(tmp_path: Path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.jpg")
    (tmp_path / "b.png").write_bytes(png(1, 1, 8, 0, b"\0\0", chunk(b"tEXt", b"silo\0{not json")))
    (tmp_path / "c.png").write_bytes(png(1, 1, 8, 0, b"\0\0", chunk(b"tEXt", b"silo\0[1]")))
    for name in ("a.jpg", "b.png", "c.png"):
        assert read_parameters(tmp_path / name) is None


def test_saving_where_it_cannot_be_done_leaves_nothing(tmp_path: Path):
    image = torch.zeros(3, 2, 2)
    with pytest.raises(CannotSave, match=r"a\.png.*No such file"):
        save_png(tmp_path / "missing" / "a.png", image)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(CannotSave, match="folder"):
        save_png(tmp_path / "folder.png", image)
    with pytest.raises(NumericalError):
        save_png(tmp_path / "nan.png", image / 0)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


SIZES = [(64, 64), (65, 64), (1, 1), (1, 200), (333, 1), (63, 129), (120, 160), (37, 300)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("multiple", "factor"), [(64, 1), (8, 1), (64, 4), (64, 8), (8, 16), (24, 4)]
)
def test_below_the_cap_a_picture_goes_on_the_grid_and_comes_back_exactly(
    size: tuple[int, int], multiple: int, factor: int
):
    pixels = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    fitted, plan = fit(pixels, multiple=multiple, max_pixels=10**9, factor=factor)
    height, width = fitted.shape[-2:]
    assert (height * factor) % multiple == 0 == (width * factor) % multiple
    assert (height - size[0]) * factor < multiple * factor
    assert torch.equal(fitted[..., : size[0], : size[1]], pixels)
    full = fitted.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    expected = pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    assert torch.equal(plan.undo(full), expected)


def test_the_padding_is_no_larger_than_needed_and_mirrors():
    pixels = torch.arange(30.0).reshape(1, 1, 5, 6).expand(1, 3, 5, 6) / 30
    fitted, _ = fit(pixels, multiple=8, max_pixels=64)
    assert fitted.shape[-2:] == (8, 8)
    mirrored = np.pad(pixels[0, 0].numpy(), ((0, 3), (0, 2)), mode="reflect")
    assert (fitted[0, 0].numpy() == mirrored).all()


def test_a_size_below_one_cell_is_refused_with_the_least():
    pixels = torch.zeros(1, 3, 40, 40)
    with pytest.raises(BadRequest, match="288 x 288 pixels can be worked on: raise the working"):
        fit(pixels, multiple=32, max_pixels=256**2, factor=9)


def test_a_picture_too_small_to_mirror_repeats_its_edge():
    fitted, _ = fit(torch.tensor([0.25, 0.5]).expand(1, 3, 1, 2), multiple=8, max_pixels=64)
    assert fitted[0, 0, 7].tolist() == [0.25] + [0.5] * 7


@pytest.mark.parametrize("size", [(600, 600), (513, 511), (2000, 300), (77, 3001), (1, 9000)])
@pytest.mark.parametrize("factor", [1, 4])
def test_above_the_cap_it_is_scaled_without_distortion(size: tuple[int, int], factor: int):
    cap = 512 * 512
    pixels = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    fitted, plan = fit(pixels, multiple=64, max_pixels=cap, factor=factor)
    height, width = fitted.shape[-2:]
    assert height * width * factor**2 <= cap
    assert fitted.abs().max() <= 1
    scale = max(plan.scaled) / max(size)
    ideal = max(1.0, min(size) * scale)
    assert abs(min(plan.scaled) - ideal) <= 0.5
    restored = torch.zeros(2, 3, height * factor, width * factor)
    assert plan.undo(restored).shape == (2, 3, size[0] * factor, size[1] * factor)


def test_the_cap_is_used_up():
    for height, width in [(600, 600), (1024, 513), (3000, 512), (700, 900)]:
        _, plan = fit(torch.zeros(1, 3, height, width), multiple=8, max_pixels=512 * 512)
        assert plan.scaled[0] * plan.scaled[1] > 0.95 * 512 * 512


def test_scaling_down_and_back_keeps_a_smooth_picture_in_place():
    ramp = torch.linspace(-1, 1, 900)
    pixels = (ramp[:, None] + ramp[None, :600]).div(2).expand(1, 3, 900, 600)
    fitted, plan = fit(pixels, multiple=64, max_pixels=256 * 256)
    assert plan.scaled != plan.original
    assert (plan.undo(fitted) - pixels)[..., 8:-8, 8:-8].abs().max() < 0.005


def test_a_result_beyond_the_cap_on_pictures_is_refused():
    with pytest.raises(BadImage, match="enlarged 8 times, would be 64 megapixels.* 50"):
        fit(torch.zeros(1, 3, 1000, 1000), multiple=64, max_pixels=512 * 512, factor=8)


def test_the_same_fit_serves_another_picture_of_the_size():
    first, second = torch.rand(1, 3, 70, 50), torch.rand(1, 3, 70, 50)
    _, plan = fit(first, multiple=16, max_pixels=10**6)
    assert torch.equal(plan.undo(plan.apply(second)), second)
    with pytest.raises(ValueError, match="expected"):
        plan.apply(torch.rand(1, 3, 50, 70))
