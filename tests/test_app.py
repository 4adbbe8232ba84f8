import asyncio
import itertools
import socket
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import gradio as gr
import pytest
import torch
from PIL import Image

from operators.catalog import TASKS, shelf
from operators.degradation import Degradation
from silo import __version__
from silo.caption import Captioner
from silo.errors import BadMask, BadRequest, OutOfMemory
from silo.images import Fit, from_pil, load_image, read_parameters, save_png, to_pil
from silo.masks import load_mask
from silo.measured import Measured
from silo.metrics import psnr
from silo.prior import LatentPrior
from silo.request import PRESETS, RestorationRequest
from silo.restorer import Finishing, Restorer, Result
from silo.ui import inputs, outputs
from silo.ui.cache import keep
from silo.ui.errors import one_sentence, sentence
from silo.ui.examples import EXAMPLES, example_photo
from silo.ui.inputs import CLEAN
from silo.ui.mask_painter import (
    check_canvas,
    invert,
    paint_mask_file,
    painted_mask,
    view,
    wants_mask,
)
from silo.ui.models import Models
from silo.ui.outputs import CAUTION
from silo.ui.page import build
from silo.ui.restoring import Restoring, gpu_seconds
from silo.ui.results import Deviation, save_result
from silo.ui.running import Run, Runs
from silo.ui.saved_settings import MAX_PROMPT, Weights, read_settings
from silo.ui.timing import Timing, Work
from silo.ui.wording import Frame, about, paragraphs, preset_choices, summary, task_choices


def a_result(samples: int, size: tuple[int, int] = (32, 48)) -> tuple[Result, RestorationRequest]:
    """A simulated denoising of a grey picture, restored without a fault but for 0.02 everywhere."""
    clean = torch.zeros(1, 3, *size)
    request = RestorationRequest("denoising", clean, simulate=True, samples=samples, seed=5)
    plan = Fit(original=size, scaled=size, padded=size)
    measured = Measured(Degradation("denoising"), clean + 0.2, None, clean, plan, 0.01)
    restored = (clean + 0.02).expand(samples, -1, -1, -1)
    return Result(
        restored, measured, {"task": "denoising", "seed": 5}, 1.5, 50, 1, 1, ["Worked <small>."]
    ), request


def no_prior(name: str) -> LatentPrior:
    pytest.fail("laying out the page must not load the model")


def no_captioner() -> Captioner:
    pytest.fail("laying out the page must not load the captioner")


@pytest.fixture(scope="module")
def page() -> gr.Blocks:
    """The page, laid out without its model and without network."""

    async def lay_out() -> gr.Blocks:
        return build(Models(no_prior), no_captioner, Timing())

    def refuse(*_: object) -> None:
        pytest.fail("laying out the page must not open connections")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        # In a running event loop gradio makes none of its own, which it would leave unclosed.
        return asyncio.run(lay_out())


def test_the_page_warns_about_restored_faces(page: gr.Blocks) -> None:
    texts = [block.value for block in page.blocks.values() if isinstance(block, gr.Markdown)]
    assert CAUTION in texts


def test_only_lossless_pictures_leave_the_page(page: gr.Blocks) -> None:
    pictures = (gr.Image, gr.ImageEditor, gr.Gallery)
    formats = {block.format for block in page.blocks.values() if isinstance(block, pictures)}
    assert formats == {"png"}


def test_no_event_has_two_handlers_of_which_the_page_would_wait_for_one_to_answer_the_other(
    page: gr.Blocks,
) -> None:
    deferring = Counter(
        target
        for handler in page.fns.values()
        if handler.trigger_mode == "always_last"
        for target in handler.targets
        if target[0] is not None
    )
    assert set(deferring.values()) == {1}


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ("find_out", ("task", "input")),
        ("find_scratches", ("photo", "change")),
        ("find_scratches", ("mask-file", "upload")),
        ("paint_found", ("photo", "change")),
        ("describe", ("photo", "change")),
        ("describe", ("prompt", "input")),
        ("describe", ("saved", "upload")),
        ("add_operator", ("task", "input")),
        ("add_operator", ("operator", "input")),
    ],
)
def test_what_is_chosen_before_an_answer_comes_stays(
    page: gr.Blocks, answer: str, chosen: tuple[str, str]
) -> None:
    blocks = {block.elem_id: number for number, block in page.blocks.items()}
    waited_for = {index for index, handler in page.fns.items() if handler.name == answer}
    target = (blocks[chosen[0]], chosen[1])
    handlers = [handler for handler in page.fns.values() if target in handler.targets]
    # The page begins with a handler of an event when the one before has been answered.
    first = itertools.takewhile(lambda handler: handler.fn is None, handlers)
    dropped = {index for handler in first for index in handler.cancels}
    assert waited_for and waited_for <= dropped


