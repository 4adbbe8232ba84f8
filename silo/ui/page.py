"""The whole page: its columns, and which handler each event calls."""

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gradio as gr
from gradio.events import Dependency

from silo.caption import Captioner
from silo.request import PRESETS
from silo.ui import api, describing, inputs, outputs
from silo.ui.cache import KEPT_HOURS
from silo.ui.examples import EXAMPLES
from silo.ui.models import Models
from silo.ui.preparing import Preparing
from silo.ui.restoring import Restoring
from silo.ui.running import Runs
from silo.ui.timing import Timing

HOUR = 3600  # seconds
SEEDS = 2**31
INTRODUCTION = """
# Restore a photo with SILO
Small, blurred, noisy, compressed or damaged photos, restored by a latent diffusion model that is
guided by a learned model of the damage.
"""
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# What is done at once, even where the queue of restorations is full.
AT_ONCE: dict[str, Any] = {**QUIET, "queue": False}
# Of events that come while one is answered, the last is answered, too: fields hold other values by
# then. No event may have two such handlers, what else it needs comes `then`: to answer for one, the
# page (gradio 6.31) begins with all of them again, and where each waits for another, for ever.
LAST: dict[str, Any] = {"trigger_mode": "always_last"}


def build(models: Models, captioner_factory: Callable[[], Captioner], timing: Timing) -> gr.Blocks:
    """Lay out and wire the page; models are loaded when something needs them."""
    with gr.Blocks(
        title="Restore a photo with SILO",
        analytics_enabled=False,
        delete_cache=(HOUR, KEPT_HOURS * HOUR),
    ) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=320, elem_id="inputs"):
                settings, tools = inputs.lay_out(models)
            with gr.Column(scale=3, min_width=320):
                shown = outputs.lay_out()
        runs = Runs()
        preparing = Preparing(models, settings, tools, shown, runs)
        restoring = Restoring(models, captioner_factory, settings, shown, timing, runs)
        listed = page.load(
            preparing.listed, None, [settings.operator, settings.prior, settings.task], **QUIET
        )
        if models.collection is not None:
            page.load(preparing.offered, None, tools.offered, **QUIET)
        described = describing.wire(tools.describe, settings, captioner_factory)
        _wire_slow(preparing, settings, tools, described)  # ahead of others: see there
        changed = _wire_photo(preparing, settings, tools, shown)
        _wire_mask(preparing, settings, tools)
        _wire_settings(preparing, settings, tools)
        _wire_models(preparing, settings)
        _wire_choices(
            [listed.then, changed.then, settings.prior.change], restoring, settings, models
        )
        _wire_restoration(restoring, settings, shown)
        api.add(restoring, models)
        page.unload(restoring.leave)
    return page


def _wire_slow(
    preparing: Preparing, fields: inputs.Settings, tools: inputs.Tools, described: Dependency
) -> None:
    """Wire answers that are dropped where what they set is chosen before they come.

    To be called before other handlers of such choices are wired: the page (gradio 6.31) begins with
    the next handler of an event when the one before has been answered, which may take as long.
    """
    damage = set(fields.of_damage())

    def drop(answers: list[Any], chosen: Sequence[Any]) -> None:
        choices = [*chosen, tools.saved.upload]
        gr.on(choices, None, None, None, cancels=answers, trigger_mode="multiple", **AT_ONCE)

    found = tools.find_out.click(
        preparing.find_out,
        damage,
        [fields.task, *_of_photo(fields, tools)],
        show_progress_on=fields.task,
        api_visibility="private",
    )
    drop([found], [fields.photo.change, fields.task.input, fields.source.input])
    sought = tools.find_scratches.click(
        preparing.find_scratches,
        {fields.photo},
        tools.scratches,
        show_progress_on=tools.find_scratches,
        api_visibility="private",
    )
    painted = sought.success(
        preparing.paint_found,
        {fields.canvas, fields.photo, tools.scratches},
        fields.canvas,
        **QUIET,
    )
    drop([sought, painted], [fields.photo.change, fields.mask_file.upload, tools.invert.click])
    drop([described], [fields.photo.change, fields.prompt.input])
    named = tools.offered.input(lambda name: name, tools.offered, tools.operator_id, **AT_ONCE)
    for event in (tools.add_operator.click, tools.operator_id.submit, named.then):
        added = event(
            preparing.add_operator,
            {fields.prior, tools.operator_id},
            [fields.operator, fields.prior, fields.task, tools.operator_id],
            show_progress_on=tools.operator_id,
            api_visibility="private",
        )
        drop([added], [fields.task.input, fields.prior.input, fields.operator.input])
        # With the photo that is there by now: the download may have taken minutes.
        added.success(preparing.choose_operator, damage, fields.of_operator(), **QUIET)


