"""The page as a visitor meets it."""

import re
from concurrent.futures import ThreadPoolExecutor, as_completed
from io import BytesIO
from pathlib import Path
from typing import Literal

import pytest
import torch
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError
from PIL import Image
from playwright.sync_api import Page, expect

from operators.blur import MotionBlur
from silo.__main__ import main
from silo.images import read_parameters, save_png
from tests.browser.actions import (
    FINISHED,
    choose_example,
    choose_task,
    downloaded,
    open_advanced,
    pixels,
    restore,
    set_number,
)
from tests.photos import noisy, photo
from tests.served_app import App, connect, own_operator


def await_previews(page: Page, count: int) -> None:
    """Wait until the clean estimate on the page has been replaced `count` times."""
    expect(page.locator("#status progress")).to_be_visible()
    shown = page.locator("#picture img")
    for _ in range(count):
        # The file's path holds a hash of its content: another one is another picture.
        before = shown.get_attribute("src") or ""
        expect(shown).not_to_have_attribute("src", before)
    # No `decode()`, which fails where the next picture comes meanwhile.
    page.wait_for_function(
        "image => image.complete && image.naturalWidth > 0", arg=shown.element_handle()
    )


def is_scrolled_sideways(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth > window.innerWidth")


def test_an_example_is_degraded_restored_and_downloaded(page: Page, tmp_path: Path) -> None:
    choose_task(page, "super resolution x4")
    choose_example(page)
    restore(page, steps=3, seed=7)
    expect(page.locator("#status")).to_have_text(FINISHED)
    expect(page.locator("#status")).to_contain_text("Seed 7")
    expect(page.locator("#comparison img").first).to_be_visible()
    saved = downloaded(page, tmp_path)
    parameters = read_parameters(saved)
    assert parameters is not None
    assert (parameters["task"], parameters["seed"]) == ("super_resolution_x4", 7)
    assert parameters["steps"] == 3
    with Image.open(saved) as picture:
        assert picture.format == "PNG"
        assert picture.width == picture.height

    choose_task(page, "gaussian blur")  # its measurement takes the result's place
    expect(page.locator("#picture img")).to_be_visible()
    expect(page.locator("#comparison")).to_be_hidden()


def test_the_settings_of_a_downloaded_result_give_the_same_picture(
    page: Page, tmp_path: Path
) -> None:
    choose_task(page, "super resolution x4")
    choose_example(page, 2)
    open_advanced(page)
    set_number(page, "#faithfulness", 2)
    set_number(page, "#noise", 0.03)
    page.get_by_label("What the photo shows (prompt)").fill("a cup of coffee")
    restore(page, steps=2, seed=11)
    expect(page.locator("#status")).to_have_text(FINISHED)
    expect(page.locator("#status")).to_contain_text("the degraded photo: PSNR")
    first = downloaded(page, tmp_path)

    page.reload()
    open_advanced(page)
    for field in ("#blur", "#noise"):
        expect(page.locator(f"{field} input")).to_have_value("")  # not 0, which would be a choice
    page.locator("#saved input[type=file]").set_input_files(first)
    expect(page.locator("#seed input[type=number]")).to_have_value("11")
    choose_example(page, 2)  # after the settings, as the page says
    page.locator("#restore").click()
    expect(page.locator("#status")).to_have_text(FINISHED)
    (tmp_path / "again").mkdir()
    again = downloaded(page, tmp_path / "again")
    assert read_parameters(again) == read_parameters(first)
    assert pixels(again) == pixels(first)


def test_an_uploaded_photo_comes_out_as_from_the_command_line(page: Page, tmp_path: Path) -> None:
    photo, out = tmp_path / "photo.png", tmp_path / "cli.png"
    ramp = Image.linear_gradient("L").resize((192, 128))
    Image.merge("RGB", (ramp, ramp.rotate(180), ramp)).save(photo)
    choose_task(page, "inpainting box")
    page.locator("#photo input[type=file]").set_input_files(photo)
    expect(page.locator("#painter")).to_be_visible()
    expect(page.locator("#working-size")).to_be_hidden()
    choose_task(page, "super resolution x4")
    page.locator("#working-size").get_by_label("512 pixels").click()  # it comes back with 768
    restore(page, steps=2, seed=5)
    expect(page.locator("#status")).to_have_text(FINISHED)
    settings = ["--preset", "quick", "--steps", "2", "--seed", "5", "--working-size", "512"]
    task = ["--task", "super_resolution_x4"]
    assert main(["restore", str(photo), "--out", str(out), *task, *settings]) == 0
    assert pixels(downloaded(page, tmp_path)) == pixels(out)


def test_a_pasted_picture_becomes_the_photo(page: Page) -> None:
    content = BytesIO()
    Image.new("RGB", (8, 8), "teal").save(content, "PNG")
    for name in ("first", "second"):  # into the empty field, then in place of a photo
        page.evaluate(
            """([name, content]) => {
              const data = new DataTransfer();
              data.items.add(new File([Uint8Array.from(content)], name, { type: 'image/png' }));
              document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data }));
            }""",
            [f"{name}.png", list(content.getvalue())],
        )
        # The link to the file appears when it has arrived.
        expect(page.locator(f"#photo a[download='{name}.png']")).to_be_visible()
    expect(page.locator("#picture img")).to_be_visible()
    # Excel and Word copy a picture of the text with it: in a field for text, that text is meant.
    open_advanced(page)
    takes_picture = """(element) => {
      const data = new DataTransfer();
      data.setData('text/plain', 'a cup of coffee');
      data.items.add(new File(['picture'], 'cells.png', { type: 'image/png' }));
      const paste = { clipboardData: data, bubbles: true, cancelable: true };
      return !element.dispatchEvent(new ClipboardEvent('paste', paste));
    }"""
    assert not page.get_by_label("What the photo shows (prompt)").evaluate(takes_picture)
    assert page.locator("#restore").evaluate(takes_picture)


def test_several_variants_come_with_a_map_of_where_they_differ(page: Page, tmp_path: Path) -> None:
    choose_example(page, 3)
    open_advanced(page)
    page.locator("#new-seed").click()
    expect(page.locator("#seed input[type=number]")).not_to_have_value("0")
    set_number(page, "#samples", 2)
    restore(page, steps=2, seed=4)
    expect(page.locator("#status")).to_have_text(FINISHED)
    expect(page.locator("#variants img")).to_have_count(2)
    page.get_by_role("tab", name="Side by side").click()
    page.locator("#variants img").nth(1).click()
    expect(page.locator("#side-by-side img[src*='seed-5']")).to_have_count(1)
    assert downloaded(page, tmp_path).name.endswith("seed-5.png")
    page.get_by_role("tab", name="Differences").click()
    expect(page.locator("#uncertainty img")).to_be_visible()
    expect(page.locator("#uncertainty")).to_contain_text("brightest: 0.")


def test_a_result_can_be_restored_further(page: Page, tmp_path: Path) -> None:
    choose_task(page, "super resolution x4")
    choose_example(page)
    open_advanced(page)
    set_number(page, "#samples", 2)
    restore(page, steps=2, seed=3)
    expect(page.locator("#status")).to_have_text(FINISHED)
    page.locator("#variants img").nth(1).click()
    expect(page.locator("#comparison img[src*='seed-4']")).to_have_count(1)
    first = downloaded(page, tmp_path)

    page.locator("#further").click()
    expect(page.locator("#photo")).to_contain_text("super_resolution_x4-seed-4")
    expect(page.get_by_label("It is damaged")).to_be_checked()
    expect(page.locator("#picture img")).to_be_visible()
    expect(page.locator("#further")).to_be_hidden()
    choose_task(page, "denoising")
    page.locator("#restore").click()
    expect(page.locator("#status")).to_have_text(FINISHED)
    before = page.locator("#comparison img[src*='before']").evaluate("image => image.src")
    with Image.open(BytesIO(page.request.get(before).body())) as shown:
        assert shown.convert("RGB").tobytes() == pixels(first)
    parameters = read_parameters(downloaded(page, tmp_path))
    assert parameters is not None
    assert (parameters["task"], parameters["simulate"]) == ("denoising", False)


def test_what_is_wrong_is_found_out(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    save_png(file, noisy(MotionBlur(31, 21, 0).forward(photo("coffee"))))
    page.locator("#find-out").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("Choose a photo")
    page.locator("#photo input[type=file]").set_input_files(file)
    expect(page.locator("#status")).to_contain_text(
        "more like another choice: My photo has camera shake"
    )
    page.locator("#find-out").click()
    expect(page.locator("#task input")).to_have_value(re.compile("camera shake"))
    expect(page.locator("#status")).not_to_contain_text("another choice")
    restore(page, steps=2)
    expect(page.locator("#status")).to_contain_text("A shake of 21 pixels at 0 degrees")


def test_one_lens_enlarges_both_pictures_at_the_same_place(page: Page) -> None:
    choose_example(page, 1)
    restore(page, steps=2)
    expect(page.locator("#status")).to_have_text(FINISHED)
    page.get_by_role("tab", name="Side by side").click()
    before, after = page.locator("#side-by-side img").all()
    for image in (before, after):
        expect(image).to_be_visible()
    assert before.evaluate("image => image.naturalWidth") > 0

    def transforms() -> list[tuple[str, str]]:
        style = "i => [getComputedStyle(i).transform, getComputedStyle(i).transformOrigin]"
        return [tuple(image.evaluate(style)) for image in (before, after)]

    assert {transform for transform, _ in transforms()} == {"none"}
    box = after.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    pointed = transforms()
    assert pointed[0] == pointed[1]
    assert pointed[0][0].startswith("matrix(4,")
    assert float(pointed[0][1].split("px")[0]) == pytest.approx(box["width"] / 4, abs=1)
    page.locator("#side-by-side .lens").focus()
    page.keyboard.press("ArrowRight")
    assert transforms()[0] == transforms()[1] != pointed[0]
    page.keyboard.press("Escape")
    assert {transform for transform, _ in transforms()} == {"none"}


def test_a_file_that_is_no_picture_gets_one_sentence(page: Page, tmp_path: Path) -> None:
    hostile = tmp_path / "holiday.jpg"
    hostile.write_text("<script>alert(1)</script>, not a picture")
    page.locator("#photo input[type=file]").set_input_files(hostile)
    status = page.locator("#status")
    expect(status).to_contain_text("holiday.jpg: this is not a picture")
    assert status.locator("p").count() == 1
    page.locator("#restore").click()
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("holiday.jpg: this is not a picture")
    expect(page.locator("body")).not_to_contain_text("Traceback")


def test_settings_of_somebody_else_show_no_picture_of_theirs(page: Page, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.png"
    image = "<img src=https://example.com/you-were-here.png>"
    parameters = {"task": image, "sampler": "silo", "simulate": True}
    numbers = {"steps": 2, "eta": 1.0, "noise_sigma": 0.01, "guidance_scale": 1.0, "samples": 1}
    weights = {name: {"name": "x", "revision": None} for name in ("prior", "operator")}
    words = {"prompt": "", "negative_prompt": "", "seed": 0}
    save_png(hostile, torch.zeros(3, 8, 8), {**parameters, **numbers, **weights, **words})
    open_advanced(page)
    page.locator("#saved input[type=file]").set_input_files(hostile)
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text(image)  # as text; the fixture watches the net
    expect(toast.locator("img")).to_have_count(0)


def test_an_operator_brings_the_damage_of_its_author(page: Page, app: App, tmp_path: Path) -> None:
    with own_operator(app):
        page.reload()
        choose_example(page)
        choose_task(page, "Of an operator: old lens")
        status = page.locator("#status")
        expect(status).to_contain_text("choose or add its operator")
        open_advanced(page)
        page.locator("#operator input").click()
        page.get_by_role("option", name="lab/lens").click()
        expect(status).not_to_contain_text("choose or add its operator")
        restore(page, steps=2)
        expect(status).to_have_text(FINISHED)
        parameters = read_parameters(downloaded(page, tmp_path))
    assert parameters is not None
    assert (parameters["task"], parameters["noise_sigma"]) == ("old_lens", 0.04)


def test_an_operator_is_added_by_its_id(page: Page, app: App) -> None:
    choose_example(page)
    open_advanced(page)
    with own_operator(app) as name:
        page.locator("#operator-id").get_by_role("textbox").fill(name)
        page.locator("#add-operator").click()
        expect(page.locator("#task input")).to_have_value(re.compile("old lens"))
        expect(page.locator("#operator input")).to_have_value(re.compile("lab/lens"))


def test_restoring_nothing_asks_for_a_photo(page: Page) -> None:
    page.locator("#restore").click()
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("Choose a photo or an example first.")
    expect(page.locator("#restore")).to_be_enabled()


def test_nothing_but_an_example_need_be_chosen(page: Page) -> None:
    choose_example(page, 1)
    page.locator("#restore").click()
    expect(page.locator("#status")).to_have_text(FINISHED)


def test_previews_appear_and_stop_keeps_the_last_one(page: Page, tmp_path: Path) -> None:
    choose_example(page)
    restore(page, steps=1000)
    await_previews(page, 2)
    page.locator("#stop").click()
    status = page.locator("#status")
    expect(status).to_contain_text(re.compile(r"Stopped after \d+ of 1000"))
    told = re.search(r"clean estimate of step (\d+)", status.inner_text())
    assert told is not None
    expect(page.locator("#comparison img").first).to_be_visible()
    parameters = read_parameters(downloaded(page, tmp_path))
    assert parameters is not None
    assert parameters["stopped_after"] == int(told[1])
    restore(page, steps=2)  # waits for the button to come back
    expect(status).to_have_text(FINISHED)


def test_stop_while_waiting_for_another_visitor(page: Page) -> None:
    choose_example(page)
    restore(page, steps=1000)
    expect(page.locator("#status progress")).to_be_visible()
    second = page.context.new_page()
    second.goto(page.url)
    choose_example(second)
    restore(second, steps=1000)
    queued = re.compile(r"queue: \d+/\d+")
    expect(second.locator("#status")).to_contain_text(queued)
    second.locator("#stop").click()
    # As it is seen: under load gradio may add the word Error to a cancelled run, which is hidden.
    expect(second.locator("#status")).to_have_text("Stopped before it began.", use_inner_text=True)
    page.locator("#stop").click()
    restore(second, steps=2)
    expect(second.locator("#status")).to_have_text(FINISHED)


def test_a_closed_tab_frees_its_place(page: Page) -> None:
    leaving = page.context.new_page()
    leaving.goto(page.url)
    choose_example(leaving)
    restore(leaving, steps=1000)
    expect(leaving.locator("#status progress")).to_be_visible()
    choose_example(page)
    restore(page, steps=2)
    leaving.close()
    expect(page.locator("#status")).to_have_text(FINISHED)


def test_two_tabs_do_not_mix_their_pictures(page: Page, tmp_path: Path) -> None:
    second = page.context.new_page()
    second.goto(page.url)
    for tab, example, seed in ((page, 0, 21), (second, 2, 22)):
        tab.bring_to_front()
        choose_example(tab, example)
        restore(tab, steps=2, seed=seed)
    for tab, name, seed in ((page, "astronaut", 21), (second, "coffee", 22)):
        tab.bring_to_front()
        expect(tab.locator("#status")).to_have_text(FINISHED)
        expect(tab.locator("#photo")).to_contain_text(name)
        parameters = read_parameters(downloaded(tab, tmp_path))
        assert parameters is not None and parameters["seed"] == seed


def test_a_crowd_behind_a_long_run_is_told_that_the_queue_is_full(
    page: Page, app: App, tmp_path: Path
) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), "teal").save(photo)
    clients = [connect(app) for _ in range(3)]

    def ask(number: int) -> str:
        given = {"task": "super_resolution_x4", "simulate": True, "steps": 1}
        try:
            clients[number % 3].predict(
                photo=handle_file(photo), **given, seed=number, api_name="/restore"
            )
        except (AppError, QueueError) as error:
            return "full" if "queue is full" in str(error).lower() else str(error)
        return "done"

    choose_example(page)
    restore(page, steps=1000)
    expect(page.locator("#status progress")).to_be_visible()
    with ThreadPoolExecutor(30) as pool:
        try:
            ends = as_completed([pool.submit(ask, number) for number in range(30)])
            assert [next(ends).result() for _ in range(10)] == ["full"] * 10  # 20 may wait
        finally:
            page.locator("#stop").click()
        assert [end.result() for end in ends] == ["done"] * 20


def test_describing_says_why_it_cannot(page: Page) -> None:
    choose_example(page)
    open_advanced(page)
    page.locator("#describe").click()
    toast = page.get_by_test_id("toast-body")
    reason = re.compile(r"not in the local cache|Describing needs [\d.]+ GB")
    expect(toast).to_contain_text(reason)
    expect(page.locator("body")).not_to_contain_text("Traceback")


PARTS = ["photo", "examples", "task", "find-out", "source", "preset", "advanced", "restore"]


def focused(page: Page) -> tuple[str, bool]:
    """In which part of the page the focus is, and whether that can be seen."""
    name, outline = page.evaluate(
        """parts => [
          parts.find(id => document.getElementById(id).contains(document.activeElement)) ?? '',
          getComputedStyle(document.activeElement).outlineStyle,
        ]""",
        PARTS,
    )
    return name, outline != "none"


def test_the_keyboard_is_enough_and_the_end_is_announced(page: Page) -> None:
    expect(page.locator("#restore")).to_be_in_viewport()
    passed: list[str] = []
    while "restore" not in passed and len(passed) < 100:
        page.keyboard.press("Tab")
        part, visible = focused(page)
        assert visible, f"no visible focus in {part or 'the page'} after {passed}"
        if part == "examples" and part not in passed:
            page.keyboard.press("Enter")
            expect(page.locator("#photo")).to_contain_text(".png")
            expect(page.locator("#picture img")).to_be_visible()
        passed.append(part)
    assert list(dict.fromkeys(passed)) == PARTS
    page.keyboard.press("Enter")
    expect(page.locator("[role=status]#spoken")).to_have_text(FINISHED)
    page.locator("#comparison").get_by_role("slider").press("End")
    covered = page.locator("#comparison img[src*=seed]").evaluate(
        "image => getComputedStyle(image).clipPath"
    )
    assert covered == "inset(0px 0px 0px 100%)"


@pytest.mark.parametrize("page", [(390, 844), (820, 1180)], indirect=True, ids=["phone", "tablet"])
def test_a_small_screen_needs_no_sideways_scrolling(page: Page) -> None:
    assert not is_scrolled_sideways(page)
    choose_task(page, "inpainting free")
    choose_example(page)
    expect(page.locator("#canvas")).to_be_visible()
    open_advanced(page)
    expect(page.locator("#seed")).to_be_visible()
    assert not is_scrolled_sideways(page)
    choose_task(page, "super resolution x4")
    set_number(page, "#samples", 2)
    restore(page, steps=1)
    expect(page.locator("#status")).to_have_text(FINISHED)
    for tab, content in (
        ("Slider", "#comparison .wipe"),
        ("Side by side", "#side-by-side .lens"),
        ("Differences", "#uncertainty img"),
    ):
        page.get_by_role("tab", name=tab).click()
        expect(page.locator(content)).to_be_visible()
        assert not is_scrolled_sideways(page), tab
    expect(page.locator("#variants")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_in_light_and_dark(page: Page, scheme: Literal["light", "dark"]) -> None:
    page.emulate_media(color_scheme=scheme)
    page.reload()
    page.locator("#restore").wait_for()
    paper = "getComputedStyle(document.body).backgroundColor"
    behind = luminance(page.evaluate(paper))
    assert behind < 0.1 if scheme == "dark" else behind > 0.9
    for words in ("#status p", "h1", "#photo label", "#task span", "#source label span"):
        ink = luminance(page.locator(words).first.evaluate("e => getComputedStyle(e).color"))
        lighter, darker = sorted((ink, behind), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, words  # WCAG AA


def luminance(colour: str) -> float:
    """The relative luminance of CSS's rgb(), by WCAG 2.2."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
