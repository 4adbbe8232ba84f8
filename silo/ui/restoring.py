"""Restore and Stop: from the fields to a request, from its steps to what the page shows."""

import html
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import spaces

from silo import images
from silo.caption import Captioner
from silo.devices import pick_device
from silo.errors import BadRequest
from silo.measured import LEAST_DRAFTED, Measured, take_measurement
from silo.request import MAX_SEED, PRESETS, RestorationRequest, comes_blurred
from silo.restorer import Finishing, Restorer, Result
from silo.ui.errors import errors_shown
from silo.ui.inputs import CLEAN, Settings
from silo.ui.mask_painter import at_most, check_canvas, painted_mask, view, wants_mask
from silo.ui.models import Models, check_simulated, own_degradation
from silo.ui.outputs import Outputs, cache_folder
from silo.ui.results import save_all, save_result
from silo.ui.running import Run, Runs
from silo.ui.timing import Timing, Work
from silo.ui.wording import Frame, paragraphs, preset_choices, stopped, summary

PICTURE_PERIOD = 0.7  # seconds between two clean estimates on the page, or
PICTURE_SHARE = 0.2  # of the time, where decoding them takes seconds, as large ones do
STOPPED_EARLY = "Stopped before it began."
STOP_PATIENCE = 5  # seconds for the step under way, after which the last estimate is shown
# Asked of ZeroGPU: for a step of Stable Diffusion, at a side in pixels, and for all beside steps.
GPU_STEP_SECONDS, GPU_STEP_SIDE, GPU_OTHER_SECONDS = 0.2, 512, 20
# And, at that side, to finish what was blurred: its convolutions are the CPU's work.
GPU_FINISHING_SECONDS, FINISHED_SLOWLY = 6, ("gaussian_blur", "motion_blur")


def gpu_seconds(
    request: RestorationRequest, measured: Measured, prior: str | None, operator: str | None
) -> int:
    """Return the seconds to ask of ZeroGPU; guidance and large pictures take more of them."""
    area = max(math.prod(measured.fit.working) / GPU_STEP_SIDE**2, 1)
    evaluations = request.effective_steps * request.samples * (1 + (request.guidance_scale > 1))
    seconds = GPU_OTHER_SECONDS + GPU_STEP_SECONDS * evaluations * area
    if request.effective_degradation.kind in FINISHED_SLOWLY:
        # The draft of a turned photo is made at the photo's own size.
        drafted = measured.fit.scale >= LEAST_DRAFTED
        own = math.prod(measured.fit.output) / GPU_STEP_SIDE**2 if drafted else 0
        seconds += GPU_FINISHING_SECONDS * request.samples * max(area, own)
    return round(seconds)


def planned(request: RestorationRequest, restorer: Restorer) -> tuple[Run, Measured]:
    """Return the run of a request, not begun, and what it restores from.

    Raises:
        SiloError, OperatorError: the request cannot be carried out.
    """
    if request.effective_sampler == "silo-fast" and restorer.reads_features(request.task):
        raise BadRequest(
            "This operator reads features of the image model, which the preset quick has no use "
            "for: choose balanced or paper."
        )
    parameters = restorer.parameters(request)
    measured = take_measurement(request, restorer.prior)  # before a GPU is asked for
    return Run(parameters, measured.output_size, request.effective_steps), measured