def _of_photo(fields: inputs.Settings, tools: inputs.Tools) -> list[Any]:
    """Return what is set with a photo, or with what is wrong with it."""
    return [fields.source, fields.noise_sigma, fields.blur_std, tools.strength_given]


def _wire_photo(
    preparing: Preparing, fields: inputs.Settings, tools: inputs.Tools, shown: outputs.Outputs
) -> Dependency:
    """Wire what is restored; return the event of another photo or damage."""
    damage = set(fields.of_damage())
    taken = [fields.photo, *_of_photo(fields, tools)]
    # The buttons write their name and a count of clicks: of several clicked, the last is answered.
    for name, button in zip(EXAMPLES, tools.examples, strict=True):
        click = f"(last) => '{name} ' + (Number(last.split(' ')[1] ?? 0) + 1)"
        button.click(None, tools.example, tools.example, js=click, **AT_ONCE)
    tools.example.change(
        preparing.choose_example,
        {*damage, tools.strength_given, tools.example},
        taken,
        **LAST,
        **QUIET,
    )
    shown.further.click(preparing.go_on, {*damage, shown.download}, taken, **LAST, **QUIET)
    to_show = (
        preparing.show,
        {*damage, fields.working_size, shown.clicks},
        [*shown.of_result(), tools.painter, fields.blur_std, fields.working_size],
    )
    changed = gr.on(
        [fields.photo.change, fields.task.change, fields.source.change, fields.operator.input],
        *to_show,
        **LAST,
        **QUIET,
    )
    fields.working_size.input(*to_show, **LAST, **QUIET)
    # It draws when visible.
    changed.then(preparing.blank_canvas, damage, fields.canvas, **LAST, **QUIET)
    # `input`, not `change`: only a person's choice may overwrite what stands in these fields.
    gr.on(
        [fields.photo.upload, fields.task.input, fields.source.input],
        preparing.leave_strength,
        {*damage, tools.strength_given},
        [fields.noise_sigma, fields.blur_std, tools.strength_given],
        **LAST,
        **QUIET,
    )
    return changed


def _wire_mask(preparing: Preparing, fields: inputs.Settings, tools: inputs.Tools) -> None:
    fields.mask_file.upload(
        preparing.load_mask, {fields.mask_file, fields.photo}, fields.canvas, **QUIET
    )
    tools.invert.click(preparing.invert_mask, {fields.canvas, fields.photo}, fields.canvas, **QUIET)


def _wire_settings(preparing: Preparing, fields: inputs.Settings, tools: inputs.Tools) -> None:
    steps = json.dumps({name: preset.steps for name, preset in PRESETS.items()})
    fields.preset.input(
        None, fields.preset, fields.steps, js=f"(name) => ({steps})[name]", **AT_ONCE
    )
    draw = f"() => Math.floor(Math.random() * {SEEDS})"
    tools.new_seed.click(None, None, fields.seed, js=draw, **AT_ONCE)
    tools.saved.upload(
        preparing.reuse,
        tools.saved,
        [
            *(fields.task, fields.source, fields.preset, fields.faithfulness, fields.steps),
            *(fields.working_size, fields.noise_sigma, fields.blur_std, fields.prompt),
            *(fields.negative_prompt, fields.guidance_scale, fields.samples, fields.seed),
            *(fields.prior, fields.operator, tools.strength_given),
        ],
        show_progress_on=tools.saved,  # the prior may have to be loaded
        api_visibility="private",
    )


