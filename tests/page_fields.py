"""The page's fields and the handlers of their events, laid out without a server."""

import asyncio
from pathlib import Path
from typing import Any

import gradio as gr

from silo.prior import LatentPrior
from silo.prior_files import EMBEDDED_NAME
from silo.ui import inputs, outputs
from silo.ui.inputs import USUAL_SIZE, Settings, Tools
from silo.ui.models import AUTOMATIC, Models
from silo.ui.outputs import Outputs
from silo.ui.preparing import Preparing
from silo.ui.running import Runs


class Page:
    """The page's fields with their handlers, and without a server.

    Attributes:
        models: what the page offers.
        blocks: all of it.
        preparing: the handlers.
        settings: the fields they read.
        tools: what fills these in.
        outputs: what they show.
        runs: of whom something is being restored.
    """

    def __init__(self, load: Any = LatentPrior.load, default: str = EMBEDDED_NAME) -> None:
        """Lay the fields out."""
        self.models = Models(load, default)

        async def lay_out() -> tuple[gr.Blocks, Settings, Tools, Outputs]:
            with gr.Blocks(analytics_enabled=False) as blocks:
                settings, tools = inputs.lay_out(self.models)
                shown = outputs.lay_out()
            return blocks, settings, tools, shown

        self.runs = Runs()
        # In a running event loop gradio makes none of its own, which it would leave unclosed.
        self.blocks, self.settings, self.tools, self.outputs = asyncio.run(lay_out())
        self.preparing = Preparing(self.models, self.settings, self.tools, self.outputs, self.runs)

    def given(
        self,
        photo: Path | None,
        task: str,
        source: str,
        operator: str = AUTOMATIC,
        prior: str = EMBEDDED_NAME,
    ) -> dict[Any, Any]:
        """Return what the fields hold."""
        fields = self.settings
        return {
            fields.photo: None if photo is None else str(photo),
            fields.task: task,
            fields.source: source,
            fields.prior: prior,
            fields.operator: operator,
            fields.working_size: USUAL_SIZE,
            self.outputs.clicks: 0,
            self.tools.strength_given: None,
        }
