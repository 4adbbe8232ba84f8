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
        step: how many are done.
        estimate: the last clean estimate that was decoded, and after which step.
        kept: the files of a run that was stopped: the measurement's and the estimate's.
        stopping: set to end it after the step under way.
        ended: set when nothing is computed any more.
    """

    parameters: dict[str, Any]
    before: Tensor
    total: int
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
    """The run of each visitor, while it lasts, and how many there were on a page."""

    def __init__(self) -> None:
        """Begin with none."""
        self._of: dict[str, Run] = {}
        self._begun: dict[str, int] = {}
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

    def count(self, visitor: str, subject: Subject) -> int:
        """Note that the visitor's page shows one more run; return how many it has begun."""
        self._begun[visitor] = self._begun.get(visitor, 0) + 1
        self._shown[visitor] = subject
        return self._begun[visitor]

    def stays(self, visitor: str, subject: Subject, begun: int) -> bool:
        """Return whether the run on a page stays there, as another event wants to show `subject`.

        It does if it began after the event, which knows of `begun` runs, or is of the same subject:
        gradio sends the last of several changes when the ones before are answered, at which time
        the visitor may have restored what it would show. A run that does not stay is forgotten.
        """
        if self._begun.get(visitor, 0) > begun or self._shown.get(visitor) == subject:
            return True
        self._shown.pop(visitor, None)
        return False

    def leave(self, visitor: str) -> None:
        """Forget a visitor, and end his run after its step."""
        self._begun.pop(visitor, None)
        self._shown.pop(visitor, None)
        run = self.of(visitor)
        if run is not None:
            run.stopping.set()

    def of(self, visitor: str) -> Run | None:
        """Return what is being restored for the visitor, None for nothing."""
        return self._of.get(visitor)
