"""The left column: what to restore, and how."""

import functools
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from operators.catalog import TASKS
from silo.decoding import SUFFIXES, read_header
from silo.errors import BadRequest, SiloError
from silo.request import MAX_BLUR_STD, MAX_STEPS, PRESETS
from silo.ui import brush
from silo.ui.cache import KEPT_HOURS, keep
from silo.ui.examples import EXAMPLES, THUMBNAIL, example_photo
from silo.ui.mask_painter import blank_if_any
from silo.ui.models import AUTOMATIC, Models
from silo.ui.saved_settings import MAX_PROMPT
from silo.ui.wording import preset_choices, task_choices

DEGRADED, CLEAN = "degraded", "clean"  # what the person's photo is
MAX_FAITHFULNESS = 4.0
MAX_GUIDANCE = 15.0
MAX_VARIANTS = 4
SIZES = 512, 1024, 2048, 4096  # px to work at, or
USUAL_SIZE = 0  # for what suits the damage
# A number without a value (gradio 6.31) becomes 0 where its panel is opened first.
EMPTY_AT_FIRST = """(...values) => {
  if (window.advancedOpened) return values;
  window.advancedOpened = true;
  return values.map(() => null);
}"""


@dataclass(frozen=True)
class Settings:
    """The fields whose values make a request."""

    task: gr.Dropdown
    photo: gr.File
    source: gr.Radio
    canvas: gr.ImageEditor
    mask_file: gr.UploadButton
    preset: gr.Radio
    working_size: gr.Radio
    faithfulness: gr.Slider
    steps: gr.Slider
    noise_sigma: gr.Number
    blur_std: gr.Number
    prompt: gr.Textbox
    negative_prompt: gr.Textbox
    guidance_scale: gr.Slider
    samples: gr.Slider
    seed: gr.Number
    prior: gr.Dropdown
    operator: gr.Dropdown

    def all(self) -> set[Component]:
        """Return the fields, for an event that reads them all."""
        return {getattr(self, field.name) for field in fields(self)}

    def photo_file(self, given: dict[Any, Any]) -> str:
        """Return the path of the photo to restore.

        Raises:
            BadRequest: none is chosen, or it is gone.
        """
        path = given[self.photo]
        if path is None:
            raise BadRequest("Choose a photo or an example first.")
        if not Path(path).is_file():
            raise BadRequest(f"Photos are kept for {KEPT_HOURS} hours only: choose it again.")
        return path

    def restored_pixels(self, given: dict[Any, Any]) -> int | None:
        """Return how many pixels the restoration has; None without a photo that can be read."""
        if given[self.photo] is None:
            return None
        with suppress(SiloError):  # the page tells what is wrong with the file
            width, height = read_header(given[self.photo]).size
            task, is_measured = TASKS.get(given[self.task]), given[self.source] == DEGRADED
            larger = task.degradation.operator().downscale if task and is_measured else 1
            return width * height * larger**2
        return None

    def chosen_size(self, given: dict[Any, Any]) -> int | None:
        """Return the working size that is chosen; None for the usual one."""
        return given[self.working_size] or None

    def of_damage(self) -> list[Any]:
        """Return the fields that decide what is restored, and from which damage."""
        return [self.photo, self.task, self.source, self.prior, self.operator]

    def subject(self, given: dict[Any, Any]) -> tuple[Any, ...]:
        """Return what the values of all fields say about what is restored, from which damage."""
        return tuple(given[field] for field in self.of_damage())

    def of_operator(self) -> list[Any]:
        """Return the fields that the choice of an operator sets."""
        return [self.task, self.preset, self.steps]

    def of_time(self) -> list[Any]:
        """Return the fields, beside the preset, that decide how long a restoration takes."""
        return [
            *(self.task, self.photo, self.source, self.steps),
            *(self.working_size, self.guidance_scale, self.samples, self.prior),
        ]


