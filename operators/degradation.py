"""Degradation: the one JSON-able description of a pixel-space operator A and its noise level."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from operators.errors import OperatorError
from operators.function import FUNCTION, FunctionOperator
from operators.pixel import KINDS
from operators.pixel_operator import PixelOperator, Range

_CLASSES: Mapping[str, type[PixelOperator]] = {**KINDS, FUNCTION: FunctionOperator}


@dataclass(frozen=True)
class Degradation:
    """How a picture was degraded: y = A(x) + n.

    Attributes:
        kind: which A, a key of `operators.pixel.KINDS`, or "function" for one's own.
        parameters: the parameters of A; defaults are filled in, and the mapping is read-only.
        noise_sigma: standard deviation of n for images in [0, 1] (twice that in [-1, 1]), 0 to 1.

    Raises:
        OperatorError: an unknown kind or parameter, a missing parameter, or a value out of range.
    """

    kind: str
    parameters: Mapping[str, float | int | str] = field(default_factory=dict)
    noise_sigma: float = 0.01

    def __post_init__(self) -> None:
        """Check every value and fill in the defaults of the parameters."""
        if not isinstance(self.kind, str) or self.kind not in _CLASSES:
            raise OperatorError(f"Unknown kind {self.kind!r}: choose one of {', '.join(KINDS)}.")
        if not isinstance(self.parameters, Mapping):
            raise OperatorError(f"parameters must map names to values, not be {self.parameters!r}.")
        declared = fields(_CLASSES[self.kind])
        known = ", ".join(each.name for each in declared) or "no parameters"
        names = {each.name for each in declared}
        for name in self.parameters:
            if name not in names:
                raise OperatorError(f"Unknown parameter {name!r}: {self.kind} takes {known}.")
        for each in declared:
            if each.default is MISSING and each.name not in self.parameters:
                raise OperatorError(f"{self.kind} needs the parameter {each.name!r}.")
        operator = self.operator()
        complete = {each.name: getattr(operator, each.name) for each in declared}
        object.__setattr__(self, "parameters", MappingProxyType(complete))
        noise_sigma = Range(0.0, 1.0).check("noise_sigma", self.noise_sigma, float)
        object.__setattr__(self, "noise_sigma", noise_sigma)

    def __hash__(self) -> int:
        """Hash of the values; the generated one fails on a mapping."""
        return hash((self.kind, tuple(self.parameters.items()), self.noise_sigma))

    def __reduce__(self) -> tuple[type["Degradation"], tuple[str, dict[str, Any], float]]:
        """Pickle and copy by value, as a read-only mapping cannot be pickled."""
        return type(self), (self.kind, dict(self.parameters), self.noise_sigma)

    def to_dict(self) -> dict[str, Any]:
        """The description as JSON-able values; `from_dict` is the inverse."""
        return {
            "kind": self.kind,
            "parameters": dict(self.parameters),
            "noise_sigma": self.noise_sigma,
        }

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> "Degradation":
        """The degradation that `to_dict` described; left-out values take their defaults.

        Raises:
            OperatorError: an unknown entry, no kind, or as the class.
        """
        if not isinstance(description, Mapping):
            raise OperatorError(f"A degradation is described by a mapping, not {description!r}.")
        known = [each.name for each in fields(cls)]
        for name in description:
            if name not in known:
                raise OperatorError(f"Unknown entry {name!r}: use {', '.join(known)}.")
        if "kind" not in description:
            raise OperatorError(f"The kind is missing: choose one of {', '.join(KINDS)}.")
        return cls(**description)

    @property
    def needs_mask(self) -> bool:
        """Whether A hides pixels, and a mask says which."""
        return _CLASSES[self.kind].needs_mask

    @property
    def linear(self) -> bool:
        """Whether A is linear, so that it has an adjoint."""
        return _CLASSES[self.kind].linear

    def operator(self) -> PixelOperator:
        """The pixel-space operator A, without the noise."""
        parameters: dict[str, Any] = dict(self.parameters)
        return _CLASSES[self.kind](**parameters)

    def with_noise(self, noise_sigma: float) -> "Degradation":
        """The same A with another noise level, in [0, 1] units."""
        return replace(self, noise_sigma=noise_sigma)
