import time
from pathlib import Path

import pytest

from silo.training.cost import Stage, duration, estimate, seconds_per_unit


class Clock:
    """Time that passes only where `run` says so: 5 s for each start, 2 s for each unit."""

    def __init__(self) -> None:
        self.now = 0.0

    def run(self, units: int, folder: Path) -> None:
        assert not folder.exists()
        folder.mkdir()
        self.now += 5 + 2 * units


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def test_what_every_run_costs_once_is_not_charged_to_each_unit(clock: Clock) -> None:
    assert seconds_per_unit(Stage("denoiser", 100, "step", clock.run)) == pytest.approx(2)


def test_the_whole_is_the_sum_of_what_is_left(clock: Clock) -> None:
    def never(units: int, folder: Path) -> None:
        raise AssertionError("nothing is left to time")

    text = estimate(
        [
            Stage("autoencoder", 0, "step", never),
            Stage("encoding", 600, "picture", clock.run),
            Stage("denoiser", 1800, "step", clock.run),
        ]
    )
    assert text.splitlines() == [
        "  autoencoder: done",
        "  encoding: 600 pictures at 2.00 s, 20 min",
        "  denoiser: 1800 steps at 2.00 s, 1 h 00 min",
        "  in all: 1 h 20 min",
    ]


def test_durations_carry_over_into_hours() -> None:
    assert [duration(s) for s in (20, 3570, 3599, 7500)] == [
        "0 min",
        "1 h 00 min",
        "1 h 00 min",
        "2 h 05 min",
    ]
