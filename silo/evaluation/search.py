"""A small search of how strongly each sampler guides, on pictures that are not evaluated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from statistics import fmean
from typing import Any

from silo.data import PhotoFile
from silo.errors import BadRequest
from silo.evaluation.jobs import blank_request
from silo.evaluation.protocols import Setting
from silo.evaluation.runner import Runner
from silo.samplers import SAMPLERS

# Multiples of a scale are tried this far apart, around the best until it has both its neighbours,
# and then half as far. The peers' published scales, made up for fewer steps, tend to be too large.
STRIDE = 4.0
SMALLEST, LARGEST = 1 / 256, 16.0
# What scales the guidance of a sampler that has no eta.
_SCALES = ("omega", "gamma", "zeta")
_UNSCALED = {"resample": ("gamma",)}  # its gamma is the noise of resampling


def search(
    runner: Runner, settings: Sequence[Setting], photos: Sequence[PhotoFile], *, alone: bool
) -> tuple[list[Setting], list[dict[str, Any]]]:
    """Each setting with the multiple of its guidance scale that does best on `photos`.

    Best by mean LPIPS-Alex, without its weights by mean PSNR. A multiple at which the sampler
    diverged is no candidate.

    Args:
        runner: what it runs on; what it holds is not run again.
        settings: whose scales to search.
        photos: apart from those to evaluate.
        alone: whether this is the only process, which may run what is missing.

    Returns:
        The settings, noted as searched, and for each what was tried, JSON-able.

    Raises:
        BadRequest: something is missing, and this is one of several processes.
    """
    best, report = [], []
    for setting in settings:
        chosen, found = _search(runner, setting, photos, alone)
        best.append(chosen)
        report.append(found)
    return best, report


def _search(
    runner: Runner, setting: Setting, photos: Sequence[PhotoFile], alone: bool
) -> tuple[Setting, dict[str, Any]]:
    """The search of one setting's scale."""
    tried: dict[float, Setting] = {}
    means: dict[float, dict[str, float]] = {}

    def badness(factor: float) -> float:
        candidate = tried[factor] = _scaled(runner, setting, photos[0], factor)
        if not alone and not runner.is_done([candidate], photos):
            raise BadRequest("run the search with one process first: its results are kept.")
        runner.run([candidate], photos)
        found = means[factor] = _means(runner, candidate, photos)
        return found.get("lpips", -found.get("psnr", -inf))

    chosen = around_best(badness)
    results = [
        {"factor": factor, **means[factor], "setting": tried[factor].to_dict()}
        for factor in sorted(tried)
    ]
    report = {
        "setting": setting.to_dict(),
        "pictures": [photo.name for photo in photos],
        "tried": results,
        "chosen": chosen,
    }
    return replace(tried[chosen], note=_note(setting)), report


def around_best(badness: Callable[[float], float]) -> float:
    """The multiple, from SMALLEST to LARGEST, that a search from 1 finds to be least bad."""
    found: dict[float, float] = {}

    def attempt(*factors: float) -> float:
        for factor in factors:
            if factor not in found and SMALLEST <= factor <= LARGEST:
                found[factor] = badness(factor)
        return min(found, key=lambda each: found[each])

    best, before = attempt(1.0, 1 / STRIDE, STRIDE), 1.0
    while best != before:
        best, before = attempt(best / STRIDE, best * STRIDE), best
    return attempt(best / STRIDE**0.5, best * STRIDE**0.5)


def _means(runner: Runner, setting: Setting, photos: Sequence[PhotoFile]) -> dict[str, float]:
    rows = runner.record.rows(setting.key, photos)
    scores = [row["scores"] for row in rows if "scores" in row]
    return {
        name: fmean(score[name] for score in scores)
        for name in ("psnr", "lpips")
        if len(scores) == len(photos) and scores[0][name] is not None
    }


def _scaled(runner: Runner, setting: Setting, photo: PhotoFile, factor: float) -> Setting:
    if factor == 1.0:
        return setting  # and its rows, should it have been evaluated already
    parameters = runner.restorer(setting).parameters(blank_request(setting, photo))
    if SAMPLERS[setting.sampler].needs_operator:
        return replace(setting, eta=parameters["eta"] * factor)
    fixed = _UNSCALED.get(setting.sampler, ())
    scaled = {
        name: value * factor
        for name, value in parameters["hyperparameters"].items()
        if name in _SCALES and name not in fixed
    }
    return replace(setting, hyperparameters=tuple(sorted(scaled.items())))


def _note(setting: Setting) -> str:
    return ", ".join(part for part in (setting.note, "searched") if part)
