"""What the painter is given to show, and what is read off it."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw

from silo.images import save_png
from silo.scratches.detector import find_scratches
from silo.ui.mask_painter import (
    add_mask_file,
    blank,
    blank_if_any,
    look_for_scratches,
    painted_mask,
)
from tests.photos import photo, scratched

SIZE = (48, 32)


def rectangle(colour: str, corners: tuple[int, int, int, int]) -> Image.Image:
    layer = Image.new("RGBA", SIZE)
    ImageDraw.Draw(layer).rectangle(corners, fill=colour)
    return layer


def test_a_blank_canvas_is_the_photo_under_a_bare_layer(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", SIZE, "teal").save(path)
    canvas = blank(str(path), str(tmp_path / "cache"))
    # A composite would be painted on in place of the photo.
    assert canvas["composite"] is None
    with Image.open(canvas["background"]) as background:
        assert (background.size, background.getpixel((0, 0))) == (SIZE, (0, 128, 128))
    layers = [Image.open(layer) for layer in canvas["layers"]]
    assert [layer.size for layer in layers] == [SIZE]
    assert painted_mask({"layers": layers}, (SIZE[1], SIZE[0])) is None


def test_there_is_nothing_to_paint_on_without_a_photo(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_text("not a picture")
    for path in (None, str(tmp_path / "photo.png")):
        assert blank_if_any(path, str(tmp_path)) is None


def test_the_mask_is_what_is_seen_of_all_layers() -> None:
    layers = [rectangle("white", (0, 0, 23, 31)), rectangle("black", (0, 0, 11, 31))]
    layers.append(rectangle("white", (36, 0, 47, 31)))
    mask = painted_mask({"layers": layers}, (SIZE[1], SIZE[0]))
    assert mask is not None
    expected = torch.ones(1, 1, SIZE[1], SIZE[0])
    expected[..., 12:24] = expected[..., 36:] = 0
    assert torch.equal(mask, expected)


def test_scratches_are_painted_beside_what_is_painted(tmp_path: Path) -> None:
    picture, _ = scratched(photo("coffee"))
    path = tmp_path / "photo.png"
    save_png(path, picture)
    by_hand = Image.new("RGBA", (256, 256))
    ImageDraw.Draw(by_hand).rectangle((100, 180, 140, 220), fill="white")
    folder = str(tmp_path / "cache")
    found = look_for_scratches(str(path), folder)
    for layers in ([], [by_hand]):
        canvas = add_mask_file({"layers": layers}, found, str(path), folder)
        painted = [Image.open(layer) for layer in canvas["layers"]]
        mask = painted_mask({"layers": painted}, (256, 256))
        expected = find_scratches(picture)
        if layers:
            expected[..., 180:221, 100:141] = 0
        assert mask is not None and torch.equal(mask, expected)
