"""Errors as the page shows them."""

import gradio as gr

from operators.errors import OperatorError
from silo.errors import SiloError


def one_sentence(error: SiloError | OperatorError) -> gr.Error:
    """Turn an error of the library into the one sentence that the page shows."""
    return gr.Error(str(error), print_exception=False)
