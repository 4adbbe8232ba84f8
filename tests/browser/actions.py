"""What a visitor does on the page."""

import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

FINISHED = re.compile(r"Done\. Seed \d+")


def choose_task(page: Page, title: str) -> None:
    page.locator("#task input").click()
    page.get_by_role("option", name=title).click()


def choose_example(page: Page, number: int = 0) -> None:
    page.locator("#examples img").nth(number).click()
    expect(page.locator("#photo")).to_contain_text(".png")
    expect(page.locator("#picture img")).to_be_visible()


def open_advanced(page: Page) -> None:
    """Open the panel, which is built only now, and let it put in the first values of its fields."""
    if not page.locator("#steps").is_visible():
        page.locator("#advanced > button").click()
        page.locator("#new-seed").wait_for()
        page.wait_for_timeout(500)


def set_number(page: Page, field: str, value: float) -> None:
    """Fill a field, again where a page still being built puts back what stood there."""
    number = page.locator(f"{field} input[type=number]")
    for _ in range(20):
        number.fill(str(value))
        number.press("Tab")
        page.wait_for_timeout(100)
        if number.input_value() == str(value):
            return
    pytest.fail(f"{field} does not keep {value}")


def restore(page: Page, *, steps: int, seed: int = 0) -> None:
    open_advanced(page)
    for _ in range(2):  # a field that is built late puts its first value back
        set_number(page, "#steps", steps)
        set_number(page, "#seed", seed)
    page.locator("#restore").click()


def downloaded(page: Page, folder: Path) -> Path:
    with page.expect_download() as download:
        page.locator("#download").click()
    saved = folder / download.value.suggested_filename
    download.value.save_as(saved)
    return saved


def pixels(path: Path) -> bytes:
    with Image.open(path) as picture:
        return picture.convert("RGB").tobytes()
