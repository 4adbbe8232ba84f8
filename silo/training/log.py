"""The losses of a training run, one JSON object a line, kept across interruptions."""

import json
import time
from pathlib import Path

from tqdm import tqdm


class TrainingLog:
    """Appends losses to a file; seconds go on from where an interrupted run stopped."""

    def __init__(self, path: Path) -> None:
        """Continue the log at `path`, or begin it."""
        self.path = path
        if path.is_file():  # a run that was killed may have left half a line
            whole, _, half = path.read_text().rpartition("\n")
            if half:
                path.write_text(whole + "\n" if whole else "")
        lines = self.read()
        self._started = time.monotonic() - (lines[-1]["seconds"] if lines else 0)

    def write(self, step: int, losses: dict[str, float]) -> None:
        """Add the losses of `step`, and show them."""
        line = {"step": step, "seconds": round(time.monotonic() - self._started)}
        line |= {name: round(value, 5) for name, value in losses.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        tqdm.write(f"{self.path.parent.name} {line}")

    def read(self) -> list[dict[str, float]]:
        """All lines, a step that was repeated after an interruption only once."""
        if not self.path.is_file():
            return []
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        return sorted({line["step"]: line for line in lines}.values(), key=lambda x: x["step"])
