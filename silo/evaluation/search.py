"""A small search of how strongly each sampler guides, on pictures that are not evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from silo.data import PhotoFile
from silo.evaluation.bench import Bench
from silo.evaluation.jobs import blank_request
from silo.protocols import Setting
from silo.samplers import SAMPLERS

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
# What scales the guidance of a sampler that has no eta.
_SCALES = ("omega", "gamma", "zeta")
_UNSCALED = {"resample": ("gamma",)}  # its gamma is the noise of resampling


def search(
    bench: Bench, settings: Sequence[Setting], photos: Sequence[PhotoFile]
) -> tuple[list[Setting], list[dict[str, Any]]]:
    """Each setting with the multiple of its guidance scale that does best on `photos`.

    Best by mean LPIPS-Alex, without its weights by mean PSNR.

    Returns:
        The settings, noted as searched, and for each what was tried, JSON-able.
    """
    best, report = [], []
    for setting, tried in zip(settings, candidates(bench, settings, photos), strict=True):
        bench.run(list(tried.values()), photos)
        results = []
        for factor, candidate in tried.items():
            rows = bench.record.rows(candidate.key, photos)
            scores = [row["scores"] for row in rows if "scores" in row]
            # A factor at which the sampler diverged is no candidate.
            means = {
                name: fmean(score[name] for score in scores)
                for name in ("psnr", "lpips")
                if len(scores) == len(photos) and scores[0][name] is not None
            }
            results.append({"factor": factor, **means, "setting": candidate.to_dict()})
        chosen = min(
            (r for r in results if "psnr" in r), key=_badness, default=results[FACTORS.index(1.0)]
        )
        best.append(replace(tried[chosen["factor"]], note=_note(setting)))
        report.append({"setting": setting.to_dict(), "tried": results, "chosen": chosen["factor"]})
    return best, report


def candidates(
    bench: Bench, settings: Sequence[Setting], photos: Sequence[PhotoFile]
) -> list[dict[float, Setting]]:
    """For each setting, the settings to try by their factor."""
    return [
        {factor: _scaled(bench, setting, photos[0], factor) for factor in FACTORS}
        for setting in settings
    ]


def _scaled(bench: Bench, setting: Setting, photo: PhotoFile, factor: float) -> Setting:
    if factor == 1.0:
        return setting  # and its rows, should it have been evaluated already
    parameters = bench.restorer(setting).parameters(blank_request(setting, photo))
    if SAMPLERS[setting.sampler].needs_operator:
        return replace(setting, eta=parameters["eta"] * factor)
    fixed = _UNSCALED.get(setting.sampler, ())
    scaled = {
        name: value * factor
        for name, value in parameters["hyperparameters"].items()
        if name in _SCALES and name not in fixed
    }
    return replace(setting, hyperparameters=tuple(sorted(scaled.items())))


def _badness(result: dict[str, Any]) -> float:
    return result.get("lpips", -result["psnr"])


def _note(setting: Setting) -> str:
    return ", ".join(part for part in (setting.note, "searched") if part)