def test_what_can_be_typed_for_a_prompt_can_be_used_again(page: gr.Blocks) -> None:
    boxes = [block for block in page.blocks.values() if isinstance(block, gr.Textbox)]
    limits = {box.max_length for box in boxes if "prompt)" in str(box.label)}
    assert limits == {MAX_PROMPT}


def test_a_mask_painted_on_another_photo_is_refused() -> None:
    photo, another = (example_photo(name, 300) for name in ("chelsea", "coffee"))
    canvas = {"background": view(from_pil(photo)).resize((150, 149)).convert("RGBA"), "layers": []}
    check_canvas(canvas, from_pil(photo))
    check_canvas(None, from_pil(photo))
    with pytest.raises(BadMask, match="another photo"):
        check_canvas(canvas, from_pil(another))


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_square_and_of_the_size_asked_for(name: str) -> None:
    photo = example_photo(name, 64)
    assert (photo.size, photo.mode) == ((64, 64), "RGB")


def test_every_sample_becomes_a_file_with_its_parameters(tmp_path: Path) -> None:
    result, _ = a_result(samples=2)
    (before, *after), drawn = save_result(result, tmp_path / "cache")
    assert drawn is not None and drawn[1] == 0  # the samples are alike
    assert [Path(path).name for path in after] == ["denoising-seed-5.png", "denoising-seed-6.png"]
    assert [read_parameters(path) for path in after] == [
        {"task": "denoising", "seed": 5, "sample": 0},
        {"task": "denoising", "seed": 5, "sample": 1},
    ]
    with Image.open(before) as measurement:
        assert measurement.size == (48, 32)


def test_zero_gpu_is_asked_for_more_time_for_more_work() -> None:
    def asked(request: RestorationRequest, side: int, original: int | None = None) -> int:
        sides, came = (side, side), (original or side, original or side)
        measured = replace(a_result(1)[0].measured, fit=Fit(came, sides, sides))
        return gpu_seconds(request, measured, None, None)

    _, one = a_result(samples=1)
    _, four = a_result(samples=4)
    assert asked(four, 64) > asked(one, 64) > 0
    guided = replace(one, guidance_scale=2)
    assert asked(one, 1024) > asked(guided, 64) > asked(one, 64)
    blurred = replace(one, task="gaussian_blur")
    assert asked(blurred, 64) > asked(one, 64)  # for its convolutions
    assert asked(one, 512) == asked(one, 512, original=1024)
    assert asked(blurred, 512) == asked(blurred, 512, original=4096)  # finished later, on the CPU
    assert asked(blurred, 512) < asked(blurred, 512, original=1024)
    quick = replace(one, preset="quick", samples=inputs.MAX_VARIANTS)
    assert asked(quick, 64) <= 60  # what ZeroGPU grants unless asked for more


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
    assert wants_mask(TASKS[task], simulate) is expected


def opened(canvas: dict[str, Any]) -> dict[str, Any]:
    """What gradio makes of the value of a canvas of files: its pictures."""

    def picture(path: str) -> Image.Image:
        with Image.open(path) as file:
            return file.copy()

    layers = [picture(each) for each in canvas["layers"]]
    return {"background": picture(canvas["background"]), "layers": layers}


def test_a_scratch_survives_from_the_mask_file_to_the_mask(tmp_path: Path) -> None:
    width, height = 1500, 900  # larger than the canvas
    photo, mask_file = tmp_path / "photo.png", tmp_path / "mask.png"
    Image.new("RGB", (width, height), "grey").save(photo)
    scratch = Image.new("L", (width, height), 0)
    scratch.paste(255, (0, 451, width, 452))
    scratch.save(mask_file)

    canvas = paint_mask_file(str(mask_file), str(photo), str(tmp_path / "cache"))
    mask = painted_mask(opened(canvas), (height, width))

    assert opened(canvas)["background"].size == (1024, 614)
    assert mask is not None
    assert mask.shape == (1, 1, height, width)
    assert (mask[0, 0, 451] == 0).all()
    assert mask.mean() > 0.99

    # While the canvas shows the file's mask, it is the file's, to the pixel; touched up, it is not.
    exact = load_mask(mask_file)
    assert not torch.equal(mask, exact)
    untouched = painted_mask(opened(canvas), (height, width), str(mask_file))
    assert untouched is not None and torch.equal(untouched, exact)
    edited = opened(canvas)
    edited["layers"][0].paste((255, 255, 255, 255), (10, 20, 30, 40))
    touched_up = painted_mask(edited, (height, width), str(mask_file))
    assert touched_up is not None and touched_up[0, 0, 45, 30] == 0
    assert torch.equal(touched_up[..., 100:, :], mask[..., 100:, :])


