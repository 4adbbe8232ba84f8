"""How long restorations take on this machine, by how long earlier ones took."""

from dataclasses import dataclass

import torch

from operators.catalog import TASKS, shelf
from silo.measured import usual_working_size
from silo.request import PRESETS, RestorationRequest
from silo.restorer import Progress, Restorer

SMALLEST_SIDE_RATIO = 4


@dataclass(frozen=True)
class Work:
    """What decides how long a step takes.

    Attributes:
        prior: the prior's name.
        sampler: the sampler's name.
        guided: whether a prompt is amplified, which evaluates the denoiser twice.
        task: what is undone, which decides how long it takes to finish.
        pixels: of the restored picture, None while there is none.
        working_size: as of `RestorationRequest`.
    """

    prior: str
    sampler: str
    guided: bool
    task: str
    pixels: int | None
    working_size: int | None = None


class Timing:
    """The seconds of a step, by prior, sampler and guidance, and of finishing, by prior and task.

    Both are those of one sample.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        self._noted: dict[tuple[str, str, bool], tuple[float, int]] = {}  # and at how many pixels
        self._finishing: dict[tuple[str, str], tuple[float, int]] = {}
        self._native_sizes: dict[str, int] = {}

    def note(self, work: Work, native_size: int, seconds: float) -> None:
        """Remember how long a step took with a prior of a native size, in pixels a side."""
        self._native_sizes[work.prior] = native_size
        self._noted[work.prior, work.sampler, work.guided] = seconds, self._worked_on(work)

    def seconds(self, work: Work) -> float | None:
        """Return how long a step of one sample takes; None before any such was noted."""
        noted = self._noted.get((work.prior, work.sampler, work.guided))
        if noted is None:
            return None
        seconds, pixels = noted
        return seconds * self._worked_on(work) / pixels

    def note_finishing(self, work: Work, seconds: float) -> None:
        """Remember how long it took after the last step, of which a time was noted before."""
        self._finishing[work.prior, work.task] = seconds, self._pixels(work)

    def finishing(self, work: Work) -> float:
        """Return how long it takes after the last step; 0 before any such was noted."""
        seconds, pixels = self._finishing.get((work.prior, work.task), (0.0, 1))
        return seconds * self._pixels(work) / pixels if seconds else 0.0

    def measure(self, prior: str, restorer: Restorer) -> None:
        """Take two steps of every preset's sampler on a grey picture, and note the second."""
        size = restorer.prior.native_size
        grey = torch.zeros(1, 3, size, size)
        task = next(entry.task for entry in shelf() if entry.prior == restorer.prior.name)
        for sampler in sorted({preset.sampler for preset in PRESETS.values()}):
            request = RestorationRequest(task, grey, simulate=True, sampler=sampler, steps=2)
            events = restorer.restore(request)
            first, second = (event.seconds for event in events if isinstance(event, Progress))
            work = Work(prior, sampler, False, task, size * size)
            self.note(work, size, second - first)

    def _worked_on(self, work: Work) -> int:
        """Return the pixels that a step's time goes with: larger pictures are scaled down.

        Small ones do not keep a processor busy, and take hardly less time than this least one.
        """
        native, task = self._native_sizes[work.prior], TASKS.get(work.task)
        usual = usual_working_size(task.degradation.kind if task else "function", native)
        least, most = native / SMALLEST_SIDE_RATIO, work.working_size or usual
        return round(min(max(self._pixels(work), least**2), most**2))

    def _pixels(self, work: Work) -> int:
        return self._native_sizes[work.prior] ** 2 if work.pixels is None else work.pixels
