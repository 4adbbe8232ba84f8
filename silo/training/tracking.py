"""Tells an experiment tracker, such as TensorBoard or Weights & Biases, how a training goes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import (
    LOGGER_TYPE_TO_CLASS,
    GeneralTracker,
    TensorBoardTracker,
    WandBTracker,
    get_available_trackers,
)
from accelerate.utils import LoggerType
from PIL import Image

from silo.errors import BadRequest


class Tracker:
    """One run of accelerate's tracker of some name, or of none."""

    def __init__(self, tracker: GeneralTracker | None) -> None:
        """Pass everything on to `tracker`; without one, nothing happens."""
        self._tracker = tracker

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Send the values of a step, each as GROUP/NAME."""
        if self._tracker is not None:
            self._tracker.log({f"{group}/{k}": value for k, value in values.items()}, step=step)

    def show(self, title: str, step: int, picture: Path) -> None:
        """Send a picture to TensorBoard or Weights & Biases; the others have ways of their own."""
        if not isinstance(self._tracker, TensorBoardTracker | WandBTracker):
            return
        with Image.open(picture) as image:
            pixels = np.asarray(image)
        if isinstance(self._tracker, TensorBoardTracker):
            self._tracker.log_images({title: pixels[None]}, step=step, dataformats="NHWC")
        else:
            self._tracker.log_images({title: [pixels]}, step=step)


def check_tracker(name: str) -> None:
    """Make sure that accelerate has a tracker of this name, and that its package is installed.

    Raises:
        BadRequest: it has not, or it is not.
    """
    if name not in LOGGER_TYPE_TO_CLASS:
        raise BadRequest(
            f"there is no tracker {name!r}: report to one of {', '.join(LOGGER_TYPE_TO_CLASS)}."
        )
    if name in LoggerType and LoggerType(name) not in get_available_trackers():
        raise BadRequest(
            f"the package of the tracker {name!r} is not installed: run `pip install {name}`, or "
            "leave --report_to out."
        )


@contextmanager
def tracked(
    name: str | None, run: str, folder: Path, settings: Mapping[str, Any]
) -> Iterator[Tracker]:
    """A run of the tracker called `name`, finished at the end; of none where that is None.

    Args:
        name: one that `check_tracker` accepts.
        run: what to call the run, or the project that it belongs to.
        folder: of the files, for a tracker that writes some.
        settings: of the training.

    Raises:
        BadRequest: the tracker does not start.
    """
    if name is None:
        yield Tracker(None)
        return
    kind: Any = LOGGER_TYPE_TO_CLASS[name]  # their constructors differ
    tracker = kind(run, folder) if kind.requires_logging_directory else kind(run)
    try:
        tracker.start()
    except Exception as error:  # each has its own, for a missing login or network
        raise BadRequest(f"the tracker {name!r} does not start: {error}") from error
    try:
        tracker.store_init_configuration(
            {
                key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
                for key, value in settings.items()
            }
        )
        yield Tracker(tracker)
    finally:
        tracker.finish()