@pytest.mark.parametrize("content", [b"no picture", None])
def test_what_is_painted_counts_where_the_mask_file_cannot_be_read(
    tmp_path: Path, content: bytes | None
) -> None:
    photo, mask_file = tmp_path / "photo.png", tmp_path / "mask.png"
    Image.new("RGB", (8, 6), "grey").save(photo)
    if content is not None:  # None: gradio has deleted the file meanwhile
        mask_file.write_bytes(content)
    with pytest.raises(BadMask):
        paint_mask_file(str(mask_file), str(photo), str(tmp_path))
    layer = Image.new("RGBA", (8, 6), (255, 255, 255, 0))
    layer.paste((255, 255, 255, 255), (2, 1, 5, 4))
    canvas = {"layers": [layer]}
    painted, expected = (painted_mask(canvas, (6, 8), file) for file in (str(mask_file), None))
    assert painted is not None and expected is not None and torch.equal(painted, expected)
    assert painted.sum() == 48 - 9


def test_nothing_painted_is_no_mask() -> None:
    layer = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    assert painted_mask({"layers": [layer]}, (8, 8)) is None
    assert painted_mask({"layers": []}, (8, 8)) is None
    assert painted_mask(None, (8, 8)) is None


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    photo, mask_file = tmp_path / "photo.png", tmp_path / "mask.png"
    save_png(photo, torch.zeros(3, 8, 8))
    save_png(mask_file, torch.zeros(3, 8, 9))
    with pytest.raises(BadMask, match="9 x 8"):
        paint_mask_file(str(mask_file), str(photo), str(tmp_path))


def test_small_pictures_are_shown_pixel_by_pixel() -> None:
    picture = Image.effect_noise((40, 30), 80).convert("RGB")
    assert view(from_pil(picture)).tobytes() == picture.tobytes()


def test_tasks_are_named_in_plain_words_and_in_the_fields() -> None:
    labels = {value: label for label, value in task_choices({entry.task for entry in shelf()})}
    trained = {entry.task for entry in shelf()}
    assert list(labels) == [name for name in TASKS if name in trained]
    assert labels["gaussian_blur"] == f"{TASKS['gaussian_blur'].title} (gaussian blur)"


def test_presets_tell_their_steps_until_their_time_is_known() -> None:
    steps = {name: preset.steps for name, preset in PRESETS.items()}
    assert preset_choices(steps, {"balanced": 10.4}) == [
        ("Quick: 16 steps", "quick"),
        ("Balanced: about 10 s", "balanced"),
        ("Paper: 1000 steps", "paper"),
    ]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        *((0.2, "under 1 s"), (12.4, "about 12 s"), (89, "about 89 s"), (100, "about 2 min")),
        *((1000, "about 17 min"), (5500, "about 2 h")),
    ],
)
def test_an_estimate_is_as_fine_as_it_is_good(seconds: float, told: str) -> None:
    assert about(seconds) == told


def test_a_step_takes_longer_on_a_larger_picture_until_that_is_scaled_down() -> None:
    timing, work = Timing(), Work("tiny", "silo", False, "denoising", 64 * 64)
    assert timing.seconds(work) is None
    timing.note(work, native_size=64, seconds=0.5)
    assert timing.seconds(replace(work, pixels=2 * 64 * 64)) == pytest.approx(1.0)
    large = replace(work, pixels=10**7)
    assert timing.seconds(large) == pytest.approx(2.0)  # of a hole, at twice the prior's side
    assert timing.seconds(replace(large, working_size=512)) == pytest.approx(32.0)
    assert timing.seconds(replace(work, pixels=None)) == pytest.approx(0.5)
    for other in ({"prior": "sd15"}, {"sampler": "silo-fast"}, {"guided": True}):
        assert timing.seconds(replace(work, **other)) is None
    assert timing.finishing(work) == 0
    timing.note_finishing(work, 3.0)
    assert timing.finishing(replace(work, pixels=2 * 64 * 64)) == pytest.approx(6.0)
    assert timing.finishing(replace(work, task="jpeg_q10")) == 0


