"""The one endpoint for programs: gradio_client's `/restore`, and a tool of the MCP server."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from operators.catalog import FREE_FORM, shelf
from silo import images, masks
from silo.decoding import SUFFIXES
from silo.errors import BadRequest
from silo.photo.diagnosis import require_task
from silo.request import PRESETS, RestorationRequest
from silo.restorer import Result
from silo.scratches.detector import describe, find_scratches
from silo.ui.errors import errors_shown
from silo.ui.models import AUTOMATIC, Choice, Models, check_simulated, own_degradation
from silo.ui.outputs import cache_folder
from silo.ui.restoring import Restoring, planned
from silo.ui.results import new_folder, save_samples

Answer = tuple[list[str], dict[str, Any]]


def add(restoring: Restoring, models: Models) -> None:
    """Add the endpoint, with what `models` offers, to the open block; visitors do not see it."""
    with gr.Column(visible=False):
        photo = gr.File(label="photo", file_types=list(SUFFIXES))
        mask = gr.File(label="mask", file_types=list(SUFFIXES))
        inputs = [
            photo,
            gr.Dropdown(
                ["", *sorted({entry.task for entry in shelf()})],
                value="",
                label="task",
                allow_custom_value=True,
            ),
            gr.Checkbox(False, label="simulate"),
            mask,
            gr.Radio(list(PRESETS), value="quick", label="preset"),
            gr.Number(None, label="steps", precision=0),
            gr.Number(None, label="eta"),
            gr.Number(None, label="noise_sigma"),
            gr.Textbox("", label="prompt"),
            gr.Textbox("", label="negative_prompt"),
            gr.Number(1, label="guidance_scale"),
            gr.Number(1, label="samples", precision=0),
            gr.Number(0, label="seed", precision=0),
            gr.Checkbox(True, label="keep_known"),
            gr.Textbox(models.default, label="prior"),
            gr.Textbox(AUTOMATIC, label="operator"),
            gr.Number(None, label="blur_std"),
            gr.Number(None, label="working_size", precision=0),
        ]
        outputs = [gr.File(label="results", file_count="multiple"), gr.JSON(label="parameters")]
        gr.Button().click(
            _endpoint(restoring, models, photo),
            inputs,
            outputs,
            api_name="restore",
            concurrency_limit=1,
            concurrency_id="restore",
        )


def _endpoint(restoring: Restoring, models: Models, component: gr.File) -> Callable[..., Answer]:
    # MCP takes one line on each parameter from the docstring.
    def restore(
        visit: gr.Request,
        photo: str | None,
        task: str = "",
        simulate: bool = False,
        mask: str | None = None,
        preset: str = "quick",
        steps: int | None = None,
        eta: float | None = None,
        noise_sigma: float | None = None,
        prompt: str = "",
        negative_prompt: str = "",
        guidance_scale: float = 1.0,
        samples: int = 1,
        seed: int = 0,
        keep_known: bool = True,
        prior: str = models.default,
        operator: str = AUTOMATIC,
        blur_std: float | None = None,
        working_size: int | None = None,
    ) -> Answer:
        """Restore a degraded photo. Faces that come out are plausible, not evidence of identity.

        Args:
            visit: whose request it is; gradio fills it in.
            photo: picture of at most 200 MB; over MCP, a public link to it or a data: URI.
            task: such as gaussian_blur, or one's own with its operator; empty: what is found.
            simulate: the photo is clean: degrade it first, then restore it.
            mask: a picture of the photo's size, white where to fill in; inpainting_free finds it.
            preset: quick (silo-fast, 16 steps), balanced (silo, 100) or paper (silo, 1000).
            steps: denoising steps, 1 to 1000, in place of the preset's.
            eta: consistency scale, for 1,000 steps; higher keeps closer to the photo.
            noise_sigma: standard deviation of the photo's noise, where white is 1.
            prompt: what the photo shows.
            negative_prompt: what it does not show; needs a guidance scale above 1.
            guidance_scale: of the prompt, from 1, which is none.
            samples: how many restorations, each with the next seed.
            seed: one seed, one picture.
            keep_known: keep what is measured: pixels outside holes, and what other damage left.
            prior: one that the page lists by this name, such as tiny.
            operator: one that the page lists, such as owner/name@commit; empty for the task's own.
            blur_std: standard deviation of a blurry photo's blur in pixels; estimated without.
            working_size: pictures of more pixels than its square are scaled down; 256 to 4096.

        Returns:
            The restored pictures as PNG files, then all that is needed to make them again.
            There, `notices` are sentences on what was not taken as it is.
        """
        with errors_shown():
            if photo is None:
                raise BadRequest("photo is missing: send a picture file.")
            _check_offered("prior", prior, models.priors())
            _check_offered("operator", operator, models.operators())
            loaded = images.load_image(photo)
            if not task:
                if simulate or mask or operator or blur_std is not None:
                    raise BadRequest(
                        "task is missing: simulate, mask, operator and blur_std are for damage "
                        "that is named."
                    )
                task = require_task(loaded.pixels)
            models.check(task, prior, operator)
            restorer = models.restorer(prior, operator)  # before a GPU is asked for
            described = models.task(task, prior, operator)
            if simulate:
                check_simulated(described)
            notices = loaded.notices
            holes = None if mask is None else masks.load_mask(mask)
            if holes is None and task == FREE_FORM and not simulate:
                holes = find_scratches(loaded.pixels)
                notices = [*notices, describe(holes)]
            request = RestorationRequest(
                task=task,
                image=loaded.pixels,
                simulate=simulate,
                degradation=own_degradation(described),
                mask=holes,
                prompt=prompt,
                negative_prompt=negative_prompt,
                guidance_scale=guidance_scale,
                preset=preset,
                steps=steps,
                eta=eta,
                noise_sigma=noise_sigma,
                blur_std=blur_std,
                samples=samples,
                seed=seed,
                keep_known=keep_known,
                working_size=working_size,
            )
            run, measured = planned(request, restorer)
        with errors_shown(), restoring.runs.begin(visit.session_hash or "", run):
            for event in restoring.frames(request, measured, prior, operator):
                if isinstance(event, Result):
                    folder = new_folder(cache_folder(component))
                    files = save_samples(event.image_by_image(), event.parameters, folder)
                    return files, {**event.parameters, "notices": [*notices, *event.notices]}
                if run.stopping.is_set():
                    raise gr.Error("It was stopped: its client left.", print_exception=False)
        raise gr.Error("The restoration ended without a result.")

    return restore


def _check_offered(what: str, name: str, choices: list[Choice]) -> None:
    """Refuse what the page would not let anybody choose, such as a folder of this machine."""
    names = [offered for _, offered in choices if offered]
    if name not in ("", *names):
        raise BadRequest(f"{what} is none of those here: {', '.join(names) or 'leave it empty'}.")
