"""What Restore makes of the fields, and how often it shows how far it is."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
import torch
from PIL import Image

from silo import measured as measuring
from silo.devices import pick_device
from silo.errors import BadRequest, CannotSave
from silo.measured import take_measurement
from silo.prior import LatentPrior
from silo.prior_files import EMBEDDED_NAME
from silo.request import RestorationRequest
from silo.ui import restoring
from silo.ui.inputs import CLEAN, DEGRADED, USUAL_SIZE
from silo.ui.restoring import PICTURE_PERIOD, PICTURE_SHARE, Restoring
from silo.ui.running import Runs
from silo.ui.timing import Timing
from silo.ui.wording import Frame
from tests.page_fields import Page


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the files that gradio serves in a folder of the test's."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))


class Captioner:
    def release_under_pressure(self) -> None:
        """Hold nothing."""


def handlers(page: Page, models: Any) -> Restoring:
    return Restoring(models, Captioner, page.settings, page.outputs, Timing(), Runs())  # pyright: ignore


@pytest.mark.parametrize("decoding", [0.01, 2.0])
def test_previews_come_often_and_cost_little(
    monkeypatch: pytest.MonkeyPatch, decoding: float
) -> None:
    """On a clock of its own: a step takes 0.1 seconds, a preview `decoding`."""
    clock, step = [0.0], 0.1

    class Event:
        step, total, seconds_left = 1, 1000, 1.0

        def preview(self) -> Image.Image:
            clock[0] += decoding
            return Image.new("RGB", (8, 8))

    placed: list[torch.device] = []

    class Steps:
        prior = SimpleNamespace(to=placed.append)

        def restorer(self, *_: object) -> "Steps":
            return self

        def restore(self, *given: object) -> Iterator[Event]:
            assert given == (request, measured)
            assert placed == [pick_device()]  # before anything is computed
            for _index in range(1000):
                clock[0] += step
                yield Event()

    monkeypatch.setattr(restoring.time, "monotonic", lambda: clock[0])
    request = RestorationRequest("gaussian_blur", torch.zeros(1, 3, 8, 8))
    measured = take_measurement(request, LatentPrior.load(EMBEDDED_NAME))
    frames = list(handlers(Page(), Steps()).frames(request, measured, None, None))
    assert all(isinstance(frame, Frame) for frame in frames)
    shown = sum(frame.picture is not None for frame in frames if isinstance(frame, Frame))
    assert frames[0].picture is not None  # pyright: ignore[reportAttributeAccessIssue]
    share = shown * decoding / clock[0]
    if decoding < PICTURE_PERIOD * PICTURE_SHARE:
        assert clock[0] / shown == pytest.approx(PICTURE_PERIOD, abs=2 * step)
    else:
        assert share == pytest.approx(PICTURE_SHARE, rel=0.1)


def filled_in(page: Page, photo: Path, task: str, source: str, **values: Any) -> dict[Any, Any]:
    """What the fields hold when they were left as they are but for some."""
    fields = page.settings
    given = {field: field.value for field in fields.all()}
    given |= {fields.photo: str(photo), fields.task: task, fields.source: source}
    return {**given, **{getattr(fields, name): value for name, value in values.items()}}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    return path


def test_what_does_not_fit_is_told_in_the_words_of_the_page(
    photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = LatentPrior.load(EMBEDDED_NAME)
    page = Page(lambda _: prior)
    restore = handlers(page, page.models).restore
    visit = gr.Request(session_hash="visitor")

    def told(given: dict[Any, Any]) -> str:
        with pytest.raises(gr.Error) as caught:
            next(restore(given, visit))
        return str(caught.value)

    gone = filled_in(page, photo.with_name("gone.png"), "gaussian_blur", DEGRADED)
    assert "choose it again" in told(gone)
    no_seed = filled_in(page, photo, "gaussian_blur", DEGRADED, seed=None)
    assert "Fill in the seed: a whole number from 0 to 4,294,967,295." in told(no_seed)
    with monkeypatch.context() as without:
        without.setattr("silo.ui.models.shelf", lambda: [])
        assert "usual operators lack one for motion blur" in told(
            filled_in(page, photo, "motion_blur", DEGRADED)
        )

    monkeypatch.setattr("silo.restorer.Restorer.reads_features", lambda *_: True)
    features = told(filled_in(page, photo, "gaussian_blur", DEGRADED))
    assert "choose balanced or paper" in features


def test_a_result_that_cannot_be_kept_is_told(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise CannotSave("a.png: cannot be written (no space left)")

    prior = LatentPrior.load(EMBEDDED_NAME)
    page = Page(lambda _: prior)
    restore = handlers(page, page.models).restore
    given = filled_in(page, photo, "denoising", DEGRADED, steps=1)
    monkeypatch.setattr(restoring, "save_result", full)
    last: dict[Any, Any] = {}
    with pytest.raises(gr.Error, match="no space left"):
        for shown in restore({**given, page.outputs.clicks: 1}, gr.Request(session_hash="v")):
            last = shown
    assert "no space left" in last[page.outputs.status]
    assert "<progress" not in last[page.outputs.status]


@pytest.mark.parametrize(("chosen", "size"), [(2048, 2048), (USUAL_SIZE, None)])
def test_the_chosen_size_is_worked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: int, size: int | None
) -> None:
    page, asked = Page(), []
    path = tmp_path / "photo.png"
    Image.new("RGB", (64, 64)).save(path)

    def plan(request: RestorationRequest, restorer: object) -> None:
        asked.append(request.working_size)
        raise BadRequest("enough")

    monkeypatch.setattr(restoring, "planned", plan)
    given = filled_in(page, path, "gaussian_blur", CLEAN, working_size=chosen)
    given |= {page.outputs.clicks: 1}
    with pytest.raises(gr.Error, match="enough"):
        next(handlers(page, page.models).restore(given, gr.Request(session_hash="a")))
    assert asked == [size]


def test_a_photo_is_measured_once(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found of a photo takes as long as some steps do."""
    looked_at = []
    match = measuring.match

    def look(picture: torch.Tensor, *given: Any, **named: Any) -> Any:
        looked_at.append(picture.shape)
        return match(picture, *given, **named)

    monkeypatch.setattr(measuring, "match", look)
    prior = LatentPrior.load(EMBEDDED_NAME)
    page = Page(lambda _: prior)
    given = filled_in(page, photo, "gaussian_blur", DEGRADED, steps=2)
    given |= {page.outputs.clicks: 1}
    *_, finished, _ = handlers(page, page.models).restore(given, gr.Request(session_hash="one"))
    assert "Done." in finished[page.outputs.status]
    assert looked_at == [(1, 3, 64, 64)]
