"""The right column: the buttons, how far it is, and what came out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component
from PIL import Image

from silo.ui import lens, spoken, wipe
from silo.ui.cache import keep
from silo.ui.wording import paragraphs, uncertainty_caption

INVITATION = "Choose a photo or an example; the result appears here."
VIEW = "var(--view)"  # of the style sheet: what a picture may take of the window's height
CAUTION = "A restored face is plausible, not evidence of identity."


@dataclass(frozen=True)
class Outputs:
    """The components of the right column, in their order on the page.

    Attributes:
        go: starts a restoration.
        stop: ends it.
        status: one sentence, and the progress bar.
        picture: the photo, then its clean estimate while it is being restored.
        views: the tabs with the result.
        comparison: before and after under a slider.
        side_by_side: both under one lens.
        uncertainty_tab: there with several variants.
        uncertainty: where the variants differ.
        variants: one is chosen to compare and download.
        download: the chosen variant.
        further: takes it for the photo.
        files: of this visitor: the measurement's, then each variant's.
        clicks: on Restore, by this page.
        stopping: 1 while Stop is answered, 2 where the run came to its end meanwhile, else 0.
    """

    go: gr.Button
    stop: gr.Button
    status: gr.HTML
    picture: gr.Image
    views: gr.Tabs
    comparison: gr.HTML
    side_by_side: gr.HTML
    uncertainty_tab: gr.Tab
    uncertainty: gr.Image
    variants: gr.Gallery
    download: gr.DownloadButton
    further: gr.Button
    files: gr.State
    clicks: gr.Number
    stopping: gr.Number

    def of_result(self) -> list[Any]:
        """Return the components that show a result, as outputs of an event."""
        return [
            *(self.picture, self.views, self.comparison, self.side_by_side, self.uncertainty_tab),
            *(self.uncertainty, self.variants, self.download, self.further, self.files),
            self.status,
        ]

    def kept(self, picture: Image.Image) -> str:
        """Return the file of a picture, as a value of `picture`."""
        return keep(picture, self.picture.GRADIO_CACHE)

    def hidden(self) -> dict[Any, Any]:
        """Take an earlier result off the page."""
        hidden = gr.update(visible=False)
        return dict.fromkeys((self.views, self.variants, self.download, self.further), hidden)

    def shown(self, paths: list[str], uncertainty: tuple[str, float] | None) -> dict[Any, Any]:
        """Show the files of a result: the measurement's, then each variant's."""
        before, *after = paths
        # gradio would not know the measurement's: it is in HTML alone, and never deleted.
        self.files.temp_files.add(before)
        updates = {
            self.picture: gr.Image(visible=False),
            self.views: gr.Tabs(visible=True, selected="slider"),
            self.comparison: wipe.wipe(before, after[0]),
            self.side_by_side: lens.lens(before, after[0]),
            self.uncertainty_tab: gr.Tab(visible=uncertainty is not None),
            self.variants: gr.Gallery(after, selected_index=0, visible=len(after) > 1),
            self.download: gr.DownloadButton(value=after[0], visible=True),
            self.further: gr.Button(visible=True),
            self.files: paths,
        }
        if uncertainty is not None:
            path, largest = uncertainty
            updates[self.uncertainty] = gr.Image(path, label=uncertainty_caption(largest))
        return updates


def lay_out() -> Outputs:
    """Put the components on the page, in the block that is open."""
    with gr.Row(elem_id="go"):
        go = gr.Button("Restore", variant="primary", elem_id="restore")
        stop = gr.Button("Stop", interactive=False, elem_id="stop")
    status = gr.HTML(
        paragraphs(INVITATION), js_on_load=spoken.SCRIPT, elem_id="status", padding=False
    )
    picture = gr.Image(
        show_label=False,
        interactive=False,
        format="png",
        height=VIEW,
        buttons=[],
        elem_id="picture",
    )
    # A menu of what does not fit would be measured while the tabs are hidden, and keep them then.
    with gr.Tabs(visible=False, overflow_behavior="wrap", elem_id="views") as views:
        with gr.Tab("Slider", id="slider"):
            comparison = gr.HTML(
                css_template=wipe.CSS, js_on_load=wipe.SCRIPT, elem_id="comparison", padding=False
            )
        with gr.Tab("Side by side", id="side-by-side"):
            side_by_side = gr.HTML(
                css_template=lens.CSS,
                js_on_load=lens.SCRIPT,
                elem_id="side-by-side",
                padding=False,
            )
        with gr.Tab("Differences", id="uncertainty", visible=False) as uncertainty_tab:
            uncertainty = gr.Image(
                interactive=False, format="png", height=VIEW, buttons=[], elem_id="uncertainty"
            )
    variants = gr.Gallery(
        label="Variants",
        format="png",
        columns=4,
        height="fit-content",  # "auto" keeps 450 px, whatever there is to show
        allow_preview=False,
        interactive=False,
        buttons=[],
        visible=False,
        elem_id="variants",
    )
    with gr.Row():
        download = gr.DownloadButton(
            "Download PNG, settings inside", visible=False, elem_id="download"
        )
        further = gr.Button("Restore this further", visible=False, elem_id="further")
    gr.Markdown(CAUTION)
    gr.HTML(spoken.HTML, padding=False)
    # No States: the page counts by itself, and events carry them as they were when they were sent.
    clicks, stopping = (gr.Number(0, precision=0, visible="hidden") for _ in range(2))
    return Outputs(
        *(go, stop, status, picture, views, comparison, side_by_side, uncertainty_tab),
        *(uncertainty, variants, download, further, gr.State([]), clicks, stopping),
    )


def choose_variant(files: list[str], variants: gr.Gallery) -> tuple[str, str, str]:
    """Compare and offer the variant that was clicked; `files` begins with the measurement."""
    # Not the event's own index: an event that had to wait carries that of the one before it.
    variant = files[1 + (variants.selected_index or 0)]
    return wipe.wipe(files[0], variant), lens.lens(files[0], variant), variant


def cache_folder(component: Component) -> Path:
    """Return the folder whose files gradio serves, and cleans up."""
    return Path(component.GRADIO_CACHE)