def test_every_presets_sampler_is_timed_at_the_start() -> None:
    timing, restorer = Timing(), Restorer(LatentPrior.load("tiny"))
    timing.measure("tiny", restorer)
    for preset in PRESETS.values():
        step = timing.seconds(Work("tiny", preset.sampler, False, "denoising", None))
        assert step is not None and step > 0


def test_the_summary_tells_seed_scores_and_notices_as_harmless_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SILO_METRIC_WEIGHTS", raising=False)
    result, request = a_result(samples=1)
    text = summary(result, request)
    assert "Seed 5, 50 denoiser evaluations, 1.5 s" in text
    assert "PSNR 40.0 dB" in text  # 10 log10(4 / 0.02^2)
    assert "the degraded photo: PSNR 20.0 dB. LPIPS: not available (no weights)." in text
    assert "Worked &lt;small&gt;." in text
    assert "LPIPS: not available (too small)." in summary(*a_result(samples=1, size=(16, 24)))


def test_progress_is_a_sentence_and_a_bar() -> None:
    text = Frame(step=3, total=50, seconds_left=12.4, picture=None).to_html()
    assert text.startswith(paragraphs("Step 3 of 50, about 12 s left"))
    assert '<progress max="50" value="3">' in text
    frame = Frame(50, 50, 0.0, None, finishing=Finishing(sample=2, samples=3, seconds=1.0))
    assert "variant 2 of 3" in frame.to_html() and "<progress>" in frame.to_html()


def test_inverting_the_mask_twice_gives_it_back(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (40, 30), "grey").save(photo)
    painted = Image.new("RGBA", (40, 30), (255, 255, 255, 0))
    painted.paste((255, 255, 255, 255), (5, 5, 20, 10))

    def inverse_of(canvas: dict[str, Any]) -> dict[str, Any]:
        return opened(invert(canvas, str(photo), str(tmp_path)))

    mask = painted_mask(first := {"layers": [painted]}, (30, 40))
    once = inverse_of(first)
    twice = inverse_of(once)
    assert mask is not None and (inverse := painted_mask(once, (30, 40))) is not None
    assert torch.equal(inverse, 1 - mask)
    again = painted_mask(twice, (30, 40))
    assert again is not None and torch.equal(again, mask)


def test_black_over_white_is_to_stay() -> None:
    layer = Image.new("RGBA", (8, 6), (255, 255, 255, 0))
    layer.paste((255, 255, 255, 255), (0, 0, 4, 6))
    layer.paste((0, 0, 0, 255), (2, 0, 8, 6))
    mask = painted_mask({"layers": [layer]}, (6, 8))
    assert mask is not None and torch.equal(mask[0, 0, 0], torch.tensor([0.0] * 2 + [1.0] * 6))


def test_inverting_an_empty_canvas_paints_it_all(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (8, 6), "grey").save(photo)
    (layer,) = opened(invert({"layers": []}, str(photo), str(tmp_path)))["layers"]
    assert layer.size == (8, 6)
    assert layer.getchannel("A").getextrema() == (255, 255)


def test_the_map_is_the_standard_deviation_over_the_samples(tmp_path: Path) -> None:
    samples = torch.zeros(2, 3, 4, 8)
    samples[0, :, 1, 2], samples[1, :, 1, 2] = 0.2, -0.2  # +-0.1 in [0, 1]
    deviation = Deviation()
    assert torch.equal(torch.cat(list(deviation.of(samples.split(1)))), samples)
    spread = deviation.value
    assert spread.shape == (1, 1, 4, 8)
    assert spread[0, 0, 1, 2] == pytest.approx(0.1)
    assert spread.sum() == pytest.approx(0.1)
    result, _ = a_result(samples=2)
    plan = Fit(original=(4, 6), scaled=(4, 6), padded=(4, 8))
    samples[0, :, 0, 7] = 1  # nothing of the picture
    measured = replace(result.measured, y=torch.zeros(1, 3, 4, 8), fit=plan)
    result = replace(result, restored=samples, measured=measured)
    _, drawn = save_result(result, tmp_path)
    assert drawn is not None
    path, largest = drawn
    assert largest == pytest.approx(0.1)
    with Image.open(path) as picture:
        grey = picture.convert("L")
    assert grey.size == (6, 4)
    assert grey.getpixel((2, 1)) == max(grey.tobytes())
    assert grey.getpixel((0, 0)) == min(grey.tobytes())


