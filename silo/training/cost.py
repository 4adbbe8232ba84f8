"""Measures, before a long run starts, how long each of its stages will take."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FEW, MORE = 2, 6  # units of the two short runs that are timed


@dataclass(frozen=True)
class Stage:
    """One part of a run.

    Attributes:
        name: what it is called.
        units: how many steps or pictures are left.
        unit: which of the two.
        run: does so many units from nothing, in an empty folder of its own.
    """

    name: str
    units: int
    unit: str
    run: Callable[[int, Path], object]


def seconds_per_unit(stage: Stage) -> float:
    """The time of one unit: what a longer run takes more than a shorter one.

    Building networks and writing results, the same for both, cancel out.
    """
    stage_seconds = []
    with tempfile.TemporaryDirectory() as folder:
        stage.run(1, Path(folder) / "warm-up")  # kernels are chosen, memory is taken
        for units in (FEW, MORE):
            start = time.perf_counter()
            stage.run(units, Path(folder) / str(units))
            stage_seconds.append(time.perf_counter() - start)
    return max(0.0, (stage_seconds[1] - stage_seconds[0]) / (MORE - FEW))


def estimate(stages: list[Stage]) -> str:
    """One line a stage and one for the whole; stages with nothing left are not timed."""
    lines, total = [], 0.0
    for stage in stages:
        if stage.units <= 0:
            lines.append(f"  {stage.name}: done")
            continue
        each = seconds_per_unit(stage)
        total += stage.units * each
        lines.append(
            f"  {stage.name}: {stage.units} {stage.unit}s at {each:.2f} s, "
            f"{duration(stage.units * each)}"
        )
    return "\n".join([*lines, f"  in all: {duration(total)}"])


def duration(seconds: float) -> str:
    """Hours and minutes, such as "2 h 05 min"."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
