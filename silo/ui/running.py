"""What is being restored for each visitor, so that Stop can end it and keep what there is."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

from silo.ui.wording import Frame

Subject = tuple[Any, ...]  # what is restored, from which damage: see `Settings.subject`


@dataclass
class Run:
    """One restoration under way.

    Attributes:
        parameters: all that decides it.
        before: (1, 3, H, W), the measurement as large as the restoration.
        total: how many steps it has.
        subject: what the page shows it for; programs' runs have none.
        step: how many are done.
        estimate: the last clean estimate that was decoded, and after which step.
        kept: the files of a run that was stopped: the measurement's and the estimate's.
        stopping: set to end it after the step under way.
        ended: set when nothing is computed any more.
    """

    parameters: dict[str, Any]
    before: Tensor
    total: int
    subject: Subject = ()
    step: int = 0
    estimate: tuple[int, Image.Image] | None = None
    kept: list[str] | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def note(self, frame: Frame) -> None:
        """Remember how far it got."""
        self.step = frame.step
        if frame.picture is not None:
            self.estimate = (frame.step, frame.picture)


class Runs:
    """The run of each visitor, while it lasts, and what his page shows of it."""

    def __init__(self) -> None:
        """Begin with none."""
        self._of: dict[str, Run] = {}
        self._begun: dict[str, int] = {}  # by which click on Restore
        self._stopped: dict[str, int] = {}
        self._shown: dict[str, Subject] = {}

    @contextmanager
    def begin(self, visitor: str, run: Run) -> Iterator[Run]:
        """Keep `run` until the block is left, however that happens."""
        self._of[visitor] = run
        try:
            yield run
        finally:
            if self._of.get(visitor) is run:
                del self._of[visitor]
            run.ended.set()

    def show(self, visitor: str, click: int, subject: Subject) -> bool:
        """Note that the page shows the run of a click on Restore; return False if it was stopped.

        To be called when the run has begun, lest a Stop come between.
        """
        if self._stopped.get(visitor, 0) >= click:
            return False
        self._begun[visitor], self._shown[visitor] = click, subject
        return True

    def stop_early(self, visitor: str, click: int) -> bool:
        """Stop the run of a click on Restore before it begins; return False if it has begun."""
        if self._begun.get(visitor, 0) >= click:
            return False
        self._stopped[visitor] = click
        return True

    def stays(self, visitor: str, subject: Subject, clicks: int) -> bool:
        """Return whether the run on a page stays there, as another event wants to show `subject`.

        It does if Restore was clicked after the event, which knows of `clicks`, or if it is of the
        same subject: gradio sends the last of several changes when the ones before are answered, at
        which time the visitor may have restored what it would show. One that does not stay is
        forgotten.
        """
        if self._begun.get(visitor, 0) > clicks or self.shows(visitor, subject):
            return True
        self._shown.pop(visitor, None)
        return False

    def shows(self, visitor: str, subject: Subject) -> bool:
        """Return whether the visitor's last run is of `subject` and was not forgotten."""
        return self._shown.get(visitor) == subject

    def leave(self, visitor: str) -> None:
        """Forget a visitor, and end his run after its step."""
        for known in (self._begun, self._stopped, self._shown):
            known.pop(visitor, None)
        run = self.of(visitor)
        if run is not None:
            run.stopping.set()

    def of(self, visitor: str) -> Run | None:
        """Return what is being restored for the visitor, None for nothing."""
        return self._of.get(visitor)