def test_of_a_large_picture_one_sample_at_a_time_is_scaled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, request = a_result(samples=3)
    plan = Fit(original=(40, 60), scaled=(16, 24), padded=(16, 32))
    restored = torch.rand(3, 3, 16, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    grey = torch.zeros(1, 3, 16, 32)
    measured = replace(result.measured, y=grey, clean=grey, fit=plan)
    result = replace(result, restored=restored, measured=measured)
    expected = [to_pil(image) for image in result.images]
    told = f"PSNR {psnr(restored[..., :24], torch.zeros(3, 3, 16, 24)).mean():.1f} dB"
    undo, undone = Fit.undo, []

    def undo_one(plan: Fit, pixels: torch.Tensor) -> torch.Tensor:
        assert len(pixels) == 1
        undone.append(pixels)
        return undo(plan, pixels)

    monkeypatch.setattr(Fit, "undo", undo_one)
    (_, *files), uncertainty = save_result(result, tmp_path)
    assert len(undone) == 1 + 3  # the measurement and each sample: it may take seconds
    for file, picture in zip(files, expected, strict=True):
        with Image.open(file) as saved:
            assert saved.tobytes() == picture.tobytes()
    assert uncertainty is not None
    with Image.open(uncertainty[0]) as drawn:
        assert drawn.size == (60, 40)
    monkeypatch.delenv("SILO_METRIC_WEIGHTS", raising=False)
    assert told in summary(result, request)


def test_what_is_painted_is_kept_whole(tmp_path: Path) -> None:
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    Image.new("RGB", (8, 6), "grey").save(photo)
    Image.new("L", (8, 6), 255).save(mask)
    cache = tmp_path / "cache"
    for canvas in (
        paint_mask_file(str(mask), str(photo), str(cache)),
        invert(None, str(photo), str(cache)),
    ):
        files = {canvas["background"], *canvas["layers"]}
        assert files == {str(each) for each in cache.rglob("*") if each.is_file()}


def test_a_picture_is_kept_once_and_whole(tmp_path: Path) -> None:
    picture = Image.new("RGB", (5, 4), (1, 2, 3))
    path = keep(picture, tmp_path, "photo")
    assert keep(picture.copy(), tmp_path, "photo") == path
    assert [Path(path)] == [each for each in tmp_path.rglob("*") if each.is_file()]
    with Image.open(path) as kept:
        assert (kept.format, kept.tobytes()) == ("PNG", picture.tobytes())


def settings_of(**changed: object) -> dict[str, object]:
    request = RestorationRequest("gaussian_blur", torch.zeros(1, 3, 8, 8))
    names = ("task", "simulate", "noise_sigma", "prompt", "negative_prompt", "guidance_scale")
    settings = {name: getattr(request, name) for name in (*names, "samples", "seed")}
    made_with: dict[str, object] = {
        "prior": {"name": "tiny", "revision": None},
        "operator": {"name": "lab/operator@c0ffee", "revision": "c0ffee"},
    }
    numbers = {"steps": 7, "eta": 2, "noise_sigma": 0.02}
    made_with["version"] = __version__
    return {**settings, "sampler": "silo", **numbers, **made_with, **changed}


def test_the_settings_of_a_result_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "result.png"
    save_png(path, torch.zeros(3, 4, 4), settings_of(seed=9, prompt="a <b>cat</b>", simulate=True))
    saved = read_settings(str(path))
    assert saved.simulate
    request = saved.request
    assert (request.task, request.seed, request.prompt) == ("gaussian_blur", 9, "a <b>cat</b>")
    assert (request.effective_sampler, request.effective_steps) == ("silo", 7)
    assert (request.eta, request.effective_noise_sigma) == (2.0, 0.02)
    assert (saved.prior, str(saved.operator)) == (Weights("tiny", None), "lab/operator@c0ffee")
    assert saved.blur_std is None
    save_png(path, torch.zeros(3, 4, 4), settings_of(noise_told=False))
    assert read_settings(str(path)).request.noise_sigma is None  # what was assumed is no choice
    assert request.working_size is None  # results of before 0.15 say nothing of it
    save_png(path, torch.zeros(3, 4, 4), settings_of(working_size=700))
    assert read_settings(str(path)).request.working_size == 700
    save_png(path, torch.zeros(3, 4, 4), settings_of(blur_std=2))
    assert read_settings(str(path)).blur_std == 2.0


def test_what_the_page_has_no_field_for_is_told(tmp_path: Path) -> None:
    path = tmp_path / "result.png"
    weaker = {"kind": "gaussian_blur", "parameters": {"std": 1.0}}
    save_png(path, torch.zeros(3, 4, 4), settings_of(degradation=weaker, clamp=0.1))
    assert [each.split(" (")[0] for each in read_settings(str(path)).not_offered] == [
        "a degradation of its own",
        "a bound on the guidance gradient",
    ]
    save_png(path, torch.zeros(3, 4, 4), settings_of(keep_known=False))
    (told,) = read_settings(str(path)).not_offered
    assert "--no-keep-known" in told
    save_png(path, torch.zeros(3, 4, 4), settings_of(version="0.0.1"))
    assert read_settings(str(path)).not_offered == ["another version of SILO"]
    save_png(path, torch.zeros(3, 4, 4), settings_of(stopped_after=3))
    assert read_settings(str(path)).not_offered == ["estimates of a run that was stopped"]
    for given, read in (("float16", "float16"), ("<b>", None), (["float16"], None)):
        save_png(path, torch.zeros(3, 4, 4), settings_of(dtype=given))
        assert read_settings(str(path)).dtype == read


def test_the_settings_of_a_task_of_ones_own_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "result.png"
    weaker = {"kind": "gaussian_blur", "parameters": {"std": 1.0}, "noise_sigma": 0.03}
    save_png(path, torch.zeros(3, 4, 4), settings_of(task="old_lens", degradation=weaker))
    saved = read_settings(str(path))
    assert (saved.request.task, saved.not_offered) == ("old_lens", [])
    assert saved.request.degradation == Degradation.from_dict(weaker)


def test_a_hostile_file_writes_no_html_into_an_error() -> None:
    told = str(one_sentence(BadRequest("no task '<img src=https://example.com/x>' & more")))
    assert "<" not in told and "'&lt;img src=" in told and "&amp; more" in told
    told = str(one_sentence(BadRequest("x" * 10**6 + ": save it again")))
    assert len(told) < 1000 and "save it again" in told


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("a negative prompt acts: leave it out", "A negative prompt acts: leave it out"),
        ("holiday.jpg: the file is empty", "holiday.jpg: the file is empty"),
        ("lab/lens is damaged", "lab/lens is damaged"),
        ("noise_sigma must be a number", "noise_sigma must be a number"),
    ],
)
def test_a_sentence_begins_with_a_capital_and_a_name_as_it_is(said: str, told: str) -> None:
    assert sentence(BadRequest(said)) == told


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"task": ["gaussian_blur"]}, "task"),
        ({"task": "x" * 10**5}, "task"),
        ({"sampler": "x" * 10**5}, "sampler"),
        ({"sampler": "psld", "eta": None, "operator": None}, "does not offer the sampler psld"),
        ({"degradation": 3}, "degradation"),
        ({"degradation": {"kind": "x" * 10**5}}, "degradation"),
        ({"task": "../../etc/passwd"}, "no task"),
        ({"sampler": "guesswork"}, "no sampler"),
        ({"seed": "0"}, "seed"),
        ({"seed": -1}, "seed"),
        ({"steps": True}, "steps"),
        ({"steps": 10**9}, "steps"),
        ({"eta": None}, "eta"),
        ({"eta": 10**400}, "eta"),
        ({"noise_sigma": 2}, "noise_sigma"),
        ({"blur_std": "1"}, "blur_std"),
        ({"blur_std": -1}, "blur_std"),
        ({"blur_std": 1.5, "simulate": True}, "blur_std"),
        ({"blur_std": 1.5, "task": "denoising"}, "blur_std"),
        ({"simulate": 1}, "simulate"),
        ({"working_size": 10**9}, "working_size"),
        ({"working_size": "1024"}, "working_size"),
        ({"prompt": "x" * 100_000}, "longer than.*write a shorter one"),
        ({"samples": 10**6}, "samples"),
        ({"prior": "tiny"}, "prior"),
        ({"prior": {"name": "tiny"}}, "prior"),
        ({"operator": {"name": ["x"], "revision": None}}, "operator"),
        ({"operator": {"name": "x" * 10**5, "revision": None}}, "operator"),
    ],
)
def test_settings_that_no_result_can_have_are_refused(
    tmp_path: Path, changed: dict[str, object], told: str
) -> None:
    path = tmp_path / "result.png"
    save_png(path, torch.zeros(3, 4, 4), settings_of(**changed))
    with pytest.raises(BadRequest, match=told) as caught:
        read_settings(str(path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_picture_without_settings_says_so(tmp_path: Path) -> None:
    save_png(tmp_path / "plain.png", torch.zeros(3, 4, 4))
    with pytest.raises(BadRequest, match="no settings"):
        read_settings(str(tmp_path / "plain.png"))


def test_a_run_is_known_while_it_lasts_and_remembers_its_last_estimate() -> None:
    runs = Runs()
    run = Run({}, torch.zeros(1, 3, 8, 8), total=3)

    def steps() -> Generator[int, None, None]:
        with runs.begin("visitor", run):
            for step in (1, 2, 3):
                run.note(Frame(step, 3, 0.0, Image.new("RGB", (8, 8)) if step == 1 else None))
                yield step

    cut_off = steps()
    assert [next(cut_off), next(cut_off)] == [1, 2]
    assert runs.of("visitor") is run and runs.of("another") is None
    assert not run.ended.is_set()
    cut_off.close()  # what gradio does when a tab is closed
    assert runs.of("visitor") is None and run.ended.is_set()
    assert run.step == 2 and run.estimate is not None and run.estimate[0] == 1


def restoring_with(
    models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[inputs.Settings, outputs.Outputs, Restoring, Timing]:
    """The handlers of Restore and Stop and their fields, whose files go into the folder."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder / "cache"))
    captioner, timing = Captioner(device=torch.device("cpu")), Timing()

    async def lay_out() -> tuple[inputs.Settings, outputs.Outputs]:
        with gr.Blocks():
            return inputs.lay_out(models)[0], outputs.lay_out()

    settings, shown = asyncio.run(lay_out())
    restoring = Restoring(models, lambda: captioner, settings, shown, timing, Runs())
    return settings, shown, restoring, timing


def simulating(
    settings: inputs.Settings, shown: outputs.Outputs, tmp_path: Path, steps: int
) -> dict[Any, Any]:
    """What the fields hold of a visitor who wants to see a photo degraded and restored."""
    photo = tmp_path / "photo.png"
    save_png(photo, torch.zeros(3, 64, 64))
    given = {field: getattr(field, "value", None) for field in settings.all()}
    given |= {settings.photo: str(photo), settings.steps: steps, settings.source: CLEAN}
    return given | {shown.clicks: 1}


def test_stop_ends_a_run_after_the_step_under_way(
    tiny_prior: LatentPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = cast(gr.Request, SimpleNamespace(session_hash="a"))
    models = Models(lambda _: tiny_prior)
    settings, shown, restoring, _ = restoring_with(models, tmp_path, monkeypatch)
    given = simulating(settings, shown, tmp_path, steps=50)

    running = restoring.restore(given, visit)
    next(running)  # the measurement
    next(running)  # the first step
    run = restoring.runs.of("a")
    assert run is not None
    with ThreadPoolExecutor(1) as pool:
        stop = pool.submit(restoring.stop, 1, visit)
        run.stopping.wait()
        last = next(running)
        assert next(running, None) is None
        assert tiny_prior.nfe == run.step == 2  # the one under way when Stop was pressed, no more
        assert "Stopped after 2 of 50 steps" in last[shown.status]
        assert stop.result()[shown.status] == last[shown.status]


def test_stop_shows_what_there_is_where_a_step_takes_long(
    tiny_prior: LatentPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("silo.ui.restoring.STOP_PATIENCE", 0)
    visit = cast(gr.Request, SimpleNamespace(session_hash="a"))
    settings, shown, restoring, _ = restoring_with(
        Models(lambda _: tiny_prior), tmp_path, monkeypatch
    )
    running = restoring.restore(simulating(settings, shown, tmp_path, steps=50), visit)
    next(running)  # the measurement
    assert "before its first step" in restoring.stop(1, visit)[shown.status]
    run = restoring.runs.of("a")
    assert run is not None
    run.stopping.clear()
    next(running)  # the first step
    stopped = restoring.stop(1, visit)
    assert "Stopped after 1 of 50 steps" in stopped[shown.status]
    before, after = stopped[shown.files]
    assert load_image(after).pixels.shape == load_image(before).pixels.shape
    saved = read_parameters(after)
    assert saved is not None and saved["stopped_after"] == 1
    assert len(list(running)) == 1  # the step under way


def test_who_leaves_ends_his_run(
    tiny_prior: LatentPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = cast(gr.Request, SimpleNamespace(session_hash="a"))
    settings, shown, restoring, _ = restoring_with(
        Models(lambda _: tiny_prior), tmp_path, monkeypatch
    )
    running = restoring.restore(simulating(settings, shown, tmp_path, steps=50), visit)
    next(running)  # the measurement
    next(running)  # the first step
    restoring.leave(cast(gr.Request, SimpleNamespace(session_hash="b")))
    next(running)
    restoring.leave(visit)
    assert len(list(running)) == 1
    assert tiny_prior.nfe == 3


def test_a_finished_result_is_given_before_anything_else_and_then_its_time(
    tiny_prior: LatentPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = cast(gr.Request, SimpleNamespace(session_hash="a"))
    models = Models(lambda _: tiny_prior)
    settings, shown, restoring, timing = restoring_with(models, tmp_path, monkeypatch)
    given = simulating(settings, shown, tmp_path, steps=1)

    running = restoring.restore(given, visit)
    next(running)  # the measurement
    next(running)  # the one step
    assert "All steps are done" in next(running)[shown.status]
    # Another visitor's prior may have taken the place of this one meanwhile.
    monkeypatch.setattr(models, "restorer", lambda *_: pytest.fail("the prior is loaded again"))
    finished = next(running)
    assert len(finished[shown.files]) == 2 and "Done." in finished[shown.status]
    work = Work("tiny", "silo-fast", False, given[settings.task], None)
    assert timing.seconds(work) is None
    (last,) = running
    assert timing.seconds(work) is not None
    assert "step" not in last[settings.preset].choices[0][0]  # but the time


def test_a_run_that_fails_midway_says_so_where_it_counted_its_steps(
    tiny_prior: LatentPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = cast(gr.Request, SimpleNamespace(session_hash="a"))
    settings, shown, restoring, _ = restoring_with(
        Models(lambda _: tiny_prior), tmp_path, monkeypatch
    )
    given = simulating(settings, shown, tmp_path, steps=3)

    running = restoring.restore(given, visit)
    next(running)  # the measurement
    assert "Step 1 of 3" in next(running)[shown.status]
    monkeypatch.setattr(tiny_prior, "predict", Mock(side_effect=OutOfMemory("no <room> left")))
    last = next(running)
    assert last[shown.status] == "<p>No &lt;room&gt; left</p>"
    with pytest.raises(gr.Error, match="No &lt;room&gt; left"):
        next(running)
    assert restoring.runs.of("a") is None


def test_presets_count_the_chosen_ones_steps_the_variants_and_the_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, shown, restoring, timing = restoring_with(Models(no_prior), tmp_path, monkeypatch)
    for sampler in ("silo-fast", "silo"):
        timing.note(Work("tiny", sampler, False, "", 256 * 256), native_size=256, seconds=0.1)
    photo = tmp_path / "photo.png"
    save_png(photo, torch.zeros(3, 64, 64))  # SRx4 restores it at 256 x 256
    given = {field: getattr(field, "value", None) for field in settings.all()}
    given |= {settings.task: "super_resolution_x4", settings.photo: str(photo)}

    def labels(**changed: object) -> list[str]:
        values = {getattr(settings, name): value for name, value in changed.items()}
        return [label for label, _ in restoring.presets({**given, **values}).choices]

    assert labels() == ["Quick: about 2 s", "Balanced: about 10 s", "Paper: about 2 min"]
    assert labels(samples=3, steps=30)[:2] == ["Quick: about 9 s", "Balanced: about 30 s"]
    assert labels(source=CLEAN)[1] == "Balanced: under 1 s"  # 64 x 64, a quarter of the side
    assert labels(guidance_scale=5)[1] == "Balanced: 100 steps"
    save_png(photo, torch.zeros(3, 512, 512))
    assert labels(working_size=512)[0] == "Quick: about 6 s"
    assert labels(working_size=1024)[0] == "Quick: about 26 s"


def test_a_run_that_failed_is_not_kept() -> None:
    runs, run = Runs(), Run({}, torch.zeros(1, 3, 8, 8), total=3)
    with pytest.raises(ZeroDivisionError), runs.begin("visitor", run):
        raise ZeroDivisionError
    assert runs.of("visitor") is None and run.ended.is_set()


def test_on_zerogpu_a_prior_of_a_visitors_choice_waits_on_the_cpu(
    tiny_prior_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import app

    # "meta" stands for the GPU.
    monkeypatch.setattr(app, "pick_device", lambda: torch.device("meta"))
    monkeypatch.setattr(app, "pick_dtype", lambda device: torch.float32)
    for zero_gpu, place in ((True, "cpu"), (False, "meta")):
        monkeypatch.setattr(app.Config, "zero_gpu", zero_gpu)
        assert app.load_prior(str(tiny_prior_folder)).device.type == place
