"""What is being restored for each visitor, so that Stop can keep what there is."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

from silo.ui.wording import Frame


@dataclass
class Run:
    """One restoration under way.

    Attributes:
        parameters: all that decides it.
        before: (1, 3, H, W), the measurement as large as the restoration.
        total: how many steps it has.
        step: how many are done.
        estimate: the last clean estimate that was decoded, and after which step.
        ended: set when nothing is computed any more.
    """

    parameters: dict[str, Any]
    before: Tensor
    total: int
    step: int = 0
    estimate: tuple[int, Image.Image] | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def note(self, frame: Frame) -> None:
        """Remember how far it got."""
        self.step = frame.step
        if frame.picture is not None:
            self.estimate = (frame.step, frame.picture)


class Runs:
    """The last run of each visitor, until it is finished, taken or the visitor leaves."""

    def __init__(self) -> None:
        """Begin with none."""
        self._of: dict[str, Run] = {}

    @contextmanager
    def begin(self, visitor: str, run: Run) -> Iterator[Run]:
        """Keep `run` while it lasts, and beyond when it is cut off (`GeneratorExit`)."""
        self._of[visitor] = run
        try:
            yield run
        except GeneratorExit:
            raise
        except BaseException:
            self.forget(visitor)
            raise
        else:
            self.forget(visitor)
        finally:
            run.ended.set()

    def take(self, visitor: str) -> Run | None:
        """Hand over and forget what was being restored for the visitor, if anything was."""
        return self._of.pop(visitor, None)

    def forget(self, visitor: str) -> None:
        """Drop the visitor's run."""
        self._of.pop(visitor, None)

    def __len__(self) -> int:
        """Return for how many visitors something is kept."""
        return len(self._of)
