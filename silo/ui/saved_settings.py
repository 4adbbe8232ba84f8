"""The settings of an earlier result, read from its PNG: somebody's file, so nothing is believed."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from operators.catalog import TASKS
from operators.degradation import Degradation
from operators.errors import OperatorError
from silo import __version__
from silo.devices import DTYPES, dtype_name
from silo.errors import BadRequest
from silo.images import read_parameters
from silo.request import PRESETS, RestorationRequest
from silo.samplers import SAMPLERS

MAX_PROMPT = 1000  # characters
MAX_NAME = 200
_DTYPES = [dtype_name(dtype) for kind in DTYPES.values() for dtype in kind]
_PLACEHOLDER = torch.zeros(1, 3, 8, 8)  # settings are checked with a request, which has a picture
_TYPES: dict[str, type] = {
    "task": str,
    "simulate": bool,
    "sampler": str,
    "steps": int,
    "eta": float,
    "noise_sigma": float,
    "prompt": str,
    "negative_prompt": str,
    "guidance_scale": float,
    "samples": int,
    "seed": int,
}


@dataclass(frozen=True)
class Weights:
    """A prior or an operator as a result names it; the revision is the Hub's commit."""

    name: str
    revision: str | None

    def __str__(self) -> str:
        """Return the name, and the revision where it has one."""
        known = self.revision is None or self.name.endswith(f"@{self.revision}")
        return self.name if known else f"{self.name}@{self.revision}"


@dataclass(frozen=True)
class SavedSettings:
    """What a result says about how it came about.

    Attributes:
        request: its settings, with a placeholder for the picture.
        simulate: whether the picture was degraded first.
        blur_std: of the blur that it came with, if that was told.
        prior: what it was restored with.
        operator: what guided it.
        not_offered: what it was made with beside, that the page has no field for.
        dtype: the kind of number it was computed in; None where that is none of ours.
    """

    request: RestorationRequest
    simulate: bool
    blur_std: float | None
    prior: Weights
    operator: Weights
    not_offered: list[str]
    dtype: str | None


def read_settings(path: str) -> SavedSettings:
    """Read and check the parameters that a result's PNG carries.

    Raises:
        BadImage: not a picture.
        BadRequest: it carries no settings, values that no restoration can have, or those of a
            sampler that the page does not offer.
    """
    found = read_parameters(path)
    if found is None:
        raise BadRequest("This picture carries no settings: choose a PNG that was downloaded here.")
    for name in ("task", "sampler"):
        if len(_value(found, name, str)) > MAX_NAME:
            raise BadRequest(f"The settings in this file are damaged: {name} is no name.")
    sampler = found["sampler"]
    if sampler in SAMPLERS and all(sampler != preset.sampler for preset in PRESETS.values()):
        raise BadRequest(f"The page does not offer the sampler {sampler}: use the command line.")
    values = {name: _value(found, name, kind) for name, kind in _TYPES.items()}
    if max(len(values["prompt"]), len(values["negative_prompt"])) > MAX_PROMPT:
        raise BadRequest(
            f"The prompt in this file is longer than {MAX_PROMPT} characters: write a shorter one."
        )
    if "working_size" in found:  # since version 0.15
        values["working_size"] = _value(found, "working_size", int)
    simulate = values.pop("simulate")
    blur_std = None if found.get("blur_std") is None else _value(found, "blur_std", float)
    prior, operator = _weights(found, "prior"), _weights(found, "operator")
    degradation, not_offered = _degradation(found), []
    if values["task"] in TASKS and degradation is not None:
        not_offered.append("a degradation of its own")
        degradation = None
    # Checked as simulated in any case: only then the placeholder needs no mask.
    request = RestorationRequest(
        image=_PLACEHOLDER, simulate=True, degradation=degradation, **values
    )
    if found.get("noise_told") is False:
        request = replace(request, noise_sigma=None)
    if blur_std is not None:
        replace(request, simulate=simulate, blur_std=blur_std)  # checks it
    if found.get("keep_known") is False:
        not_offered.append("pictures straight from the decoder (--no-keep-known)")
    if found.get("version") != __version__:
        not_offered.append("another version of SILO")
    if found.get("clamp") is not None:
        not_offered.append("a bound on the guidance gradient (--clamp)")
    if found.get("stopped_after") is not None:
        not_offered.append("estimates of a run that was stopped")
    dtype = found["dtype"] if found.get("dtype") in _DTYPES else None
    return SavedSettings(request, simulate, blur_std, prior, operator, not_offered, dtype)


def _degradation(found: dict[str, Any]) -> Degradation | None:
    """Read what degraded the picture in place of the task's degradation, or for an own task."""
    described = found.get("degradation")
    try:
        return None if described is None else Degradation.from_dict(described)
    except (OperatorError, TypeError) as error:
        raise BadRequest(
            "The settings in this file are damaged: its degradation is not of its kind."
        ) from error


def _weights(found: dict[str, Any], kind: str) -> Weights:
    """Read a prior or an operator: names to compare with those that are here, never to open."""
    match found.get(kind):
        case {"name": str(name), "revision": None | str() as revision}:
            weights = Weights(name, revision)
            if len(str(weights)) <= MAX_NAME and str(weights).isprintable():
                return weights
    raise BadRequest(f"The settings in this file are damaged: they do not name its {kind}.")


def _value(found: dict[str, Any], name: str, kind: type) -> Any:
    value = found.get(name)
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not kind:
        raise BadRequest(
            f"The settings in this file are damaged: {name} is missing or not of its kind."
        )
    return value
