"""The mask's brush as a visitor meets it, and what the server reads of what he painted."""

import json
import re
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops
from playwright.sync_api import Page, Request, expect

from silo.images import save_png, to_pil
from silo.ui.mask_painter import painted_mask
from tests.browser.actions import (
    FINISHED,
    choose_example,
    choose_task,
    downloaded,
    pixels,
    restore,
)
from tests.browser.conftest import PATIENCE
from tests.photos import photo, scratched

Box = tuple[int, int, int, int]  # left, upper, right, lower


def await_canvas(page: Page) -> None:
    """Wait until the photo is drawn: smaller than an empty canvas, it is shown enlarged."""
    expect(page.locator("#canvas")).to_contain_text(re.compile(r"\b1\d\d%"))


BELOW = 60  # px on the screen from the middle of the canvas, past a stroke through it


def middle_of_canvas(page: Page) -> tuple[float, float]:
    await_canvas(page)
    surface = page.locator("#canvas canvas").first
    surface.scroll_into_view_if_needed()
    box = surface.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(page: Page, below: int = 0) -> None:
    """Paint or erase a stroke over the middle of the canvas, or so many pixels below it."""
    x, y = middle_of_canvas(page)
    page.mouse.move(x - 40, y + below)
    page.mouse.down()
    page.mouse.move(x + 40, y + below)
    page.mouse.up()


def await_white(
    page: Page, *, middle: bool, below: bool, trying: Callable[[], None] | None = None
) -> None:
    """Wait until the canvas, which tells nobody when it has drawn, shows what is painted where.

    It tells nobody either when a tool is ready: `trying` is done again until it has its effect.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        if trying is not None:
            trying()
            page.wait_for_timeout(200)
        x, y = middle_of_canvas(page)
        shown = Image.open(BytesIO(page.screenshot())).convert("L")
        seen = [shown.getpixel((round(x), round(y + down))) for down in (0, BELOW)]
        if [value == 255 for value in seen] == [middle, below]:
            return
        assert time.monotonic() < deadline, f"the canvas shows {seen}"


def start_painting(page: Page) -> None:
    """Choose an example with holes to mark; a stroke before it is drawn would be lost with it."""
    choose_task(page, "inpainting free")
    choose_example(page)
    await_white(page, middle=False, below=False)


def inverted_mask(page: Page) -> list[str]:
    """Press Invert; return the layers that the page sent."""

    def carries_canvas(sent: Request) -> bool:
        joins_queue = sent.url.split("?")[0].endswith("/queue/join")
        return joins_queue and '"layers"' in (sent.post_data or "")

    with page.expect_request(lambda sent: carries_canvas(sent)) as sent:
        page.locator("#invert").click()
    (canvas,) = (
        value
        for value in json.loads(sent.value.post_data or "{}")["data"]
        if isinstance(value, dict) and "layers" in value
    )
    return [layer["url"] for layer in canvas["layers"]]


def hole(page: Page, layers: list[str]) -> Image.Image:
    """What the sent layers mark, white."""
    with Image.open(BytesIO(page.request.get(layers[-1]).body())) as layer:
        return layer.getchannel("A").point([0] * 128 + [255] * 128)


def load_mask(page: Page, mask: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator("#mask-file").click()
    chooser.value.set_files(mask)


def read_as(page: Page, layers: list[str], size: tuple[int, int]) -> Image.Image:
    """The mask that the server reads off the sent layers, white in the holes."""
    opened = [Image.open(BytesIO(page.request.get(layer).body())) for layer in layers]
    mask = painted_mask({"layers": opened}, (size[1], size[0]))
    assert mask is not None
    return to_pil((1 - 2 * mask).expand(-1, 3, -1, -1)).convert("L")


def overlap(one: Image.Image, other: Image.Image) -> float:
    """Of what is white in either mask, the part that is in both, but for where the strokes are."""
    width, height = one.size
    parts = [(0, 0, width, round(height * 0.35)), (0, round(height * 0.65), width, height)]

    def white(combine: Callable[[Image.Image, Image.Image], Image.Image]) -> int:
        both = combine(one, other)
        return sum(both.crop(part).histogram()[255] for part in parts)

    return white(ImageChops.darker) / white(ImageChops.lighter)


def shown_editor(page: Page) -> Image.Image:
    editor = page.locator("#canvas")
    editor.scroll_into_view_if_needed()
    box = editor.bounding_box()
    assert box is not None
    clip: Any = box
    return Image.open(BytesIO(page.screenshot(clip=clip))).convert("RGB")


def await_photo(page: Page, colour: tuple[int, int, int], size: tuple[int, int]) -> Box:
    """Wait until the canvas shows a photo of one colour; return where in the editor it is."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        shown = shown_editor(page)
        other = ImageChops.difference(shown, Image.new("RGB", shown.size, colour)).convert("L")
        box = other.point([255] * 3 + [0] * 253).getbbox()
        if box is not None and (box[2] - box[0]) / (box[3] - box[1]) == pytest.approx(
            size[0] / size[1], rel=0.03
        ):
            return box
        page.wait_for_timeout(200)
    pytest.fail(f"the canvas does not show the photo of {size}")


