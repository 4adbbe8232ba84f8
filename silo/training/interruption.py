"""SIGTERM and Ctrl-C as a request that long work answers at its next safe point."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass
class Interruption:
    """`signal_number` is that of the signal that asked to stop, None as long as none did."""

    signal_number: int | None = None


@contextmanager
def signals_postponed() -> Iterator[Interruption]:
    """Within it the first SIGTERM or Ctrl-C is only noted; a second one acts at once."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():  # where none arrives
        yield interruption
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        interruption.signal_number = number
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield interruption
    finally:
        restore()
