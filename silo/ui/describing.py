"""The button that writes the prompt: what the photo shows, in the words of Qwen2-VL."""

from collections.abc import Callable

import gradio as gr
import spaces
from PIL.Image import Image

from silo.caption import Captioner
from silo.errors import BadRequest, SiloError
from silo.ui.errors import one_sentence
from silo.ui.fetching import shown_by
from silo.ui.mask_painter import view_file

PROGRESS = gr.Progress()  # gradio puts one of its own in its place
GPU_SECONDS = 60  # to ask of ZeroGPU: moving the model there takes most of them


def describer(captioner_factory: Callable[[], Captioner]) -> Callable[[str | None], str]:
    """Return the handler; `captioner_factory` is called when the button is first used."""

    @spaces.GPU(duration=GPU_SECONDS)
    def caption(photo: Image) -> str:
        try:
            return captioner_factory().describe(photo)
        except SiloError as error:
            raise one_sentence(error) from error

    def describe(path: str | None, progress: gr.Progress = PROGRESS) -> str:
        try:
            if path is None:
                raise BadRequest("Choose a photo or an example first.")
            photo, _ = view_file(path)
            with shown_by(progress):  # ahead of the GPU's time, which gigabytes would outlast
                captioner_factory().fetch()
        except SiloError as error:
            raise one_sentence(error) from error
        return caption(photo)

    return describe


def wire(
    button: gr.Button, photo: gr.File, prompt: gr.Textbox, factory: Callable[[], Captioner]
) -> None:
    """Let the button fill the prompt in, where it can be edited."""
    button.click(
        describer(factory),
        photo,
        prompt,
        show_progress_on=prompt,
        concurrency_limit=1,
        api_visibility="private",
    )
