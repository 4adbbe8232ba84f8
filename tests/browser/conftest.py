"""A browser with the page opened."""

import os
import shutil
from collections.abc import Generator, Iterator
from contextlib import suppress

import pytest
from playwright.sync_api import Browser, Error, Page, expect, sync_playwright

from tests.served_app import App

PATIENCE = 180  # seconds; a busy machine may need them
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        reason = "chromium is not installed (Debian: apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, app: App, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page, opened; no test may make the browser ask another host for anything."""
    width, height = getattr(request, "param", (1366, 768))
    context = browser.new_context(viewport={"width": width, "height": height})
    context.set_default_timeout(PATIENCE * 1000)
    foreign: list[str] = []

    def note(url: str) -> None:
        if not url.startswith((app.url, "data:", "blob:")):
            foreign.append(url)

    context.on("request", lambda sent: note(sent.url))  # of every tab
    page = context.new_page()
    page.goto(app.url)
    page.locator("#restore").wait_for()
    yield page
    context.close()
    assert foreign == []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report what the page showed when a test failed: it may not fail again."""
    report = yield
    page = item.funcargs.get("page")
    if report.failed and call.when == "call" and isinstance(page, Page):
        with suppress(Error):  # the browser may be what failed
            shown = page.locator("body").aria_snapshot()
            report.sections.append(("what the page showed", shown))
    return report