@dataclass(frozen=True)
class Tools:
    """What fills the settings in: buttons, examples, files.

    Attributes:
        find_out: sets the damage to what the photo shows.
        find_scratches: paints the scratches that it shows.
        scratches: of this visitor: the mask file of those that were found last.
        example: the example that was clicked, and how many clicks there were.
        strength_given: of this visitor: the task and source whose noise and blur settings used
            again gave, until the next photo; else None.
    """

    examples: list[gr.Button]
    example: gr.Textbox
    find_out: gr.Button
    painter: gr.Column
    find_scratches: gr.Button
    scratches: gr.State
    invert: gr.Button
    describe: gr.Button
    new_seed: gr.Button
    saved: gr.File
    offered: gr.Dropdown
    operator_id: gr.Textbox
    add_operator: gr.Button
    strength_given: gr.State


def lay_out(models: Models) -> tuple[Settings, Tools]:
    """Put the fields on the page, in the block that is open."""
    photo = gr.File(label="Photo", file_types=list(SUFFIXES), height=150, elem_id="photo")
    gr.Markdown("Or take an example:")
    with gr.Row(elem_id="examples"):
        examples = [_example(name, photo.GRADIO_CACHE) for name in EXAMPLES]
        example = gr.Textbox("", visible="hidden")
    task = gr.Dropdown(
        task_choices(models.tasks()),
        label="What is wrong with the photo?",
        filterable=False,
        elem_id="task",
    )
    find_out = gr.Button("Find out", size="sm", elem_id="find-out")
    source = gr.Radio(
        [("It is damaged", DEGRADED), ("Damage it first, to try this out", CLEAN)],
        value=DEGRADED,
        label="This photo",
        elem_id="source",
    )
    painter, canvas, find_scratches, mask_file, invert = _painter(photo)
    preset = gr.Radio(
        preset_choices({n: p.steps for n, p in PRESETS.items()}, {}),
        value="quick",
        label="Effort",
        elem_id="preset",
    )
    working_size = gr.Radio(
        [("Usual", USUAL_SIZE), *((f"{size:,} pixels", size) for size in SIZES)],
        value=USUAL_SIZE,
        label="Detail (working size)",
        info="Larger results are worked on at about this size. Twice as much takes four times as "
        "long.",
        visible=False,  # it changes nothing of a small photo
        elem_id="working-size",
    )
    with gr.Accordion("Advanced", open=False, elem_id="advanced") as advanced:
        faithfulness = gr.Slider(
            0,
            MAX_FAITHFULNESS,
            1,
            step=0.05,
            label="More natural \u2194 closer to the photo (consistency scale eta)",
            info="Times the task's usual value; lower invents more.",
            elem_id="faithfulness",
        )
        steps = gr.Slider(
            1, MAX_STEPS, PRESETS["quick"].steps, step=1, label="Steps", elem_id="steps"
        )
        noise_sigma = gr.Number(
            label="Noise in the damaged photo (standard deviation; white is 1)",
            info="Left empty: what the photo shows, or what the chosen damage adds.",
            placeholder="estimated",
            minimum=0,
            maximum=1,
            step=0.005,
            elem_id="noise",
        )
        blur_std = gr.Number(
            label="Blur in the photo (standard deviation in pixels)",
            info="Estimated if left empty. A higher value sharpens; too high looks harsh.",
            placeholder="estimated",
            minimum=0,
            maximum=MAX_BLUR_STD,
            step=0.1,
            elem_id="blur",
        )
        prompt = gr.Textbox(
            label="What the photo shows (prompt)", max_length=MAX_PROMPT, elem_id="prompt"
        )
        describe = gr.Button("Describe the photo", size="sm", elem_id="describe")
        negative_prompt = gr.Textbox(
            label="What it does not show (negative prompt)", max_length=MAX_PROMPT
        )
        guidance_scale = gr.Slider(1, MAX_GUIDANCE, 1, step=0.5, label="Guidance scale (CFG)")
        samples = gr.Slider(
            1,
            MAX_VARIANTS,
            1,
            step=1,
            label="Variants",
            info="Each takes the next seed; with several, a tab shows where they differ.",
            elem_id="samples",
        )
        seed = gr.Number(label="Seed", value=0, minimum=0, precision=0, elem_id="seed")
        new_seed = gr.Button("New seed", size="sm", elem_id="new-seed")
        saved = gr.File(
            label="Settings of an earlier result: drop its PNG",
            file_types=[".png"],
            height=150,
            elem_id="saved",
        )
        prior = gr.Dropdown(
            models.priors(),
            value=models.default,
            label="Image model (prior)",
            filterable=False,
            elem_id="prior",
        )
        operator = gr.Dropdown(
            models.operators(models.default, next(iter(TASKS))),
            value=AUTOMATIC,
            label="Model of the damage (operator)",
            filterable=False,
            elem_id="operator",
        )
        offered = gr.Dropdown(
            [], label="Operators on the Hub", visible=False, filterable=False, elem_id="offered"
        )
        operator_id = gr.Textbox(
            label="Another operator from the Hub",
            placeholder="owner/name, or the link to its page",
            max_lines=1,
            elem_id="operator-id",
        )
        add_operator = gr.Button("Check and add", size="sm", elem_id="add-operator")
    advanced.expand(
        None,
        [noise_sigma, blur_std],
        [noise_sigma, blur_std],
        js=EMPTY_AT_FIRST,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    settings = Settings(
        *(task, photo, source, canvas, mask_file, preset, working_size, faithfulness, steps),
        *(noise_sigma, blur_std, prompt, negative_prompt, guidance_scale, samples, seed),
        *(prior, operator),
    )
    return settings, Tools(
        *(examples, example, find_out, painter, find_scratches, gr.State(), invert, describe),
        *(new_seed, saved, offered, operator_id, add_operator, gr.State()),
    )


def fitting_operators(models: Models, task: str, prior: str, operator: str) -> gr.Dropdown:
    """Return the operators for a task and a prior; the chosen one stays if it is among them."""
    choices = models.operators(prior, task)
    kept = operator if operator in (name for _, name in choices) else AUTOMATIC
    return gr.Dropdown(choices, value=kept)


def _example(name: str, cache: str) -> gr.Button:
    thumbnail = keep(example_photo(name, THUMBNAIL), cache, name)
    button = gr.Button(EXAMPLES[name], icon=thumbnail, size="sm")
    button.keep_in_cache.add(thumbnail)  # for as long as the page is served
    return button


def _painter(
    photo: gr.File,
) -> tuple[gr.Column, gr.ImageEditor, gr.Button, gr.UploadButton, gr.Button]:
    with gr.Column(visible=False, elem_id="painter") as painter:
        canvas = gr.ImageEditor(
            label="Paint the holes",
            type="pil",  # as a file, it would be written where another visitor may be reading
            format="png",
            sources=(),
            transforms=(),
            layers=False,
            brush=gr.Brush(colors=["#ffffff", "#000000"], color_mode="fixed"),
            buttons=[],
            elem_id="canvas",
        )
        # Clearing takes the photo away, too: it comes back.
        anew = functools.partial(blank_if_any, folder=canvas.GRADIO_CACHE)
        canvas.clear(anew, photo, canvas, show_progress="hidden", api_visibility="private")
        gr.HTML(brush.HTML, js_on_load=brush.SCRIPT, padding=False, elem_id=brush.ID)
        find_scratches = gr.Button("Find scratches", size="sm", elem_id="find-scratches")
        with gr.Row():
            mask_file = gr.UploadButton(
                "Load a mask (white is filled in)",
                file_types=list(SUFFIXES),
                size="sm",
                elem_id="mask-file",
            )
            invert = gr.Button("Invert", size="sm", elem_id="invert")
    return painter, canvas, find_scratches, mask_file, invert
