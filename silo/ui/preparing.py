"""What happens before Restore: a photo, an example, a mask or earlier settings are taken in."""

import functools
import html
from pathlib import Path
from typing import Any

import gradio as gr

from operators.catalog import TASKS, Task
from operators.errors import OperatorError
from silo import images
from silo.decoding import read_header
from silo.errors import BadRequest, SiloError, Unrestorable
from silo.measured import Measured, take_measurement
from silo.photo.diagnosis import diagnose
from silo.prior import WINDOW_RATIO
from silo.request import PRESETS, RestorationRequest, comes_blurred
from silo.ui import mask_painter
from silo.ui.adding import Adding
from silo.ui.cache import KEPT_HOURS, keep
from silo.ui.errors import errors_shown, sentence
from silo.ui.examples import example_photo
from silo.ui.fetching import shown_by
from silo.ui.inputs import CLEAN, DEGRADED, SIZES, USUAL_SIZE, Settings, Tools
from silo.ui.mask_painter import view, view_file, wants_mask
from silo.ui.models import AUTOMATIC, Models, check_simulated, own_degradation
from silo.ui.outputs import Outputs
from silo.ui.running import Runs
from silo.ui.saved_settings import SavedSettings, read_settings
from silo.ui.wording import paragraphs, task_choices

PROGRESS = gr.Progress()  # gradio puts one of its own in its place
ENLARGING = "super_resolution"
MAX_DIAGNOSED = 100  # photos whose damage is remembered
LOOKS = "It looks more like another choice: {}."
SHOW_ME = "To see what a restoration can do, choose to damage it first."
NOTHING_FOUND = (
    "No damage was found. If there is some, choose it yourself, as holes and scratches have to be."
)


