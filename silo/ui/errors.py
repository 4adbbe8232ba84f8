"""Errors as the page shows them."""

import html

import gradio as gr

from operators.errors import OperatorError
from silo.errors import SiloError

LONGEST = 400  # characters


def one_sentence(error: SiloError | OperatorError) -> gr.Error:
    """Turn an error of the library into the one sentence that the page shows.

    The page shows it as HTML, and it may repeat what a visitor's file says: it is escaped.
    """
    told = str(error)
    if len(told) > LONGEST:
        told = f"{told[:LONGEST]}\u2026"
    return gr.Error(html.escape(told, quote=False), print_exception=False)
