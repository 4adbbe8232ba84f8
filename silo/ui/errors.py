"""Errors as the page shows them."""

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from operators.errors import OperatorError
from silo.errors import SiloError

LONGEST = 400  # characters


@contextmanager
def errors_shown() -> Iterator[None]:
    """Let the page show errors of the library: raise them as `one_sentence` tells them."""
    try:
        yield
    except (SiloError, OperatorError) as error:
        raise one_sentence(error) from error


def one_sentence(error: SiloError | OperatorError) -> gr.Error:
    """Turn an error of the library into the one sentence that the page shows.

    The page shows it as HTML, and it may repeat what a visitor's file says: it is escaped.
    """
    return gr.Error(html.escape(sentence(error), quote=False), print_exception=False)


def sentence(error: SiloError | OperatorError) -> str:
    """Return what an error of the library says, with a capital first and no longer than a sentence.

    A file, a Hub id or a parameter that it begins with stays as it is. What is too long loses its
    middle: the end says what to do.
    """
    told = str(error)
    if len(told) > LONGEST:
        told = f"{told[: LONGEST // 2]} \u2026 {told[-LONGEST // 2 :]}"
    return told[0].upper() + told[1:] if re.match("[a-z]+ ", told) else told