def _wire_models(preparing: Preparing, fields: inputs.Settings) -> None:
    damage = set(fields.of_damage())
    fields.prior.input(
        preparing.choose_prior,
        damage,
        fields.task,
        show_progress_on=fields.prior,
        api_visibility="private",
        concurrency_limit=1,
    )
    fields.operator.input(preparing.choose_operator, damage, fields.of_operator(), **QUIET)


def _wire_choices(
    events: Iterable[Callable[..., Dependency]],
    restoring: Restoring,
    fields: inputs.Settings,
    models: Models,
) -> None:
    """Offer the operators for a task, then say how long a restoration takes, after `events`."""
    fitting = functools.partial(inputs.fitting_operators, models)
    chosen, timed = [fields.task, fields.prior, fields.operator], {*fields.of_time(), fields.preset}

    def tell_times(event: Callable[..., Dependency]) -> None:
        event(restoring.presets, timed, fields.preset, **LAST, **AT_ONCE)

    for event in events:
        tell_times(event(fitting, chosen, fields.operator, **LAST, **AT_ONCE).then)
    for field in (fields.steps, fields.working_size, fields.guidance_scale, fields.samples):
        tell_times(field.change)


def _wire_restoration(
    restoring: Restoring, fields: inputs.Settings, shown: outputs.Outputs
) -> None:
    def can_click(yes: bool) -> str:
        return f"{{__type__: 'update', interactive: {json.dumps(yes)}}}"

    # In the page alone: an answer to wait for would let the fields change after the click.
    restoration = shown.go.click(
        None,
        shown.clicks,
        [shown.go, shown.stop, shown.clicks],
        js=f"(clicks) => [{can_click(False)}, {can_click(True)}, clicks + 1]",
        **AT_ONCE,
    ).then(
        restoring.restore,
        {*fields.all(), shown.clicks},
        [*shown.of_result(), fields.preset],
        show_progress="minimal",
        show_progress_on=shown.status,
        concurrency_limit=1,
        concurrency_id="restore",
        api_name="restore_on_the_page",  # programs have /restore
        api_visibility="private",
    )
    switched = [shown.go, shown.stop, shown.stopping]
    # Restore stays away while Stop is answered, which would cancel what is begun meanwhile.
    restoration.success(
        None,
        shown.stopping,
        switched,
        js=f"""(stopping) => stopping
            ? [undefined, {can_click(False)}, 2]
            : [{can_click(True)}, {can_click(False)}, 0]""",
        **AT_ONCE,
    )
    # A cancelled run counts as failed, too.
    ended = f"() => [{can_click(True)}, {can_click(False)}, 0]"
    restoration.failure(None, None, switched, js=ended, **AT_ONCE)
    # The three happen one after the other.
    begins = f"() => [{can_click(False)}, 1]"
    shown.stop.click(None, None, [shown.stop, shown.stopping], js=begins, **AT_ONCE)
    shown.stop.click(
        restoring.stop, shown.clicks, shown.of_result(), cancels=restoration, **AT_ONCE
    )
    answered = f"(stopping) => [stopping === 2 ? {can_click(True)} : undefined, 0]"
    shown.stop.click(None, shown.stopping, [shown.go, shown.stopping], js=answered, **AT_ONCE)
    shown.variants.select(
        outputs.choose_variant,
        [shown.files, shown.variants],
        [shown.comparison, shown.side_by_side, shown.download],
        **LAST,
        **AT_ONCE,
    )
