"""The page: choose a task, give a photo, watch it being restored. Spaces run this too."""

import spaces  # ahead of torch: on ZeroGPU it must be there before CUDA is touched

# isort: split

import dataclasses
import functools
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import skimage.data
from gradio import themes
from gradio.processing_utils import save_pil_to_cache
from PIL import Image, ImageOps

from operators.catalog import TASKS
from operators.errors import OperatorError
from silo import images
from silo.decoding import MAX_FILE_BYTES, SUFFIXES
from silo.devices import pick_device, pick_dtype
from silo.errors import SiloError
from silo.prior import load_or_embedded
from silo.prior_files import EMBEDDED_NAME
from silo.request import MAX_STEPS, PRESETS, RestorationRequest
from silo.restorer import Restorer, Result
from silo.ui.mask_painter import paint_mask_file, painted_mask, view, wants_mask
from silo.ui.wording import Frame, paragraphs, preset_choices, summary, task_choices

DEGRADED, CLEAN = "degraded", "clean"  # what the person's photo is
EXAMPLES = ("astronaut", "chelsea", "coffee", "rocket")  # in scikit-image's wheel: no download
THUMBNAIL = 128  # px
PICTURE_PERIOD = 0.7  # seconds between two clean estimates on the page
SEEDS = 2**31
HOUR = 3600  # seconds

MONOSPACE = ("ui-monospace", "Consolas", "monospace")
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")  # none is downloaded
CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#picture img { width: 100%; height: 100%; object-fit: contain; }
#status { min-height: 3.5rem; }
#status p { margin: 0 0 .4rem; }
#status progress { appearance: none; width: 100%; height: .5rem; border: 0; border-radius: 1rem; }
#status progress { overflow: hidden; background: var(--border-color-primary); }
#status progress::-webkit-progress-bar { background: var(--border-color-primary); }
#status progress::-webkit-progress-value { background: var(--color-accent); }
#status progress::-moz-progress-bar { background: var(--color-accent); }
"""
INTRODUCTION = """
# Restore a photo with SILO
Small, blurred, noisy, compressed or damaged photos, restored by a latent diffusion model that is
guided by a learned model of the damage.
"""
CAUTION = "A restored face is plausible, not evidence of identity."


def load_restorer() -> Restorer:
    """Load the prior that SILO_PRIOR names, the embedded one by default, on the fastest device."""
    device = pick_device()
    name = os.environ.get("SILO_PRIOR", EMBEDDED_NAME)
    prior, notice = load_or_embedded(name, device=device, dtype=pick_dtype(device))
    if notice is not None:
        prior.notices.append(notice)  # every result tells it
    return Restorer(prior)


def one_sentence(error: SiloError | OperatorError) -> gr.Error:
    """Turn an error of the library into the one sentence that the page shows."""
    return gr.Error(str(error), print_exception=False)


def example_photo(name: str, size: int) -> Image.Image:
    """Return the centre square of one of scikit-image's photos, `size` pixels wide."""
    photo = Image.fromarray(getattr(skimage.data, name)())
    return ImageOps.fit(photo, (size, size), Image.Resampling.LANCZOS)


def save_result(result: Result, request: RestorationRequest, cache: Path) -> list[str]:
    """Write the measurement, then every sample, as PNG files with the parameters inside."""
    cache.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=cache))
    paths = [folder / f"{request.task}-before.png"]
    images.save_png(paths[0], result.measurement, result.parameters)
    for index, image in enumerate(result.images):
        paths.append(folder / f"{request.task}-seed-{request.seed + index}.png")
        images.save_png(paths[-1], image, {**result.parameters, "sample": index})
    return [str(path) for path in paths]


def choose_variant(files: list[str], event: gr.SelectData) -> tuple[tuple[str, str], str]:
    """Compare and offer the variant that was clicked; `files` begins with the measurement."""
    variant = files[1 + event.index]
    return (files[0], variant), variant


def gpu_seconds(request: RestorationRequest) -> int:
    """Return the seconds to ask of ZeroGPU: Stable Diffusion takes 0.15 s a step on its GPUs."""
    return round(20 + 0.2 * request.effective_steps * request.samples)


