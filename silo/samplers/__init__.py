"""The posterior samplers by name, each turning a `Problem` into a stream of `Step`s."""

from collections.abc import Mapping
from types import MappingProxyType

from silo.samplers.problem import Problem, Sampler, Step
from silo.samplers.silo import silo

SAMPLERS: Mapping[str, Sampler] = MappingProxyType({"silo": silo})

__all__ = ["SAMPLERS", "Problem", "Sampler", "Step"]
