"""What the page does with a photo, a mask or earlier settings before anything is restored."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from silo.prior import LatentPrior
from silo.ui import inputs, outputs
from silo.ui.inputs import CLEAN, DEGRADED, Settings
from silo.ui.models import Models
from silo.ui.preparing import Preparing

PROCESS = Path("/proc/self")


class Page:
    """The page's fields with their handlers, and without a server.

    Attributes:
        preparing: the handlers.
        settings: the fields they read.
    """

    def __init__(self, load: Any = LatentPrior.load) -> None:
        """Lay the fields out."""

        async def lay_out() -> tuple[Preparing, Settings]:
            models = Models(load)
            with gr.Blocks(analytics_enabled=False):
                settings, tools = inputs.lay_out(models)
                shown = outputs.lay_out()
            return Preparing(models, settings, tools, shown), settings

        # In a running event loop gradio makes none of its own, which it would leave unclosed.
        self.preparing, self.settings = asyncio.run(lay_out())

    def given(self, photo: Path | None, task: str, source: str) -> dict[Any, Any]:
        """Return what the fields hold."""
        fields = self.settings
        prior = {fields.prior: "tiny"}
        return {fields.photo: photo, fields.task: task, fields.source: source, **prior}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that gradio keeps files in."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def page() -> Page:
    return Page()


@pytest.fixture
def peak() -> Iterator[Any]:
    """How many bytes the process has needed at once, above those it began with."""

    def read(name: str) -> int:
        (line,) = (
            line for line in (PROCESS / "status").read_text().splitlines() if line.startswith(name)
        )
        return int(line.split()[1]) * 2**10

    try:
        (PROCESS / "clear_refs").write_text("5")  # resets the peak
    except OSError:
        pytest.skip("this system does not tell a process's peak of memory")
    before = read("VmRSS")
    yield lambda: read("VmHWM") - before


@pytest.mark.parametrize("source", [DEGRADED, CLEAN])
def test_a_photo_of_49_megapixels_is_taken_in_with_little_memory(
    page: Page, tmp_path: Path, peak: Any, source: str
) -> None:
    photo = tmp_path / "black.png"
    Image.new("L", (7000, 7000)).save(photo, compress_level=1)
    given = page.given(photo, "inpainting_free", source)
    shown = page.preparing.show(given)
    page.preparing.noise(given)
    page.preparing.blank_canvas(str(photo), "inpainting_free", source)
    assert not any("megapixels" in str(each) for each in shown.values())
    assert peak() < 450 * 2**20
