"""The page's sentences: choices, status line, summary, as text or escaped HTML."""

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import mean

from PIL import Image
from torch import Tensor

from operators.catalog import TASKS
from silo.lpips import LEAST_SIDE, find_weights
from silo.metrics import lpips, psnr
from silo.request import PRESETS, RestorationRequest
from silo.restorer import Finishing, Result

Choice = tuple[str, str]


def paragraphs(*sentences: str) -> str:
    """Return sentences as HTML."""
    return "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)


def task_choices(tasks: set[str]) -> list[tuple[str, str]]:
    """Return tasks in plain words, the field's name beside them; then those of people's own."""

    def words(name: str) -> str:
        return name.replace("_", " ")

    known = [
        (f"{task.title} ({words(name)})", name) for name, task in TASKS.items() if name in tasks
    ]
    return known + [(f"Of an operator: {words(name)}", name) for name in sorted(tasks - set(TASKS))]


def preset_choices(steps: Mapping[str, int], seconds: Mapping[str, float]) -> list[Choice]:
    """Return the presets with their steps or, where it is known, the time they take here.

    Args:
        steps: of every preset.
        seconds: of those that the time of is known.
    """
    costs = {name: f"{count} steps" for name, count in steps.items()}
    costs |= {name: about(time) for name, time in seconds.items()}
    return [(f"{name.capitalize()}: {costs[name]}", name) for name in PRESETS]


def about(seconds: float) -> str:
    """Return an estimate of a time no finer than it is good for."""
    if seconds < 1:
        return "under 1 s"
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"about {seconds / length:.0f} {unit}"
    return f"about {seconds:.0f} s"


@dataclass(frozen=True)
class Frame:
    """One update of a restoration under way: plain data, able to leave a ZeroGPU process."""

    step: int
    total: int
    seconds_left: float
    picture: Image.Image | None
    finishing: Finishing | None = None

    def to_html(self) -> str:
        """Return the status line and its progress bar."""
        if self.finishing is not None:
            of = self.finishing
            variant = f", variant {of.sample} of {of.samples}" if of.samples > 1 else ""
            line = f"All steps are done. Keeping what the photo itself shows{variant}."
            return f"{paragraphs(line)}<progress></progress>"
        line = f"Step {self.step} of {self.total}, {about(self.seconds_left)} left"
        return f'{paragraphs(line)}<progress max="{self.total}" value="{self.step}"></progress>'


def stopped(step: int, total: int, shown: int) -> str:
    """Return what a stopped restoration left, as HTML."""
    done = f"Stopped after {step} of {total} steps."
    return paragraphs(f"{done} This is the clean estimate of step {shown}.")


def uncertainty_caption(largest: float) -> str:
    """Return what the map of the variants' standard deviation shows, white being 1."""
    return f"Standard deviation over the variants; brightest: {largest:.3f}"


def summary(result: Result, request: RestorationRequest) -> str:
    """Return how it went as HTML: seed, cost, scores of a simulated restoration, notices."""
    cost = f"{result.nfe} denoiser evaluations, {result.seconds:.1f} s"
    lines = [f"Done. Seed {request.seed}, {cost}."]
    measured = result.measured
    if measured.clean is not None:
        clean = measured.fit.cut(measured.clean)
        restored = describe(measured.fit.cut(result.restored).split(1), clean)
        degraded = describe([measured.fit.cut(measured.full_size)], clean)
        missing = ""
        if min(clean.shape[-2:]) < LEAST_SIDE["alex"]:
            missing = " LPIPS: not available (too small)."
        elif not find_weights("alex"):
            missing = " LPIPS: not available (no weights)."
        lines.append(
            f"Against the clean photo: {restored}; the degraded photo: {degraded}.{missing}"
        )
    return paragraphs(*lines, *result.notices)


def describe(images: Iterable[Tensor], clean: Tensor) -> str:
    """Return how far images are from the clean one on average, each and this (1, 3, H, W)."""
    scores = [(float(psnr(image, clean)), lpips("alex", image, clean)) for image in images]
    distances = [distance for _, distance in scores if distance is not None]
    perceptual = f", LPIPS {mean(distances):.3f}" if distances else ""
    return f"PSNR {mean(similarity for similarity, _ in scores):.1f} dB{perceptual}"


def size_in_words(count: int) -> str:
    """Return so many bytes, such as "4.3 GB"."""
    return f"{count / 10**9:.1f} GB" if count >= 10**9 else f"{count / 10**6:.1f} MB"
