import asyncio
import socket
from pathlib import Path

import gradio as gr
import pytest
import torch
from PIL import Image

import app
from operators.catalog import TASKS, shelf
from operators.degradation import Degradation
from silo.errors import BadMask
from silo.images import Fit, from_pil, read_parameters, save_png
from silo.request import PRESETS, RestorationRequest
from silo.restorer import Measured, Restorer, Result
from silo.ui.mask_painter import paint_mask_file, painted_mask, view, wants_mask
from silo.ui.wording import Frame, paragraphs, preset_choices, summary, task_choices


def a_result(samples: int) -> tuple[Result, RestorationRequest]:
    """A simulated denoising of a grey picture, restored without a fault but for 0.02 everywhere."""
    clean = torch.zeros(1, 3, 16, 24)
    request = RestorationRequest("denoising", clean, simulate=True, samples=samples, seed=5)
    plan = Fit(original=(16, 24), scaled=(16, 24), padded=(16, 24))
    measured = Measured(Degradation("denoising"), clean + 0.2, None, clean, plan)
    restored = (clean + 0.02).expand(samples, -1, -1, -1)
    return Result(restored, measured, {"seed": 5}, 1.5, 50, 1, 1, ["Worked <small>."]), request


def no_restorer() -> Restorer:
    pytest.fail("laying out the page must not load the model")


@pytest.fixture(scope="module")
def page() -> gr.Blocks:
    """The page, laid out without its model and without network."""

    async def build() -> gr.Blocks:
        return app.build(no_restorer)

    def refuse(*_: object) -> None:
        pytest.fail("laying out the page must not open connections")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        # In a running event loop gradio makes none of its own, which it would leave unclosed.
        return asyncio.run(build())


def test_the_page_warns_about_restored_faces(page: gr.Blocks) -> None:
    texts = [block.value for block in page.blocks.values() if isinstance(block, gr.Markdown)]
    assert app.CAUTION in texts


def test_only_lossless_pictures_leave_the_page(page: gr.Blocks) -> None:
    pictures = (gr.Image, gr.ImageSlider, gr.ImageEditor, gr.Gallery)
    formats = {block.format for block in page.blocks.values() if isinstance(block, pictures)}
    assert formats == {"png"}


@pytest.mark.parametrize("name", app.EXAMPLES)
def test_examples_are_square_and_of_the_size_asked_for(name: str) -> None:
    photo = app.example_photo(name, 64)
    assert (photo.size, photo.mode) == ((64, 64), "RGB")


def test_every_sample_becomes_a_file_with_its_parameters(tmp_path: Path) -> None:
    result, request = a_result(samples=2)
    before, *after = app.save_result(result, request, tmp_path / "cache")
    assert [Path(path).name for path in after] == ["denoising-seed-5.png", "denoising-seed-6.png"]
    assert [read_parameters(path) for path in after] == [
        {"seed": 5, "sample": 0},
        {"seed": 5, "sample": 1},
    ]
    with Image.open(before) as measurement:
        assert measurement.size == (24, 16)


def test_zero_gpu_is_asked_for_more_time_for_more_work() -> None:
    _, one = a_result(samples=1)
    _, four = a_result(samples=4)
    assert app.gpu_seconds(four) > app.gpu_seconds(one) > 0


@pytest.mark.parametrize(
    ("task", "simulate", "expected"),
    [
        ("gaussian_blur", False, False),
        ("inpainting_box", False, True),
        ("inpainting_box", True, False),
        ("inpainting_free", False, True),
        ("inpainting_free", True, True),
    ],
)
def test_a_mask_is_asked_for_where_only_the_person_knows_it(
    task: str, simulate: bool, expected: bool
) -> None:
    assert wants_mask(task, simulate) is expected


def test_a_scratch_survives_from_the_mask_file_to_the_mask(tmp_path: Path) -> None:
    width, height = 1500, 900  # larger than the canvas
    photo, mask_file = tmp_path / "photo.png", tmp_path / "mask.png"
    Image.new("RGB", (width, height), "grey").save(photo)
    scratch = Image.new("L", (width, height), 0)
    scratch.paste(255, (0, 451, width, 452))
    scratch.save(mask_file)

    canvas = paint_mask_file(str(mask_file), str(photo))
    layer_file = tmp_path / "layer.png"
    canvas["layers"][0].save(layer_file)
    mask = painted_mask({"layers": [str(layer_file)]}, (height, width))

    assert canvas["background"].size == (1024, 614)
    assert mask is not None
    assert mask.shape == (1, 1, height, width)
    assert (mask[0, 0, 451] == 0).all()
    assert mask.mean() > 0.99


def test_nothing_painted_is_no_mask(tmp_path: Path) -> None:
    layer = tmp_path / "layer.png"
    Image.new("RGBA", (8, 8), (255, 255, 255, 0)).save(layer)
    assert painted_mask({"layers": [str(layer)]}, (8, 8)) is None
    assert painted_mask({"layers": []}, (8, 8)) is None
    assert painted_mask(None, (8, 8)) is None


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    photo, mask_file = tmp_path / "photo.png", tmp_path / "mask.png"
    save_png(photo, torch.zeros(3, 8, 8))
    save_png(mask_file, torch.zeros(3, 8, 9))
    with pytest.raises(BadMask, match="9 x 8"):
        paint_mask_file(str(mask_file), str(photo))


def test_small_pictures_are_shown_pixel_by_pixel() -> None:
    picture = Image.effect_noise((40, 30), 80).convert("RGB")
    assert view(from_pil(picture)).tobytes() == picture.tobytes()


def test_tasks_are_named_in_plain_words_and_in_the_fields() -> None:
    labels = {value: label for label, value in task_choices()}
    trained = {entry.task for entry in shelf()}
    assert list(labels) == [name for name in TASKS if name in trained]
    assert labels["gaussian_blur"] == f"{TASKS['gaussian_blur'].title} (gaussian blur)"


def test_presets_tell_their_steps_until_their_time_is_known() -> None:
    steps = PRESETS["quick"]
    assert preset_choices(None)[0] == (f"Quick: {steps} steps", "quick")
    assert preset_choices(0.1)[0] == (f"Quick: about {steps / 10:.0f} s", "quick")


def test_the_summary_tells_seed_scores_and_notices_as_harmless_text() -> None:
    result, request = a_result(samples=1)
    text = summary(result, request)
    assert "Seed 5, 50 denoiser evaluations, 1.5 s" in text
    assert "PSNR 40.0 dB" in text  # 10 log10(4 / 0.02^2)
    assert "the degraded photo: PSNR 20.0 dB" in text
    assert "Worked &lt;small&gt;." in text


def test_progress_is_a_sentence_and_a_bar() -> None:
    text = Frame(step=3, total=50, seconds_left=12.4, picture=None).to_html()
    assert text.startswith(paragraphs("Step 3 of 50, about 12 s left"))
    assert '<progress max="50" value="3">' in text
