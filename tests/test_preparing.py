"""What the page does with a photo, a mask or earlier settings before anything is restored."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import skimage.data
import torch
from gradio.route_utils import delete_files_created_by_app
from PIL import Image, ImageFilter
from torch import Tensor

from operators.catalog import TASKS
from operators.convolutional import CompactCNN
from silo.images import save_png
from silo.prior_files import EMBEDDED_NAME
from silo.request import PRESETS, RestorationRequest
from silo.scratches.detector import find_scratches
from silo.ui.adding import Added
from silo.ui.inputs import CLEAN, DEGRADED, USUAL_SIZE
from silo.ui.mask_painter import painted_mask
from silo.ui.models import AUTOMATIC
from silo.ui.results import save_all
from tests.page_fields import Page
from tests.photos import blurred, photo, scratched

PROCESS = Path("/proc/self")
VISIT = gr.Request(session_hash="visitor")


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
    shown = page.preparing.show(given, VISIT)
    page.preparing.leave_strength(given)
    page.preparing.blank_canvas(given)
    assert not any("megapixels" in str(each) for each in shown.values())
    assert peak() < 600 * 2**20


def test_the_usual_prior_is_chosen_at_first() -> None:
    page = Page(lambda _: pytest.fail("laying out the page must not load the model"), "sd15")
    assert page.settings.prior.value == "sd15"
    assert page.settings.task.choices == [
        (label, name) for label, name in page.settings.task.choices if "denoising" not in label
    ]


def test_thumbnails_outlive_results_and_results_leave_nothing(page: Page, cache: Path) -> None:
    def pictures() -> set[str]:
        return {str(path) for path in cache.rglob("*.png")}

    thumbnails = pictures()
    assert len(thumbnails) == len(page.tools.examples)
    parameters = {"task": "denoising", "seed": 5}
    files = save_all(torch.zeros(1, 3, 8, 8), torch.zeros(2, 3, 8, 8), parameters, cache)
    page.outputs.shown(files, None)
    page.outputs.variants.temp_files.update(files[1:])  # as gradio does when it sends them
    assert pictures() == thumbnails | set(files)
    delete_files_created_by_app(page.blocks, age=None)
    assert pictures() == thumbnails


def test_what_was_restored_before_it_was_shown_stays(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (64, 64)).save(path)
    given = page.given(path, "gaussian_blur", DEGRADED)
    shown, views = page.preparing.show(given, VISIT), page.outputs.views
    tools = {page.tools.painter, page.settings.blur_std, page.settings.working_size}
    assert not shown[views]["visible"] and page.outputs.picture in shown

    subject = page.settings.subject(given)
    another = {**given, page.settings.task: "denoising"}
    for number in (1, 2):
        assert page.runs.show("visitor", number, subject)
        for early in (given, another):
            assert page.preparing.show(early, VISIT).keys() == tools
        for late in (given, another):
            late[page.outputs.clicks] = number
        # The same is to be shown as was restored: of several changes the last is sent late.
        assert page.preparing.show(given, VISIT).keys() == tools
        assert views in page.preparing.show(another, VISIT)
        assert views in page.preparing.show(given, VISIT)  # nothing of the run is left by now
    given[page.outputs.clicks] = 0
    assert views in page.preparing.show(given, gr.Request(session_hash="another"))
    page.runs.leave("visitor")
    assert views in page.preparing.show(given, VISIT)


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    """A photo with noise of 0.1."""
    path = tmp_path / "noisy.png"
    Image.effect_noise((64, 64), 25.5).convert("RGB").save(path)
    return path


def test_noise_and_blur_of_settings_used_again_are_not_overwritten_by_their_photo(
    page: Page, noisy: Path, tmp_path: Path
) -> None:
    noise, blur = page.settings.noise_sigma, page.settings.blur_std
    waiting = page.tools.strength_given
    request = RestorationRequest(
        *("gaussian_blur", torch.zeros(1, 3, 64, 64)),
        preset="quick",
        noise_sigma=0.03,
        blur_std=1.5,
    )
    save_png(
        tmp_path / "result.png", torch.zeros(3, 8, 8), page.models.restorer().parameters(request)
    )
    reused = page.preparing.reuse(str(tmp_path / "result.png"))
    assert (reused[noise], reused[blur]) == (0.03, 1.5)
    assert reused[waiting] == ("gaussian_blur", DEGRADED)

    given = {**page.given(noisy, "gaussian_blur", DEGRADED), waiting: reused[waiting]}
    assert page.preparing.leave_strength(given) == {
        noise: gr.skip(),
        blur: gr.skip(),
        waiting: None,
    }
    for changed in ({waiting: None}, {page.settings.task: "jpeg_q10"}):
        another = page.preparing.leave_strength({**given, **changed})
        assert another == {noise: None, blur: None, waiting: None}
    coffee = {**given, page.tools.example: "coffee 1"}
    assert page.preparing.choose_example(coffee)[noise] is None  # the damage's
    coffee[waiting] = ("gaussian_blur", CLEAN)
    assert page.preparing.choose_example(coffee)[noise] == gr.skip()


def test_a_result_that_is_gone_is_not_taken_for_the_photo(page: Page, tmp_path: Path) -> None:
    photo, result = tmp_path / "photo.png", tmp_path / "result.png"
    for path in (photo, result):
        save_png(path, torch.zeros(3, 8, 8))
    waiting, download = page.tools.strength_given, page.outputs.download
    given = {
        **page.given(photo, "gaussian_blur", CLEAN),
        waiting: ("gaussian_blur", DEGRADED),  # of settings that another photo was to follow
        download: str(result),
    }
    taken = page.preparing.go_on(given)
    assert (taken[page.settings.photo], taken[page.settings.source]) == (str(result), DEGRADED)
    assert taken[page.settings.noise_sigma] is None
    result.unlink()
    for gone in (str(result), None):
        with pytest.raises(gr.Error, match="kept for 4 hours only: restore it again"):
            page.preparing.go_on({**given, download: gone})


def test_a_sharp_photo_that_is_called_blurry_is_told_before_it_is_restored(
    page: Page, tmp_path: Path
) -> None:
    photo = Image.fromarray(skimage.data.astronaut()).resize((256, 256))
    blurry = photo.filter(ImageFilter.GaussianBlur(3))
    asked, status = page.settings.blur_std, page.outputs.status
    for name, picture in (("sharp", photo), ("blurry", blurry)):
        path = tmp_path / f"{name}.png"
        picture.save(path)
        shown = page.preparing.show(page.given(path, "gaussian_blur", DEGRADED), VISIT)
        assert shown[asked]["visible"]
        assert ("hardly looks blurred" in shown[status]) == (name == "sharp")
        assert ("damage it first" in shown[status]) == (name == "sharp")
        shown = page.preparing.show(page.given(path, "jpeg_q10", DEGRADED), VISIT)
        assert ("another choice: My photo is blurry" in shown[status]) == (name == "blurry")
        for task, source in (("gaussian_blur", CLEAN), ("super_resolution_x4", DEGRADED)):
            shown = page.preparing.show(page.given(path, task, source), VISIT)
            assert not shown[asked]["visible"]
            other = "My photo is blurry" if (name, source) == ("blurry", DEGRADED) else ""
            assert other in shown[status] and bool(other) == bool(shown[status])


def speckled(picture: Tensor) -> Tensor:
    """A picture in noise of 0.05."""
    return picture + 0.1 * torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))


def test_what_is_wrong_with_a_photo_is_found_out(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(gr, "Info", told.append)
    fields, path = page.settings, tmp_path / "photo.png"
    clean = photo("coffee")

    def find_out(picture: Tensor, prior: str = EMBEDDED_NAME) -> dict[Any, Any]:
        save_png(path, picture)
        return page.preparing.find_out(page.given(path, "inpainting_box", CLEAN, prior=prior))

    for picture, task in ((speckled(clean), "denoising"), (blurred(clean, 3), "gaussian_blur")):
        chosen = find_out(picture)
        assert (chosen[fields.task], chosen[fields.source]) == (task, DEGRADED)
        assert chosen[fields.noise_sigma] is None and chosen[fields.blur_std] is None
        assert TASKS[task].title in told.pop()
    with pytest.raises(gr.Error, match="shows denoising, for which this image model has no"):
        find_out(speckled(clean), prior="sd15")
    with pytest.raises(gr.Error, match="No damage was found"):
        find_out(clean)
    path.unlink()
    for gone, why in ((path, "choose it again"), (None, "Choose a photo")):
        with pytest.raises(gr.Error, match=why):
            page.preparing.find_out(page.given(gone, "gaussian_blur", DEGRADED))
    assert told == []


def test_what_the_page_does_not_offer_or_has_no_more_is_told(page: Page, tmp_path: Path) -> None:
    given = page.given(tmp_path / "gone.png", "inpainting_free", DEGRADED)
    given |= {page.settings.canvas: None, page.settings.mask_file: str(tmp_path / "mask.png")}
    preparing = page.preparing
    given |= {page.tools.scratches: str(tmp_path / "found.png")}
    handlers = preparing.find_scratches, preparing.paint_found, preparing.load_mask
    for handler in (*handlers, preparing.invert_mask):
        with pytest.raises(gr.Error, match="choose it again"):
            handler(given)
        with pytest.raises(gr.Error, match="Choose a photo"):
            handler({**given, page.settings.photo: None})
    with pytest.raises(gr.Error, match="choose one of astronaut"):  # all of skimage's has a name
        preparing.choose_example({**given, page.tools.example: "binary_blobs 1"})


def test_what_is_painted_while_scratches_are_looked_for_stays(page: Page, tmp_path: Path) -> None:
    fields, path = page.settings, tmp_path / "old.png"
    picture, _ = scratched(photo("coffee"))
    save_png(path, picture)
    given: dict[Any, Any] = {fields.photo: str(path)}  # without a canvas, which changes meanwhile
    given[page.tools.scratches] = page.preparing.find_scratches(given)
    stroke = Image.new("RGBA", (256, 256))
    stroke.paste("white", (100, 180, 140, 220))
    given[fields.canvas] = {"layers": [stroke]}
    painted = page.preparing.paint_found(given)
    mask = painted_mask({"layers": [Image.open(each) for each in painted["layers"]]}, (256, 256))
    assert mask is not None and mask[..., 180:220, 100:140].max() == 0
    assert torch.all(mask <= find_scratches(picture))


def test_a_photo_is_looked_at_once_for_all_choices(
    page: Page, noisy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[Tensor] = []

    def look(picture: Tensor) -> None:
        looked_at.append(picture)

    monkeypatch.setattr("silo.ui.preparing.diagnose", look)
    for written in (1, 2):
        os.utime(noisy, (written, written))
        for task in ("denoising", "gaussian_blur"):
            page.preparing.show(page.given(noisy, task, DEGRADED), VISIT)
        with pytest.raises(gr.Error, match="No damage was found"):
            page.preparing.find_out(page.given(noisy, "denoising", DEGRADED))
        assert len(looked_at) == written


def test_the_page_advises_what_it_offers(page: Page, tmp_path: Path) -> None:
    path, clean = tmp_path / "photo.png", photo("coffee")
    save_png(
        path, clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    )
    for offered in ({"denoising", "jpeg_q10"}, {"jpeg_q10"}):
        page.models.tasks = lambda prior=None, offered=offered: offered
        shown = page.preparing.show(page.given(path, "jpeg_q10", DEGRADED), VISIT)
        status = shown[page.outputs.status]
        assert "does not show how it was compressed" in status
        assert ("another choice: My photo is noisy" in status) == ("denoising" in offered)
        assert ("damage it first" in status) == ("denoising" not in offered)


def test_a_photo_that_is_shown_smaller_is_not_doubted_by_what_is_shown(
    page: Page, tmp_path: Path
) -> None:
    photo, path = Image.fromarray(skimage.data.astronaut()), tmp_path / "photo.jpg"
    for side, told in ((512, True), (1400, False)):
        photo.resize((side, side)).save(path, quality=97)
        for task in ("gaussian_blur", "jpeg_q10", "denoising"):
            shown = page.preparing.show(page.given(path, task, DEGRADED), VISIT)
            assert ("damage it first" in shown[page.outputs.status]) == told, (side, task)


@pytest.mark.parametrize(
    ("side", "task", "source", "asked"),
    [
        (600, "jpeg_q10", DEGRADED, True),
        (512, "jpeg_q10", DEGRADED, False),
        (150, "super_resolution_x4", DEGRADED, True),  # comes back with 600 pixels
        (150, "super_resolution_x4", CLEAN, False),
        (600, "inpainting_free", DEGRADED, True),
    ],
)
def test_a_size_to_work_at_is_asked_for_where_it_makes_a_difference(
    page: Page, tmp_path: Path, side: int, task: str, source: str, asked: bool
) -> None:
    save_png(tmp_path / "photo.png", photo(side=side))
    shown = page.preparing.show(page.given(tmp_path / "photo.png", task, source), VISIT)
    assert shown[page.settings.working_size]["visible"] == asked


@pytest.mark.parametrize(
    ("task", "used", "filled_in", "told"),
    [
        ("gaussian_blur", 2048, 2048, None),
        ("gaussian_blur", 1024, USUAL_SIZE, None),
        ("gaussian_blur", 700, 512, "working size of 700 pixels"),
        ("gaussian_blur", None, 512, None),  # by a version that did not record it
        ("inpainting_box", 512, USUAL_SIZE, None),
        ("inpainting_box", 1024, 1024, None),
    ],
)
def test_the_working_size_of_an_earlier_result_is_used_again(
    *,
    page: Page,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    used: int | None,
    filled_in: int,
    told: str | None,
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(gr, "Warning", warned.append)
    request = RestorationRequest(task, torch.zeros(1, 3, 64, 64), simulate=True, preset="quick")
    parameters = page.models.restorer().parameters(replace(request, working_size=used))
    if used is None:
        del parameters["working_size"]
    save_png(tmp_path / "result.png", torch.zeros(3, 8, 8), parameters)
    reused = page.preparing.reuse(str(tmp_path / "result.png"))
    assert reused[page.settings.working_size] == filled_in
    assert [told in line for line in warned if told] == ([] if told is None else [True])
    assert told is not None or not warned


def test_another_prior_offers_its_own_tasks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[str] = []
    monkeypatch.setattr(gr, "Info", told.append)
    page = Page(lambda _: pytest.fail("it is not asked for"))
    monkeypatch.setattr(page.models, "restorer", lambda _: None)
    fields = page.settings
    kept = page.preparing.choose_prior(page.given(None, "jpeg_q10", CLEAN, prior="sd15"))
    assert told == []
    names = [name for _, name in kept[fields.task].choices]
    assert "jpeg_q10" in names and "denoising" not in names
    changed = page.preparing.choose_prior(page.given(None, "denoising", CLEAN, prior="sd15"))
    assert changed[fields.task].value == names[0]
    assert "no operator for that damage" in told[0]


def test_an_operator_brings_its_task_and_an_effort_it_takes(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields, here = page.settings, Added("lab/operator@c0ffee", "jpeg_q10", reads_features=False)
    monkeypatch.setattr(page.models, "added", {here.name: here}.get)

    def given(operator: str, source: str) -> dict[Any, Any]:
        return page.given(None, "denoising", source, operator)

    chosen = page.preparing.choose_operator(given(here.name, DEGRADED))
    assert chosen == {fields.task: "jpeg_q10"}
    assert page.preparing.choose_operator(given(AUTOMATIC, CLEAN)) == {fields.task: gr.skip()}
    monkeypatch.setattr(page.models, "added", lambda _: replace(here, reads_features=True))
    chosen = page.preparing.choose_operator(given(here.name, CLEAN))
    assert chosen[fields.preset] == "balanced"
    assert chosen[fields.steps] == PRESETS["balanced"].steps


def test_an_operator_that_is_fetched_is_chosen_whatever_the_photo_is_by_then(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields, tools = page.settings, page.tools
    new = Added("lab/operator@c0ffee", "old_lens", reads_features=False)
    monkeypatch.setattr("silo.ui.adding.Adding.add", lambda _, text: new)
    monkeypatch.setattr(page.models, "operators", lambda: [("of a lab", new.name)])
    added = page.preparing.add_operator({fields.prior: EMBEDDED_NAME, tools.operator_id: "lab/op"})
    assert added[fields.operator].value == new.name and added[tools.operator_id] == ""
    assert "old_lens" in [name for _, name in added[fields.task].choices]
    assert added.keys() == {fields.operator, fields.prior, fields.task, tools.operator_id}
    assert "value" not in added[fields.task].constructor_args  # `choose_operator` sets these


@pytest.mark.parametrize(
    "described",
    [
        {"kind": "inpainting_box", "noise_sigma": 0.07},
        {"kind": "gaussian_blur", "parameters": {"std": 9.0}, "noise_sigma": 0.02},
        {"kind": "function", "parameters": {"name": "lens", "sha256": "0" * 64}},
    ],
)
def test_a_task_of_ones_own_is_shown_as_its_operator_says(
    page: Page, noisy: Path, tmp_path: Path, described: dict[str, Any]
) -> None:
    operator = CompactCNN(latent_channels=8, width=8, blocks=1, groups=4)
    operator.metadata = {"task": "old_lens", "degradation": described, "prior": EMBEDDED_NAME}
    operator.save_pretrained(tmp_path / "lens")
    lens = str(tmp_path / "lens")

    clean, degraded = (page.given(noisy, "old_lens", each, lens) for each in (CLEAN, DEGRADED))
    shown = page.preparing.show(clean, VISIT)
    if described["kind"] == "function":
        assert "does not run" in shown[page.outputs.status]
    else:
        with (
            Image.open(shown[page.outputs.picture].value["path"]) as picture,
            Image.open(noisy) as photo,
        ):
            assert picture.convert("RGB").tobytes() != photo.tobytes()
    takes_mask = described["kind"] == "inpainting_box"
    assert page.preparing.show(degraded, VISIT)[page.tools.painter]["visible"] is takes_mask
    assert (page.preparing.blank_canvas(degraded) is not None) is takes_mask
    nothing_chosen = page.preparing.show(page.given(noisy, "old_lens", CLEAN), VISIT)
    assert "usual operators lack one for old lens" in nothing_chosen[page.outputs.status]
