"""What a visitor does faster than the page is answered."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from silo.images import read_parameters, save_png
from tests.browser.actions import (
    FINISHED,
    choose_example,
    choose_task,
    downloaded,
    open_advanced,
    restore,
    set_number,
)
from tests.photos import blurred, photo

Delay = Callable[[str, str], None]
INSTANT = "() => 0"


@pytest.fixture
def delay(page: Page) -> Delay:
    """Sets how long requests and answers are under way: functions of the address, in JavaScript."""
    page.evaluate(
        """() => {
          const send = window.fetch;
          window.asked = window.answered = 0;
          window.there = window.back = () => 0;
          const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
          window.fetch = async (...request) => {
            if (request[1]?.method !== "POST") return send(...request);
            window.asked += 1;
            await wait(window.there(String(request[0])));
            try {
              const answer = await send(...request);
              await wait(window.back(String(request[0])));
              return answer;
            } finally {
              window.answered += 1;
            }
          };
        }"""
    )

    def delay(there: str, back: str) -> None:
        page.evaluate(f"() => {{ window.there = {there}; window.back = {back}; }}")

    return delay


def rest(page: Page) -> None:
    """Wait until all is answered that the page asked, and it has asked nothing more for a while."""
    before, asked = -1, 0
    for _ in range(60):
        before, (asked, answered) = asked, page.evaluate("[window.asked, window.answered]")
        if before == asked == answered:
            return
        page.wait_for_timeout(1500)
    pytest.fail(f"{asked} requests, and the page has not come to rest")


def test_the_page_comes_to_rest(page: Page, delay: Delay) -> None:
    """What several changes wait for must not wait for itself: the page would ask for ever."""
    delay("() => 300", INSTANT)
    for title in ("super resolution x4", "gaussian blur", "denoising"):
        choose_task(page, title)
        page.get_by_label("Damage it first").check()
        page.get_by_label("It is damaged").check()
    assert page.evaluate("window.asked") > 0
    rest(page)


@pytest.mark.parametrize("late", ["there", "back"])
def test_what_is_chosen_while_it_is_found_out_stays(
    page: Page, delay: Delay, tmp_path: Path, late: str
) -> None:
    file = tmp_path / "photo.png"
    save_png(file, blurred(photo("coffee"), 3))
    page.locator("#photo input[type=file]").set_input_files(file)
    expect(page.locator("#picture img")).to_be_visible()
    rest(page)
    slowly = "(url) => (url.includes('queue/join') ? 2000 : 0)"
    delay(*((slowly, INSTANT) if late == "there" else (INSTANT, slowly)))
    choose_task(page, "denoising")
    page.locator("#find-out").click()
    choose_task(page, "jpeg q10")
    rest(page)
    expect(page.locator("#task input")).to_have_value(re.compile("jpeg q10"))
    delay(INSTANT, INSTANT)
    page.locator("#find-out").click()
    expect(page.locator("#task input")).to_have_value(re.compile("gaussian blur"))


def test_stop_reaches_a_run_that_has_not_begun(page: Page, delay: Delay) -> None:
    choose_example(page)
    rest(page)
    delay("(url) => (url.includes('queue/join') ? 4000 : 0)", INSTANT)
    restore(page, steps=1000)
    page.locator("#stop").click()
    expect(page.locator("#status")).to_contain_text("Stopped before it began.")
    expect(page.locator("#restore")).to_be_enabled()
    rest(page)  # the run's request has arrived by now
    expect(page.locator("#status")).to_contain_text("Stopped before it began.")
    delay(INSTANT, INSTANT)
    restore(page, steps=2)
    expect(page.locator("#status")).to_have_text(FINISHED)


def test_a_late_answer_to_stop_does_not_end_the_next_run(page: Page, delay: Delay) -> None:
    choose_example(page)
    restore(page, steps=1000)
    expect(page.locator("#status progress")).to_be_visible()
    delay(INSTANT, "(url) => (url.includes('queue/join') ? 0 : 1500)")
    page.locator("#stop").click()
    expect(page.locator("#status")).to_contain_text("Stopped after")
    page.locator("#restore").click()  # as soon as it can be
    expect(page.locator("#status progress")).to_be_visible()
    page.wait_for_timeout(3000)  # longer than the answer takes
    expect(page.locator("#stop")).to_be_enabled()
    delay(INSTANT, INSTANT)
    page.locator("#stop").click()
    expect(page.locator("#restore")).to_be_enabled()


def test_a_run_has_the_fields_as_they_were_at_the_click(
    page: Page, delay: Delay, tmp_path: Path
) -> None:
    choose_example(page)
    open_advanced(page)
    page.get_by_label("Balanced").check()
    rest(page)
    delay("() => 1000", INSTANT)
    page.get_by_label("Quick").check()
    set_number(page, "#seed", 3)
    page.locator("#restore").click()
    page.wait_for_timeout(300)  # less than an answer takes
    set_number(page, "#seed", 4)
    expect(page.locator("#status")).to_have_text(FINISHED)
    parameters = read_parameters(downloaded(page, tmp_path))
    assert parameters is not None
    assert (parameters["seed"], parameters["steps"], parameters["sampler"]) == (3, 16, "silo-fast")


def test_a_result_of_what_is_no_longer_chosen_says_so(page: Page, delay: Delay) -> None:
    choose_task(page, "super resolution x4")
    choose_example(page)
    restore(page, steps=1000)
    expect(page.locator("#status progress")).to_be_visible()
    choose_task(page, "gaussian blur")
    rest(page)
    page.locator("#stop").click()
    expect(page.locator("#restore")).to_be_enabled()
    expect(page.locator("#status")).to_contain_text("super resolution x4, chosen when")


def test_of_examples_clicked_quickly_the_last_is_the_photo(page: Page, delay: Delay) -> None:
    delay("() => 1200 - 400 * (window.asked % 3)", INSTANT)
    for number in (0, 2, 1):
        page.locator("#examples img").nth(number).click()
    rest(page)
    expect(page.locator("#photo a[download='chelsea.png']")).to_be_visible()


def test_of_variants_clicked_quickly_the_last_is_shown(
    page: Page, delay: Delay, tmp_path: Path
) -> None:
    choose_example(page)
    open_advanced(page)
    set_number(page, "#samples", 3)
    restore(page, steps=1)
    expect(page.locator("#status")).to_have_text(FINISHED)
    rest(page)
    delay("() => 1800 - 600 * (window.asked % 3)", INSTANT)  # lest they be answered in turn
    for number in (1, 0, 2):
        page.locator("#variants img").nth(number).click()
    rest(page)
    parameters = read_parameters(downloaded(page, tmp_path))
    assert parameters is not None and parameters["sample"] == 2


def test_of_pictures_pasted_quickly_the_last_stays(page: Page, delay: Delay) -> None:
    delay("(url) => (url.includes('upload') ? 1500 : 0)", INSTANT)
    for name in ("first", "second", "third"):
        page.evaluate(
            """async (name) => {
              const canvas = new OffscreenCanvas(8, 8);
              canvas.getContext("2d");
              const data = new DataTransfer();
              data.items.add(new File([await canvas.convertToBlob()], name, {type: "image/png"}));
              document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
            }""",
            f"{name}.png",
        )
        page.wait_for_timeout(300)
    expect(page.locator("#photo a[download='third.png']")).to_be_visible()
    rest(page)
    expect(page.locator("#photo a[download='third.png']")).to_be_visible()
