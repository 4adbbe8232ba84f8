"""A degradation of one's own: a function of a batch of images, known by the hash of its file.

A description names the function and never brings it along: describing, loading and restoring run
nothing. Degrading a picture needs the function, which only `register` makes known.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from operators.errors import OperatorError
from operators.pixel_operator import PixelOperator, Text, check_images

FUNCTION = "function"  # the kind of such a degradation

_REGISTERED: dict[tuple[str, str], Callable[..., Tensor]] = {}


@dataclass(frozen=True)
class FunctionOperator(PixelOperator):
    """A = a Python function of images (B, 3, H, W) in [-1, 1], which keeps their shape.

    Attributes:
        name: the function's.
        sha256: of the file that defines it, in hexadecimal.
    """

    linear: ClassVar[bool] = False

    name: Annotated[str, Text(r"[A-Za-z_][A-Za-z_0-9]{0,99}")]
    sha256: Annotated[str, Text(r"[0-9a-f]{64}")]

    @property
    def random(self) -> bool:
        """Whether the function draws random numbers: it takes a generator."""
        return takes_generator(self._function())

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """As `PixelOperator.forward`; raises OperatorError for whatever the function raises."""
        check_images(x)
        self._refuse_needless_mask(mask)
        function = self._function()
        seeded = torch.Generator().manual_seed(0) if generator is None else generator
        try:
            return function(x, seeded) if takes_generator(function) else function(x)
        except torch.OutOfMemoryError:  # the caller may do it again in less memory
            raise
        except (Exception, SystemExit) as error:
            raise OperatorError(
                f"The degradation {self.name} fails on images {tuple(x.shape)}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _apply(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.forward(x, mask)

    def _function(self) -> Callable[..., Tensor]:
        function = _REGISTERED.get((self.name, self.sha256))
        if function is None:
            raise OperatorError(
                f"The degradation is the function {self.name} of a file with the SHA-256 "
                f"{self.sha256[:12]}...; no code is run unless you name it: pass that file with "
                f"--degradation FILE.py:{self.name}."
            )
        return function


def register(function: Callable[..., Tensor], name: str, sha256: str) -> FunctionOperator:
    """Make a function known to this process, and return the operator that runs it.

    Raises:
        OperatorError: it is no function of (images) or of (images, generator).
    """
    takes_generator(function)
    operator = FunctionOperator(name, sha256)
    _REGISTERED[name, sha256] = function
    return operator


def takes_generator(function: Callable[..., Tensor]) -> bool:
    """Whether a function wants a `torch.Generator` after the images.

    Raises:
        OperatorError: it takes neither (images) nor (images, generator).
    """
    parameters = inspect.signature(function).parameters.values()
    wanted = [each for each in parameters if each.default is each.empty]
    if len(wanted) not in (1, 2):
        raise OperatorError(
            "A degradation is a function of (images) or of (images, generator), not of "
            f"{inspect.signature(function)}."
        )
    return len(wanted) == 2