def build(restorer_factory: Callable[[], Restorer]) -> gr.Blocks:
    """Lay out and wire the page; `restorer_factory` is called when something needs the model."""
    with gr.Blocks(
        title="Restore a photo with SILO", analytics_enabled=False, delete_cache=(HOUR, 4 * HOUR)
    ) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                task = gr.Dropdown(
                    task_choices(),
                    label="What is wrong with the photo?",
                    filterable=False,
                    elem_id="task",
                )
                photo = gr.File(
                    label="Photo", file_types=list(SUFFIXES), height=110, elem_id="photo"
                )
                cache = photo.GRADIO_CACHE
                thumbnails = [
                    save_pil_to_cache(example_photo(name, THUMBNAIL), cache, name, "png")
                    for name in EXAMPLES
                ]
                examples = gr.Dataset(
                    label="Or take an example",
                    components=[gr.Image(render=False)],
                    samples=[[path] for path in thumbnails],
                    type="index",
                    elem_id="examples",
                )
                source = gr.Radio(
                    [("It is already degraded", DEGRADED), ("Degrade it first (show me)", CLEAN)],
                    value=DEGRADED,
                    label="This photo",
                    elem_id="source",
                )
                with gr.Column(visible=False, elem_id="painter") as painter:
                    canvas = gr.ImageEditor(
                        label="Paint over what should be filled in",
                        type="filepath",
                        format="png",
                        sources=(),
                        transforms=(),
                        layers=False,
                        brush=gr.Brush(colors=["#ffffff"], color_mode="fixed"),
                        buttons=[],
                        elem_id="canvas",
                    )
                    mask_file = gr.UploadButton(
                        "Or load a mask file: white is filled in",
                        file_types=list(SUFFIXES),
                        size="sm",
                        elem_id="mask-file",
                    )
                preset = gr.Radio(
                    preset_choices(None), value="quick", label="Effort", elem_id="preset"
                )
                with gr.Accordion("Advanced", open=False, elem_id="advanced"):
                    faithfulness = gr.Slider(
                        0,
                        4,
                        1,
                        step=0.05,
                        label="Faithfulness to the photo (consistency scale eta)",
                        info="Times what suits the task. Low: more is invented.",
                        elem_id="faithfulness",
                    )
                    steps = gr.Slider(
                        1, MAX_STEPS, PRESETS["quick"], step=1, label="Steps", elem_id="steps"
                    )
                    noise_sigma = gr.Slider(
                        0,
                        0.5,
                        next(iter(TASKS.values())).degradation.noise_sigma,
                        step=0.005,
                        label="Noise in the degraded photo (standard deviation; white is 1)",
                    )
                    prompt = gr.Textbox(label="What the photo shows (prompt)")
                    negative_prompt = gr.Textbox(label="What it does not show (negative prompt)")
                    guidance_scale = gr.Slider(1, 15, 1, step=0.5, label="Guidance scale (CFG)")
                    samples = gr.Slider(
                        1, 4, 1, step=1, label="Variants", info="One seed after the other."
                    )
                    seed = gr.Number(label="Seed", value=0, minimum=0, precision=0, elem_id="seed")
                    new_seed = gr.Button("New seed", size="sm", elem_id="new-seed")
            with gr.Column(scale=3, min_width=320):
                with gr.Row():
                    go = gr.Button("Restore", variant="primary", elem_id="restore")
                    stop = gr.Button("Stop", interactive=False, elem_id="stop")
                status = gr.HTML(elem_id="status", padding=False)
                picture = gr.Image(
                    show_label=False,
                    interactive=False,
                    format="png",
                    height=480,
                    buttons=[],
                    elem_id="picture",
                )
                comparison = gr.ImageSlider(
                    label="Before and after",
                    interactive=False,
                    format="png",
                    type="filepath",
                    max_height=480,
                    buttons=["fullscreen"],
                    visible=False,
                    elem_id="comparison",
                )
                variants = gr.Gallery(
                    label="Variants",
                    format="png",
                    columns=4,
                    height="auto",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    visible=False,
                    elem_id="variants",
                )
                download = gr.DownloadButton(
                    "Download PNG, settings inside", visible=False, elem_id="download"
                )
                gr.Markdown(CAUTION)
        files = gr.State([])

        seconds_per_step: float | None = None

        @spaces.GPU(duration=gpu_seconds)
        def run(request: RestorationRequest) -> Iterator[Frame | Result]:
            picture_due = 0.0
            try:
                for event in restorer_factory().restore(request):
                    if isinstance(event, Result):
                        yield event
                        continue
                    estimate = None
                    if time.monotonic() >= picture_due:
                        estimate = event.preview()
                        picture_due = time.monotonic() + PICTURE_PERIOD
                    yield Frame(event.step, event.total, event.seconds_left, estimate)
            except (SiloError, OperatorError) as error:
                raise one_sentence(error) from error

        def read_request(given: dict[Any, Any]) -> RestorationRequest:
            image = images.load_image(given[photo]).pixels
            mask = None
            if wants_mask(given[task], given[source] == CLEAN):
                mask = painted_mask(given[canvas], (image.shape[-2], image.shape[-1]))
            request = RestorationRequest(
                task=given[task],
                image=image,
                simulate=given[source] == CLEAN,
                mask=mask,
                prompt=given[prompt] or "",  # None until its panel was opened
                negative_prompt=given[negative_prompt] or "",
                guidance_scale=given[guidance_scale],
                preset=given[preset],
                steps=given[steps],
                noise_sigma=given[noise_sigma],
                samples=given[samples],
                seed=given[seed],
            )
            eta = restorer_factory().parameters(request)["eta"]
            return dataclasses.replace(request, eta=given[faithfulness] * eta)

        def measurement_of(request: RestorationRequest) -> Image.Image:
            measured = restorer_factory().measure(request)
            return view(measured.fit.undo(measured.full_size))

        def restore(given: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
            nonlocal seconds_per_step
            if given[photo] is None:
                raise gr.Error("Choose a photo or an example first.", print_exception=False)
            try:
                request = read_request(given)
                before = measurement_of(request)
            except (SiloError, OperatorError) as error:
                raise one_sentence(error) from error
            yield {**results(None), picture: gr.Image(before, visible=True), status: "Starting."}
            for event in run(request):
                if isinstance(event, Frame):
                    shown = {} if event.picture is None else {picture: event.picture}
                    yield {status: event.to_html(), **shown}
                    continue
                paths = save_result(event, request, Path(cache))
                seconds_per_step = event.seconds / request.effective_steps / request.samples
                yield {
                    **results(paths),
                    picture: gr.Image(visible=False),
                    status: summary(event, request),
                    preset: gr.Radio(preset_choices(seconds_per_step)),
                }

        def results(paths: list[str] | None) -> dict[Any, Any]:
            if paths is None:
                hidden = gr.update(visible=False)
                return {comparison: hidden, variants: hidden, download: hidden}
            before, *after = paths
            return {
                comparison: gr.ImageSlider((before, after[0]), visible=True),
                variants: gr.Gallery(after, selected_index=0, visible=len(after) > 1),
                download: gr.DownloadButton(value=after[0], visible=True),
                files: paths,
            }

        def show(given: dict[Any, Any]) -> dict[Any, Any]:
            """Show what is to be restored: the photo, or what the chosen damage makes of it."""
            masked = wants_mask(given[task], given[source] == CLEAN)
            shown, notices = None, []
            if given[photo] is not None:
                try:
                    loaded = images.load_image(given[photo])
                    shown, notices = view(loaded.pixels), loaded.notices
                    if given[source] == CLEAN and not masked:
                        request = RestorationRequest(given[task], loaded.pixels, simulate=True)
                        shown = measurement_of(request)
                except SiloError as error:
                    notices = [str(error)]
            return {
                **results(None),
                picture: gr.Image(shown, visible=True),
                painter: gr.update(visible=masked and shown is not None),
                status: paragraphs(*notices),
            }

        def blank_canvas(path: str | None) -> Image.Image | None:
            """The photo to paint on; none for a file that is no picture, of which `show` tells."""
            try:
                return None if path is None else view(images.load_image(path).pixels)
            except SiloError:
                return None

        def load_mask(path: str, photo_path: str) -> dict[str, Any]:
            try:
                return paint_mask_file(path, photo_path)
            except SiloError as error:
                raise one_sentence(error) from error

        def choose_example(index: int) -> tuple[str, str]:
            name = EXAMPLES[index]
            example = example_photo(name, restorer_factory().prior.native_size)
            return save_pil_to_cache(example, cache, name, "png"), CLEAN

        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        examples.click(choose_example, examples, [photo, source], **quiet)
        photo.change(blank_canvas, photo, canvas, **quiet)
        gr.on(
            [photo.change, task.change, source.change],
            show,
            {photo, task, source},
            [picture, comparison, variants, download, painter, status],
            **quiet,
        )
        # `input`, not `change`: only a person's choice may overwrite what stands in these fields.
        preset.input(lambda name: PRESETS[name], preset, steps, **quiet)
        task.input(lambda name: TASKS[name].degradation.noise_sigma, task, noise_sigma, **quiet)
        page.load(lambda: gr.Radio(preset_choices(seconds_per_step)), None, preset, **quiet)
        mask_file.upload(load_mask, [mask_file, photo], canvas, **quiet)
        new_seed.click(lambda: secrets.randbelow(SEEDS), None, seed, **quiet)
        variants.select(choose_variant, files, [comparison, download], **quiet)

        def buttons(running: bool) -> tuple[gr.Button, gr.Button]:
            return gr.Button(interactive=not running), gr.Button(interactive=running)

        given: set[Any] = {
            *(task, photo, source, canvas, preset, faithfulness, steps, noise_sigma),
            *(prompt, negative_prompt, guidance_scale, samples, seed),
        }
        restoration = go.click(
            functools.partial(buttons, True), None, [go, stop], queue=False, **quiet
        ).then(
            restore,
            given,
            [picture, comparison, variants, download, files, status, preset],
            show_progress="minimal",
            show_progress_on=status,
            concurrency_limit=1,
            api_visibility="private",
        )
        for ended in (restoration.success, restoration.failure):
            ended(functools.partial(buttons, False), None, [go, stop], queue=False, **quiet)
        # Restore comes back with the end of the cancelled run: until then a click on it is dropped.
        stop.click(
            lambda: (gr.Button(interactive=False), paragraphs("Stopped.")),
            None,
            [stop, status],
            cancels=restoration,
            queue=False,
            **quiet,
        )
    return page


def main() -> None:
    """Load the model, then serve the page."""
    restorer_factory = functools.cache(load_restorer)
    try:
        restorer_factory()
    except SiloError as error:
        sys.exit(str(error))
    page = build(restorer_factory)
    page.queue(max_size=20, default_concurrency_limit=4, api_open=False)
    page.launch(
        theme=themes.Default(
            primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=MONOSPACE
        ),
        css=CSS,
        max_file_size=MAX_FILE_BYTES,
        run_history=False,
        ssr_mode=False,
        footer_links=["settings"],
    )


if __name__ == "__main__":
    main()
