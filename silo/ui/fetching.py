"""Downloads as the page shows them: how many megabytes are here, over the field that wants them."""

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from silo import hub


@contextmanager
def shown_by(progress: gr.Progress) -> Iterator[None]:
    """Show what is downloaded from the Hub inside the block."""
    event = contextvars.copy_context()  # by which gradio knows the visitor; threads have none

    def report(here: int, total: int) -> None:
        told = f"Downloading: {here / 10**6:.0f} of {total / 10**6:.0f} MB"
        event.copy().run(progress, min(1.0, here / max(1, total)), told)

    with hub.reporting(report):
        yield
