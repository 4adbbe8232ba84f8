from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from silo.images import load_image, load_rgb, to_pil
from tests.colour_profiles import BLUE, GREEN, RED, grey_profile, rgb_profile

SWAPPED = rgb_profile(BLUE, GREEN, RED)  # its red is sRGB's blue
COLOUR = (200, 30, 90)
EXPECTED = torch.tensor([90, 30, 200])


def _save(path: Path, image: Image.Image, profile: bytes) -> Path:
    image.save(path, icc_profile=profile, quality=100)
    return path


def _plain() -> Image.Image:
    return Image.new("RGB", (6, 4), COLOUR)


def _first(path: Path) -> tuple[torch.Tensor, list[str]]:
    loaded = load_image(path)
    colour = torch.tensor(to_pil(loaded.pixels).getpixel((0, 0)))
    return colour, loaded.notices


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
def test_colours_of_another_profile_become_srgb(tmp_path: Path, suffix: str) -> None:
    colour, notices = _first(_save(tmp_path / f"a{suffix}", _plain(), SWAPPED))
    torch.testing.assert_close(colour, EXPECTED, atol=8, rtol=0)
    assert notices == []


def test_palettes_and_transparent_pictures_have_their_profile_applied_too(tmp_path: Path) -> None:
    colour, _ = _first(_save(tmp_path / "p.png", _plain().quantize(4), SWAPPED))
    torch.testing.assert_close(colour, EXPECTED, atol=8, rtol=0)
    half = Image.new("RGBA", (6, 4), (*COLOUR, 255))
    half.putpixel((5, 3), (0, 0, 0, 0))
    pixels, _ = load_rgb(_save(tmp_path / "a.png", half, SWAPPED))
    torch.testing.assert_close(torch.tensor(pixels.getpixel((0, 0))), EXPECTED, atol=8, rtol=0)
    assert pixels.getpixel((5, 3)) == (255, 255, 255)
    _plain().save(tmp_path / "k.png", icc_profile=SWAPPED, transparency=COLOUR)
    assert torch.equal(_first(tmp_path / "k.png")[0], torch.tensor([255, 255, 255]))


def test_grey_follows_its_own_curve(tmp_path: Path) -> None:
    colour, notices = _first(
        _save(tmp_path / "g.png", Image.new("L", (6, 4), 128), grey_profile(1.0))
    )
    torch.testing.assert_close(colour, torch.tensor([188, 188, 188]), atol=1, rtol=0)
    assert notices == []


def test_transparency_does_not_keep_a_profile_of_grey_away(tmp_path: Path) -> None:
    image = Image.new("LA", (6, 4), (128, 255))
    image.putpixel((5, 3), (0, 0))
    pixels, notices = load_rgb(_save(tmp_path / "la.png", image, grey_profile(1.0)))
    assert pixels.getpixel((0, 0)) == (188, 188, 188) and pixels.getpixel((5, 3)) == (255,) * 3
    assert notices == ["la.png: its transparent areas were filled with white."]


def test_sixteen_bits_are_scaled_before_a_profile_is_applied(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((4, 6), 128 * 257, np.uint16))
    grey.save(tmp_path / "a.png", icc_profile=grey_profile(1.0))
    grey.save(tmp_path / "b.png", icc_profile=grey_profile(1.0), transparency=7)
    for name in ("a.png", "b.png"):
        assert _first(tmp_path / name)[0].tolist() == [188] * 3


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_what_is_srgb_already_stays_value_for_value(tmp_path: Path, mode: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    gradient = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([gradient, gradient.T, gradient[::-1]], axis=-1)).convert(mode)
    read, notices = load_rgb(_save(tmp_path / "s.png", image, profile))
    assert read.tobytes() == image.convert("RGB").tobytes() and notices == []


def test_what_only_calls_itself_srgb_is_converted(tmp_path: Path) -> None:
    linear = rgb_profile(RED, GREEN, BLUE, gamma=1.0).replace(b"test\0", b"sRGB\0")
    colour, _ = _first(_save(tmp_path / "l.png", _plain(), linear))
    torch.testing.assert_close(colour, torch.tensor([228, 95, 160]), atol=3, rtol=0)


@pytest.mark.parametrize(
    "profile",
    [b"no profile at all", SWAPPED[:300], grey_profile(2.2), bytes(500)],
    ids=["text", "cut", "of grey", "zeros"],
)
def test_a_profile_that_does_not_fit_is_left_out_and_told(tmp_path: Path, profile: bytes) -> None:
    colour, notices = _first(_save(tmp_path / "b.png", _plain(), profile))
    assert torch.equal(colour, torch.tensor(COLOUR))
    assert notices == ["b.png: its colour profile does not fit; sRGB was presumed."]


def test_a_result_carries_no_profile(tmp_path: Path) -> None:
    image, _ = load_rgb(_save(tmp_path / "r.png", _plain(), SWAPPED))
    assert "icc_profile" not in image.info