class Restoring:
    """The handlers of Restore and Stop.

    Attributes:
        frames: runs a request: yields a `Frame` after every step, then the `Result`.
        runs: what is being restored for whom.
    """

    def __init__(
        self,
        models: Models,
        captioner_factory: Callable[[], Captioner],
        settings: Settings,
        outputs: Outputs,
        timing: Timing,
        runs: Runs,
    ) -> None:
        """Restore with `models`; the captioner makes way for it where memory is short."""
        self.runs = runs
        self._timing = timing
        self._models, self._settings, self._outputs = models, settings, outputs

        @spaces.GPU(duration=gpu_seconds)
        def frames(
            request: RestorationRequest,
            measured: Measured,
            prior: str | None,
            operator: str | None,
        ) -> Iterator[Frame | Result]:
            captioner_factory().release_under_pressure()
            picture_due = 0.0
            with errors_shown():  # here, too: ZeroGPU has a process of its own
                restorer = models.restorer(prior, operator)
                restorer.prior.to(pick_device())  # which it waits for on ZeroGPU, see load_prior
                for event in restorer.restore(request, measured):
                    if isinstance(event, Result):
                        yield event
                        continue
                    if isinstance(event, Finishing):
                        total = request.effective_steps
                        yield Frame(total, total, 0.0, None, finishing=event)
                        continue
                    estimate = None
                    started = time.monotonic()
                    if started >= picture_due:
                        estimate = event.preview()
                        now = time.monotonic()
                        apart = (now - started) * (1 / PICTURE_SHARE - 1)
                        picture_due = now + max(PICTURE_PERIOD, apart)
                    yield Frame(event.step, event.total, event.seconds_left, estimate)

        self.frames = frames

    def restore(self, given: dict[Any, Any], visit: gr.Request) -> Iterator[dict[Any, Any]]:
        """Restore what the fields say; yields what to show."""
        outputs = self._outputs
        with errors_shown():
            chosen = given[self._settings.prior], given[self._settings.operator]
            restorer = self._models.restorer(*chosen)
            request = self._read(given, restorer)
            run, measured = planned(request, restorer)
        visitor, run.subject = visit.session_hash or "", self._settings.subject(given)
        with self.runs.begin(visitor, run):
            if not self.runs.show(visitor, given[outputs.clicks], run.subject):
                yield {outputs.status: paragraphs(STOPPED_EARLY)}
                return
            yield {
                **outputs.hidden(),
                outputs.picture: gr.Image(outputs.kept(view(run.before)), visible=True),
                outputs.status: paragraphs("Starting."),
            }
            sampled, finishing = 0.0, 0.0  # after how many seconds; since when
            try:
                with errors_shown():  # of keeping what came out
                    for event in self.frames(request, measured, *chosen):
                        if isinstance(event, Result):
                            finished = self._finished(event, request)
                            finished[outputs.status] += self._of_which(visitor, run)
                            yield finished
                            work = self._work(given, request.effective_sampler)
                            steps = request.effective_steps * request.samples
                            self._timing.note(work, restorer.prior.native_size, sampled / steps)
                            since = time.monotonic() - finishing
                            self._timing.note_finishing(work, since / request.samples)
                            yield {self._settings.preset: self.presets(given)}
                            continue
                        if event.finishing is not None and event.finishing.sample == 1:
                            sampled, finishing = event.finishing.seconds, time.monotonic()
                        run.note(event)
                        if run.stopping.is_set():
                            run.kept = self._keep(run)
                            yield self._stopped(visitor, run, run.kept)
                            return
                        shown: dict[Any, Any] = {outputs.status: event.to_html()}
                        if event.picture is not None:
                            shown[outputs.picture] = outputs.kept(at_most(event.picture))
                        yield shown
            except gr.Error as error:  # its own message goes away: the step count must, too
                yield {outputs.status: paragraphs(html.unescape(error.message))}
                raise

    def stop(self, click: int, visit: gr.Request) -> dict[Any, Any]:
        """End the visitor's run after its step, and show what it reached.

        Of a step that takes long the end is not waited for: what came before it is shown. The page
        takes a run that still waits for its turn out of the queue, but only after this.
        """
        outputs = self._outputs
        visitor = visit.session_hash or ""
        run = self.runs.of(visitor)
        if run is None:
            early = self.runs.stop_early(visitor, click)
            return {outputs.status: paragraphs(STOPPED_EARLY) if early else gr.skip()}
        run.stopping.set()
        if not run.ended.wait(STOP_PATIENCE) and run.estimate is None:
            return {outputs.status: paragraphs("Stopped before its first step ended.")}
        if run.ended.is_set() and run.kept is None:  # it came to its own end, which the page shows
            return {outputs.status: gr.skip()}
        with errors_shown():
            return self._stopped(visitor, run, run.kept or self._keep(run))

    def leave(self, visit: gr.Request) -> None:
        """End the run of a visitor who is gone, after its step."""
        self.runs.leave(visit.session_hash or "")

    def presets(self, given: dict[Any, Any]) -> gr.Radio:
        """Return the presets with what is known of the time they take here."""
        fields = self._settings
        steps = {name: preset.steps for name, preset in PRESETS.items()}
        steps[given[fields.preset]] = given[fields.steps]
        seconds, chosen = {}, self._work(given, PRESETS[given[fields.preset]].sampler)
        for name, preset in PRESETS.items():
            work = replace(chosen, sampler=preset.sampler)
            step = self._timing.seconds(work)
            if step is not None:
                one = step * steps[name] + self._timing.finishing(work)
                seconds[name] = one * given[fields.samples]
        return gr.Radio(preset_choices(steps, seconds))

    def _work(self, given: dict[Any, Any], sampler: str) -> Work:
        fields = self._settings
        guided = given[fields.guidance_scale] > 1
        return Work(
            given[fields.prior],
            sampler,
            guided,
            given[fields.task],
            fields.restored_pixels(given),
            fields.chosen_size(given),
        )

    def _read(self, given: dict[Any, Any], restorer: Restorer) -> RestorationRequest:
        fields = self._settings
        photo = fields.photo_file(given)
        if given[fields.seed] is None:
            raise BadRequest(f"Fill in the seed: a whole number from 0 to {MAX_SEED:,}.")
        self._models.check(given[fields.task], given[fields.prior], given[fields.operator])
        task = self._models.task(given[fields.task], given[fields.prior], given[fields.operator])
        simulate = given[fields.source] == CLEAN
        if simulate:
            check_simulated(task)
        image = images.load_image(photo).pixels
        mask = None
        if wants_mask(task, simulate):
            check_canvas(given[fields.canvas], image)
            size = image.shape[-2], image.shape[-1]
            mask = painted_mask(given[fields.canvas], size, given[fields.mask_file])
        request = RestorationRequest(
            task=task.name,
            image=image,
            simulate=simulate,
            degradation=own_degradation(task),
            mask=mask,
            prompt=given[fields.prompt] or "",  # None until its panel was opened
            negative_prompt=given[fields.negative_prompt] or "",
            guidance_scale=given[fields.guidance_scale],
            preset=given[fields.preset],
            working_size=fields.chosen_size(given),
            steps=given[fields.steps],
            noise_sigma=given[fields.noise_sigma],
            blur_std=given[fields.blur_std] if comes_blurred(task.degradation, simulate) else None,
            samples=given[fields.samples],
            seed=given[fields.seed],
        )
        eta = restorer.parameters(request)["eta"]
        return replace(request, eta=given[fields.faithfulness] * eta)

    def _of_which(self, visitor: str, run: Run) -> str:
        """Tell a result, as HTML, from what was chosen since."""
        if self.runs.shows(visitor, run.subject):
            return ""
        photo, task, *_ = run.subject
        what = f"{Path(photo).name}, {task.replace('_', ' ')}"
        return paragraphs(f"This is {what}, chosen when Restore was clicked.")

    def _finished(self, result: Result, request: RestorationRequest) -> dict[Any, Any]:
        cache = cache_folder(self._outputs.picture)
        return {
            **self._outputs.shown(*save_result(result, cache)),
            self._outputs.status: summary(result, request),
        }

    def _keep(self, run: Run) -> list[str]:
        assert run.estimate is not None, "a run decodes its first estimate"
        step, picture = run.estimate
        parameters = {**run.parameters, "stopped_after": step}
        cache = cache_folder(self._outputs.picture)
        return save_all(run.before, images.from_pil(picture), parameters, cache)

    def _stopped(self, visitor: str, run: Run, paths: list[str]) -> dict[Any, Any]:
        assert run.estimate is not None, "a run decodes its first estimate"
        sentence = stopped(run.step, run.total, run.estimate[0])
        told = sentence + self._of_which(visitor, run)
        return {**self._outputs.shown(paths, None), self._outputs.status: told}
