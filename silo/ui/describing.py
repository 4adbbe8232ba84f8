"""The button that writes the prompt: what the photo shows, in the words of Qwen2-VL."""

from collections.abc import Callable
from typing import Any

import gradio as gr
import spaces
from gradio.events import Dependency
from PIL.Image import Image

from silo.caption import Captioner
from silo.ui.errors import errors_shown
from silo.ui.fetching import shown_by
from silo.ui.inputs import Settings
from silo.ui.mask_painter import view_file

PROGRESS = gr.Progress()  # gradio puts one of its own in its place
GPU_SECONDS = 60  # to ask of ZeroGPU: moving the model there takes most of them


def describer(
    fields: Settings, captioner_factory: Callable[[], Captioner]
) -> Callable[[dict[Any, Any]], str]:
    """Return the handler; `captioner_factory` is called when the button is first used."""

    @spaces.GPU(duration=GPU_SECONDS)
    def caption(photo: Image) -> str:
        with errors_shown():
            return captioner_factory().describe(photo)

    def describe(given: dict[Any, Any], progress: gr.Progress = PROGRESS) -> str:
        with errors_shown():
            photo, _ = view_file(fields.photo_file(given))
            with shown_by(progress):  # ahead of the GPU's time, which gigabytes would outlast
                captioner_factory().fetch()
        return caption(photo)

    return describe


def wire(button: gr.Button, fields: Settings, factory: Callable[[], Captioner]) -> Dependency:
    """Let the button fill the prompt in, where it can be edited; return the event."""
    return button.click(
        describer(fields, factory),
        {fields.photo},
        fields.prompt,
        show_progress_on=fields.prompt,
        concurrency_limit=1,
        api_visibility="private",
    )