class Preparing:
    """The handlers of everything but Restore and Stop."""

    def __init__(
        self,
        models: Models,
        settings: Settings,
        tools: Tools,
        outputs: Outputs,
        runs: Runs,
    ) -> None:
        """Measure with the priors and operators of `models`."""
        self._models, self._adding, self._settings = models, Adding(), settings
        self._tools, self._outputs, self._runs = tools, outputs, runs

    def show(self, given: dict[Any, Any], visit: gr.Request) -> dict[Any, Any]:
        """Show what is to be restored: the photo, or what the chosen damage makes of it.

        Where that is being restored or has been already, the result stays.
        """
        fields, outputs = self._settings, self._outputs
        simulate, masked, blurred = given[fields.source] == CLEAN, False, False
        size = fields.chosen_size(given)
        shown, notices = None, []
        try:
            task = self._task(given)
            masked = wants_mask(task, simulate)
            blurred = comes_blurred(task.degradation, simulate)
            if given[fields.photo] is not None:
                shown, notices = view_file(given[fields.photo])
                if not masked:  # measured as it is shown: large photos take long
                    if simulate:
                        check_simulated(task)
                    # What is simulated is as strong at the size that it is worked on at.
                    finer = simulate and (size or 0) > max(shown.size)
                    path, own = given[fields.photo], own_degradation(task)
                    picture = images.load_image(path).pixels if finer else images.from_pil(shown)
                    request = RestorationRequest(
                        task.name,
                        picture,
                        simulate=simulate,
                        degradation=own,
                        working_size=size,
                    )
                    prior = self._models.restorer(given[fields.prior]).prior
                    measured = take_measurement(request, prior)
                    if simulate:
                        shown = view(measured.output_size)
                    elif max(shown.size) == max(read_header(given[fields.photo]).size):
                        # Of a photo that is shown smaller, blur, noise and blocks are not seen.
                        notices += measured.findings()
                        notices += self._doubts(measured, task, given)
        except (SiloError, OperatorError) as error:
            notices = [sentence(error)]
        is_large = (fields.restored_pixels(given) or 0) > SIZES[0] ** 2
        tools = {
            self._tools.painter: gr.update(visible=masked and shown is not None),
            fields.blur_std: gr.update(visible=blurred),
            fields.working_size: gr.update(visible=is_large),
        }
        picture = None if shown is None else outputs.kept(shown)
        # Last of all: what begins from here on is not known here.
        if self._runs.stays(visit.session_hash or "", fields.subject(given), given[outputs.clicks]):
            return tools
        return {
            **outputs.hidden(),
            **tools,
            outputs.picture: gr.Image(picture, visible=True),
            outputs.status: paragraphs(*notices),
        }

    def find_out(self, given: dict[Any, Any]) -> dict[Any, Any]:
        """Choose the damage that a photo shows."""
        fields = self._settings
        with errors_shown():
            task = _diagnosed(fields.photo_file(given))
            if task is None:
                raise Unrestorable(NOTHING_FOUND)
            if task not in self._models.tasks(given[fields.prior]):
                raise Unrestorable(
                    f"It shows {task.replace('_', ' ')}, for which this image model has no "
                    "operator: add one, or choose another image model, under Advanced."
                )
        gr.Info(f"Chosen by what it shows: {TASKS[task].title}.")
        chosen = {fields.task: task, fields.source: DEGRADED}
        given = {**given, **chosen, self._tools.strength_given: None}
        return {**chosen, **self.leave_strength(given)}

    def leave_strength(self, given: dict[Any, Any]) -> dict[Any, Any]:
        """Leave noise and blur to be estimated, of a clean photo to the damage that is chosen.

        Unless settings used again gave them for this damage: their photo comes after them.
        """
        fields, strength_given = self._settings, self._tools.strength_given
        kept = given[strength_given] == (given[fields.task], given[fields.source])
        left = gr.skip() if kept else None
        return {fields.noise_sigma: left, fields.blur_std: left, strength_given: None}

    def blank_canvas(self, given: dict[Any, Any]) -> dict[str, Any] | None:
        """The photo to paint on; none where there is no hole to mark or, as `show` tells, photo."""
        fields = self._settings
        path, simulate = given[fields.photo], given[fields.source] == CLEAN
        try:
            if path is None or not wants_mask(self._task(given), simulate):
                return None
            return mask_painter.blank(path, fields.canvas.GRADIO_CACHE)
        except (SiloError, OperatorError):
            return None

    def find_scratches(self, given: dict[Any, Any]) -> str:
        """Find the scratches that the photo shows, which takes seconds; then comes `paint_found`.

        It does without the canvas: what is painted meanwhile is kept.
        """
        fields = self._settings
        with errors_shown():
            photo = fields.photo_file(given)
            return mask_painter.look_for_scratches(photo, fields.canvas.GRADIO_CACHE)

    def paint_found(self, given: dict[Any, Any]) -> dict[str, Any]:
        """Paint the scratches that were found, beside what is painted by now."""
        fields, canvas, found = self._settings, self._settings.canvas, self._tools.scratches
        with errors_shown():
            photo, folder = fields.photo_file(given), canvas.GRADIO_CACHE
            painted = mask_painter.add_mask_file(given[canvas], given[found], photo, folder)
        gr.Info("Check what is painted: paint what is missing, and black over what is whole.")
        return painted

    def load_mask(self, given: dict[Any, Any]) -> dict[str, Any]:
        """Paint a mask file."""
        fields, folder = self._settings, self._settings.canvas.GRADIO_CACHE
        with errors_shown():
            photo = fields.photo_file(given)
            return mask_painter.paint_mask_file(given[fields.mask_file], photo, folder)

    def invert_mask(self, given: dict[Any, Any]) -> dict[str, Any]:
        """Paint what is free, and free what is painted."""
        fields, canvas = self._settings, self._settings.canvas
        with errors_shown():
            photo = fields.photo_file(given)
            return mask_painter.invert(given[canvas], photo, canvas.GRADIO_CACHE)

    def choose_example(self, given: dict[Any, Any]) -> dict[Any, Any]:
        """Take an example: the file, and that it is clean."""
        fields, name = self._settings, given[self._tools.example].split(" ")[0]
        with errors_shown():
            prior = self._models.restorer(given[fields.prior]).prior
            example = example_photo(name, prior.native_size)
        path = keep(example, fields.photo.GRADIO_CACHE, name)
        chosen = {fields.photo: path, fields.source: CLEAN}
        return {**chosen, **self.leave_strength({**given, **chosen})}

    def go_on(self, given: dict[Any, Any]) -> dict[Any, Any]:
        """Take the result that is shown for the photo: something else may be wrong with it."""
        fields, path = self._settings, given[self._outputs.download]
        with errors_shown():
            if path is None or not Path(path).is_file():
                raise BadRequest(f"Results are kept for {KEPT_HOURS} hours only: restore it again.")
        chosen = {fields.photo: path, fields.source: DEGRADED}
        gr.Info("The result is the photo now. Say what else is wrong with it.")
        given = {**given, **chosen, self._tools.strength_given: None}
        return {**chosen, **self.leave_strength(given)}

    def reuse(self, path: str) -> dict[Any, Any]:
        """Fill the fields in with the settings that an earlier result carries."""
        fields = self._settings
        with errors_shown():
            saved = read_settings(path)
            request = saved.request
            preset = _preset_of(request)
            usual = RestorationRequest(
                request.task,
                request.image,
                simulate=True,
                degradation=request.degradation,
                preset=preset,
                steps=request.effective_steps,
            )
            prior, operator, missing = self._weights(saved, usual)
            restorer = self._models.restorer(prior, operator)
            here = restorer.parameters(usual)
        assert request.eta is not None, "read_settings asks for it"
        # Before version 0.15 none was recorded: one window of the prior's.
        wanted = request.working_size or WINDOW_RATIO * restorer.prior.native_size
        nearest = min(SIZES, key=lambda offered: abs(offered - wanted))
        size = USUAL_SIZE if wanted == here["working_size"] else nearest
        values = {
            fields.source: CLEAN if saved.simulate else DEGRADED,
            fields.preset: preset,
            fields.faithfulness: round(request.eta / here["eta"], 6),
            fields.steps: request.effective_steps,
            fields.working_size: size,
            fields.noise_sigma: request.noise_sigma,
            fields.blur_std: saved.blur_std,
            fields.prompt: request.prompt,
            fields.negative_prompt: request.negative_prompt,
            fields.guidance_scale: request.guidance_scale,
            fields.samples: request.samples,
            fields.seed: request.seed,
        }
        for field, value in values.items():
            if isinstance(field, gr.Slider) and not field.minimum <= value <= field.maximum:
                raise gr.Error(
                    f"{field.label}: {value:g} is beyond what the page offers.",
                    print_exception=False,
                )
        gr.Info(
            "The settings are filled in. A PNG holds neither the photo it was made from nor the "
            "mask: add them yourself."
        )
        if missing:
            names = html.escape(" and ".join(missing))
            gr.Warning(f"Missing: {names}. The usual one is used; the picture will differ.")
        not_offered = list(saved.not_offered)
        if wanted not in (here["working_size"], *SIZES):
            not_offered.append(f"a working size of {wanted} pixels")
        if saved.dtype not in (None, here["dtype"]):
            not_offered.append(f"{saved.dtype} numbers")
        if not_offered:
            names = " and ".join(not_offered)
            gr.Warning(f"The page does not offer {names}; the picture may differ.")
        tasks = task_choices(self._models.tasks(prior))
        return {
            **values,
            fields.task: gr.Dropdown(tasks, value=request.task),
            fields.prior: gr.Dropdown(self._models.priors(), value=prior),
            fields.operator: gr.Dropdown(self._models.operators(), value=operator),
            self._tools.strength_given: (request.task, values[fields.source]),
        }

    def _weights(
        self, saved: SavedSettings, request: RestorationRequest
    ) -> tuple[str, str, list[str]]:
        """Return the prior and operator to choose, and those of the result that are not here."""
        missing = []
        prior = self._models.same_prior(saved.prior)
        if prior is None:
            missing.append(f"the prior {saved.prior}")
            prior = self._models.default
        operator = self._models.same_operator(saved.operator, prior, request)
        if operator is None:
            missing.append(f"the operator {saved.operator}")
            self._models.check(request.task, prior, AUTOMATIC)
        return prior, operator or AUTOMATIC, missing

    def choose_prior(
        self, given: dict[Any, Any], progress: gr.Progress = PROGRESS
    ) -> dict[Any, Any]:
        """Load a prior, fetched first where it is not here, and offer the tasks it has."""
        fields = self._settings
        with errors_shown():
            with shown_by(progress):
                self._models.restorer(given[fields.prior])
        choices = task_choices(self._models.tasks(given[fields.prior]))
        task = given[fields.task]
        if not choices or task in (name for _, name in choices):
            return {fields.task: gr.Dropdown(choices)}
        gr.Info("There is no operator for that damage here: another damage is chosen.")
        return {fields.task: gr.Dropdown(choices, value=choices[0][1])}

    def choose_operator(self, given: dict[Any, Any]) -> dict[Any, Any]:
        """Choose the task of an operator, and an effort that its kind takes."""
        fields = self._settings
        operator = self._models.added(given[fields.operator])
        if operator is None:
            return {fields.task: gr.skip()}
        suited: dict[Any, Any] = {fields.task: operator.task}
        if operator.reads_features:
            suited |= {fields.preset: "balanced", fields.steps: PRESETS["balanced"].steps}
        return suited

    def add_operator(
        self, given: dict[Any, Any], progress: gr.Progress = PROGRESS
    ) -> dict[Any, Any]:
        """Fetch and check an operator of the Hub, and choose it; then comes `choose_operator`."""
        fields = self._settings
        with errors_shown():
            with shown_by(progress):
                added = self._adding.add(given[self._tools.operator_id])
        tasks = task_choices(self._models.tasks(given[fields.prior]) | {added.task})
        return {
            fields.operator: gr.Dropdown(self._models.operators(), value=added.name),
            fields.prior: gr.Dropdown(self._models.priors()),
            fields.task: gr.Dropdown(tasks),
            self._tools.operator_id: "",
        }

    def offered(self) -> gr.Dropdown:
        """List the operators of the page's collection on the Hub."""
        try:
            choices = self._models.offered()
        except OperatorError as error:
            return gr.Dropdown([], visible=True, info=f"The list cannot be read: {error}.")
        return gr.Dropdown(
            choices, value=None, visible=bool(choices), info="Fetched and checked when chosen."
        )

    def listed(self) -> dict[Any, Any]:
        """List the priors and operators that are here by now."""
        fields = self._settings
        return {
            fields.operator: gr.Dropdown(self._models.operators(), value=AUTOMATIC),
            fields.prior: gr.Dropdown(self._models.priors()),
            fields.task: gr.Dropdown(task_choices(self._models.tasks())),
        }

    def _doubts(self, measured: Measured, task: Task, given: dict[Any, Any]) -> list[str]:
        """Return what speaks against a photo's having been damaged so, and what to choose."""
        fields, doubts = self._settings, measured.doubts()
        found = _diagnosed(given[fields.photo]) if task.name in TASKS else None
        kind = None if found is None else TASKS[found].degradation.kind
        # What is small may be damaged in any way, too.
        is_other = kind != task.degradation.kind and (doubts or kind != ENLARGING)
        if found is not None and is_other and found in self._models.tasks(given[fields.prior]):
            return [*doubts, LOOKS.format(TASKS[found].title)]
        return [*doubts, SHOW_ME] if doubts else []

    def _task(self, given: dict[Any, Any]) -> Task:
        fields = self._settings
        return self._models.task(given[fields.task], given[fields.prior], given[fields.operator])


def _diagnosed(path: str) -> str | None:
    """Return what `diagnose` finds in a photo file, which is looked at once.

    Raises:
        BadImage: it cannot be read.
    """
    return _diagnosed_as(path, Path(path).stat().st_mtime_ns)


@functools.lru_cache(maxsize=MAX_DIAGNOSED)
def _diagnosed_as(path: str, _written: int) -> str | None:
    return diagnose(images.load_image(path).pixels)


def _preset_of(request: RestorationRequest) -> str:
    """Return the preset with the request's sampler, of several the one with the nearest steps."""
    sampler, steps = request.effective_sampler, request.effective_steps
    fitting = {name: abs(p.steps - steps) for name, p in PRESETS.items() if p.sampler == sampler}
    return min(fitting, key=lambda name: fitting[name])