def await_shown(page: Page, mask: Image.Image, box: Box) -> None:
    """Wait until the canvas shows a mask white in its place, and nothing else so."""
    width, height = box[2] - box[0], box[3] - box[1]
    tools = (0, 0, width // 8, height)  # lie over the photo
    expected = mask.resize((width, height)).point([0] * 128 + [255] * 128)
    expected.paste(0, tools)
    deadline, seen = time.monotonic() + PATIENCE, 0.0
    while time.monotonic() < deadline:
        shown = shown_editor(page).convert("L").crop(box)
        shown = shown.point([0] * 250 + [255] * 6)
        shown.paste(0, tools)
        seen = overlap(shown, expected)
        if seen > 0.9:
            return
        page.wait_for_timeout(200)
    pytest.fail(f"{seen:.0%} of the mask is shown in its place")


def stroke_through(page: Page, box: Box) -> None:
    """Paint a stroke over the middle of the photo."""
    editor = page.locator("#canvas").bounding_box()
    assert editor is not None
    x, y = editor["x"] + (box[0] + box[2]) / 2, editor["y"] + (box[1] + box[3]) / 2
    page.mouse.move(x - 40, y)
    page.mouse.down()
    page.mouse.move(x + 40, y)
    page.mouse.up()


def test_a_loaded_mask_keeps_its_place_under_strokes(page: Page, tmp_path: Path) -> None:
    choose_task(page, "inpainting free")
    photo, file = tmp_path / "photo.png", tmp_path / "mask.png"
    undo = page.get_by_role("button", name="Undo")
    for size, colour, share, key in (
        ((512, 320), (150, 0, 150), 0.02, "Tab"),
        ((256, 256), (0, 0, 150), 0.2, "End"),
    ):
        width, height = size
        Image.new("RGB", size, colour).save(photo)
        mask = Image.new("L", size)
        mask.paste(255, (width // 4, height // 8, width // 2, height // 4))
        mask.paste(255, (width // 4, height * 3 // 4, width * 9 // 10, height * 3 // 4 + 4))
        mask.save(file)
        page.locator("#photo input[type=file]").set_input_files(photo)
        box = await_photo(page, colour, size)
        expect(undo).to_be_disabled()  # or it would take the photo away
        load_mask(page, file)
        await_shown(page, mask, box)

        page.get_by_label("Brush width").press(key)
        stroke_through(page, box)
        expect(undo).to_be_enabled()
        read = read_as(page, inverted_mask(page), size)
        assert overlap(read, mask) > 0.98
        across = read.crop((width // 2, 0, width // 2 + 1, height))
        across = across.crop((0, round(height * 0.35), 1, round(height * 0.65)))
        assert across.histogram()[255] / min(size) == pytest.approx(share, abs=0.012)

        free = ImageChops.invert(mask)
        await_shown(page, free, box)
        stroke_through(page, box)
        expect(undo).to_be_enabled()
        assert overlap(read_as(page, inverted_mask(page), size), free) > 0.98
        if key == "Tab":
            page.locator("#photo .icon-button-wrapper button").first.click()
            expect(page.locator("#canvas")).to_have_count(0)

    page.get_by_role("button", name="Clear canvas").click()
    assert await_photo(page, colour, size) == box


def test_scratches_are_found_and_painted(page: Page, tmp_path: Path) -> None:
    picture, where = scratched(photo("coffee"))
    file = tmp_path / "old.png"
    save_png(file, picture)
    choose_task(page, "inpainting free")
    page.locator("#photo input[type=file]").set_input_files(file)
    await_canvas(page)
    page.locator("#find-scratches").click()
    expect(page.get_by_text("Check what is painted")).to_be_visible()
    read = read_as(page, inverted_mask(page), (256, 256))
    marks = to_pil((2 * where - 1).expand(-1, 3, -1, -1)).convert("L")
    both = ImageChops.darker(read, marks).histogram()[255]
    assert both > 0.8 * marks.histogram()[255]
    assert read.histogram()[255] < 0.2 * 256 * 256


def test_undo_eraser_and_invert_change_the_mask(page: Page) -> None:
    start_painting(page)
    drag(page)
    await_white(page, middle=True, below=False)
    page.get_by_role("button", name="Undo").click()
    await_white(page, middle=False, below=False)
    drag(page)
    drag(page, BELOW)
    await_white(page, middle=True, below=True)
    page.get_by_role("button", name="Erase", exact=True).click()
    await_white(page, middle=True, below=False, trying=lambda: drag(page, BELOW))
    painted = hole(page, inverted_mask(page))
    await_white(page, middle=False, below=True)
    free = hole(page, inverted_mask(page))
    await_white(page, middle=True, below=False)

    assert painted.getpixel((painted.width // 2, painted.height // 2)) == 255
    assert 0.002 < painted.histogram()[255] / (painted.width * painted.height) < 0.5
    assert free == ImageChops.invert(painted)


def test_a_black_stroke_takes_back_what_invert_painted(page: Page) -> None:
    start_painting(page)
    drag(page)
    await_white(page, middle=True, below=False)
    inverted_mask(page)
    await_white(page, middle=False, below=True)
    page.get_by_role("button", name="Color", exact=True).click()
    page.locator("#canvas button.color[style*='rgb(0, 0, 0)']").click()
    await_white(page, middle=False, below=False, trying=lambda: drag(page, BELOW))
    inverted_mask(page)
    await_white(page, middle=True, below=True)


def test_what_is_painted_is_filled_in_as_from_a_mask_file(page: Page, tmp_path: Path) -> None:
    start_painting(page)
    drag(page)
    layers: list[str] = []

    def note(sent: Request) -> None:
        if sent.url.split("?")[0].endswith("/queue/join"):
            for value in json.loads(sent.post_data or "{}").get("data", []):
                if isinstance(value, dict) and value.get("layers"):
                    layers.append(value["layers"][0]["url"])

    page.on("request", note)
    restore(page, steps=2)
    expect(page.locator("#status")).to_have_text(FINISHED)
    source = page.locator("#comparison img[src*=before]").evaluate("image => image.src")
    with Image.open(BytesIO(page.request.get(source).body())) as degraded:
        centre = degraded.getpixel((degraded.width // 2, degraded.height // 2))
        corner = degraded.getpixel((2, 2))
    assert centre == pytest.approx((127, 127, 127), abs=20)  # a hole: grey, but for the noise
    assert corner != pytest.approx((127, 127, 127), abs=20)
    brushed = downloaded(page, tmp_path)

    mask = tmp_path / "mask.png"
    hole(page, layers).save(mask)
    page.reload()
    choose_task(page, "inpainting free")
    choose_example(page)
    await_canvas(page)
    load_mask(page, mask)
    await_white(page, middle=True, below=False)
    restore(page, steps=2)
    expect(page.locator("#status")).to_have_text(FINISHED)
    (tmp_path / "uploaded").mkdir()
    assert pixels(downloaded(page, tmp_path / "uploaded")) == pixels(brushed)
