"""The base class of every pixel-space degradation A, and the declaration of its parameters."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, ClassVar, get_type_hints

import torch
from torch import Tensor

from operators.consistency import LARGE, explain, solve
from operators.errors import OperatorError
from operators.wiener import without_noise


@dataclass(frozen=True)
class Range:
    """The values a parameter may take: `Annotated[int, Range(1, 100)]`, both ends included."""

    low: float
    high: float
    odd: bool = False

    def check(self, name: str, value: Any, number: type) -> int | float:
        """Return `value` as `number` (int or float).

        Raises:
            OperatorError: it is not such a number or outside the range; names the parameter.
        """
        is_number = issubclass(type(value), Integral if number is int else Real)
        valid = is_number and not isinstance(value, bool) and self.low <= value <= self.high
        if not valid or (self.odd and value % 2 == 0):
            noun = "a number" if number is float else "an odd number" if self.odd else "an integer"
            raise OperatorError(
                f"{name} must be {noun} from {self.low} to {self.high}, not {value!r}."
            )
        return number(value)


@dataclass(frozen=True)
class Text:
    """The texts a parameter may be: `Annotated[str, Text("[a-z]+")]`, a pattern for the whole."""

    pattern: str

    def check(self, name: str, value: Any, kind: type) -> str:
        """Return `value`.

        Raises:
            OperatorError: it is no text that the pattern matches; names the parameter.
        """
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            raise OperatorError(f"{name} must be a text like {self.pattern}, not {value!r}.")
        return value


def check_images(images: Tensor) -> None:
    """Raise OperatorError unless `images` is a floating-point tensor (B, 3, H, W)."""
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise OperatorError(f"Pass images of shape (B, 3, H, W), not {tuple(images.shape)}.")
    if not images.is_floating_point():
        raise OperatorError(f"Pass floating-point images in [-1, 1], not {images.dtype}.")


@dataclass(frozen=True)
class PixelOperator(ABC):
    """A noiseless degradation A of images (B, 3, H, W) in [-1, 1].

    A subclass is a frozen dataclass whose fields are its parameters, each annotated with a `Range`
    or a `Text`; other values raise OperatorError. It implements `_apply` and, when linear,
    `_transpose`.
    """

    linear: ClassVar[bool] = True
    needs_mask: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check every parameter against its declared range and store it as its declared type."""
        hints = get_type_hints(type(self), include_extras=True)
        for parameter in fields(self):
            hint = hints[parameter.name]
            (allowed,) = hint.__metadata__
            value = allowed.check(parameter.name, getattr(self, parameter.name), hint.__origin__)
            object.__setattr__(self, parameter.name, value)

    @property
    def random(self) -> bool:
        """Whether A draws random numbers, apart from a mask, which is passed."""
        return False

    @property
    def downscale(self) -> int:
        """How many times smaller the sides of y = A(x) are than those of x."""
        return 1

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The noiseless measurement A(x), differentiable in x where the maths allows.

        Args:
            x: images (B, 3, H, W) in [-1, 1].
            mask: (1 or B, 1, H, W), 1 = known, 0 = hole; for the kinds with `needs_mask`, and only
                for them.
            generator: CPU generator for a kind that is `random`; None: one of seed 0.

        Returns:
            (B, 3, H / downscale, W / downscale).

        Raises:
            OperatorError: a wrong shape, a size the factor does not divide, or a missing,
                superfluous or wrongly sized mask.
        """
        check_images(x)
        height, width = x.shape[-2:]
        if height % self.downscale or width % self.downscale:
            raise OperatorError(
                f"The image is {width}x{height} pixels: crop or pad it to multiples of "
                f"{self.downscale}, the downscaling factor."
            )
        self._refuse_needless_mask(mask)
        return self._apply(x, mask)

    def adjoint(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """The exact adjoint A^T y, so that <A x, y> = <x, A^T y> for every x and y.

        Args:
            y: (B, 3, h, w), of the shape A produces.
            mask: as in `forward`.

        Returns:
            (B, 3, h * downscale, w * downscale).

        Raises:
            OperatorError: A is not linear, or as in `forward`.
        """
        if not self.linear:
            raise OperatorError(
                f"{type(self).__name__} is not linear and has no adjoint: use another sampler."
            )
        check_images(y)
        self._refuse_needless_mask(mask)
        return self._transpose(y, mask)

    def to_full_size(self, y: Tensor) -> Tensor:
        """The measurement at the size of x, (B, 3, H, W): what the autoencoder sees."""
        check_images(y)
        return y

    def explain(self, x: Tensor, y: Tensor, noise_sigma: float) -> Tensor:
        """The picture near x that explains y: what is measured is kept, what is painted in, too.

        Args:
            x: restored pictures (B, 3, H, W) in [-1, 1].
            y: the measurement (1 or B, 3, H / downscale, W / downscale).
            noise_sigma: std of its noise in [0, 1] units.

        Returns:
            (B, 3, H, W) in [-1, 1]; x itself for a kind that is not linear, unless it knows
            better, and for those with a mask, whose known pixels can be put back as they are.
        """
        return explain(self, x, y, noise_sigma) if self.linear and not self.needs_mask else x

    def draft(self, x: Tensor, y: Tensor, noise_sigma: float) -> Tensor | None:
        """A picture that explains more of y than looks well, for the autoencoder to paint anew.

        What an operator in latent space gets wrong of A, A itself puts right so before `explain`
        does. The arguments are those of `explain`, of one picture.

        Returns:
            (1, 3, H, W) in [-1, 1]; None for kinds whose restorations gain nothing by it.
        """
        return None

    def clean(self, y: Tensor, noise_sigma: float, expected: float) -> Tensor:
        """A noisy measurement with less noise, for an operator that expects less of it.

        Args:
            y: the measurement (1, 3, h, w) in [-1, 1].
            noise_sigma: std of its noise in [0, 1] units.
            expected: that of the noise that the operator expects, which is less.

        Returns:
            (1, 3, h, w); y itself for a kind that is not linear, and for those with a mask.
        """
        return without_noise(y, noise_sigma) if self.linear and not self.needs_mask else y

    def solve(self, right: Tensor, spread: Tensor, noise: Tensor) -> Tensor:
        """The v with (spread A A^T + noise) v = right, (B, 3, h, w), about; for linear kinds.

        Args:
            right: (B, 3, h, w), of the shape A produces.
            spread: (B, 1, 1, 1), 0 or more.
            noise: (B, 1, 1, 1), above 0.
        """
        # In single precision rounding decides where iterations end, and so do numbers of threads;
        # but of large pictures double takes twice the seconds and gigabytes.
        exact = right.double() if right[0, 0].numel() <= LARGE else right
        spread, noise = spread.to(exact), noise.to(exact)
        found = solve(
            lambda v: spread * self.forward(self.adjoint(v)) + noise * v,
            exact,
            self.start(exact, spread, noise),
            self.preconditioner(exact, spread, noise),
        )
        return found.to(right)

    def start(self, right: Tensor, spread: Tensor, noise: Tensor) -> Tensor:
        """Where `solve` starts from: the nearer to the solution, the sooner it is there."""
        return torch.zeros_like(right)

    def preconditioner(
        self, right: Tensor, spread: Tensor, noise: Tensor
    ) -> Callable[[Tensor], Tensor]:
        """About the inverse of what `solve` inverts, symmetric, too: it takes fewer iterations."""
        return lambda v: v

    def unexplainable(self, y: Tensor) -> float:
        """How much y has of what A lets nothing of through: noise, or detail A never touched.

        Args:
            y: one measurement (1, 3, h, w) in [-1, 1].

        Returns:
            The standard deviation of white noise with as much of it, in [0, 1] units; 0 for a kind
            that lets something of everything through.
        """
        return 0.0

    def draw_mask(self, height: int, width: int, generator: torch.Generator) -> Tensor | None:
        """A mask (1, 1, height, width), 1 = known, 0 = hole; None for a kind that takes none.

        Args:
            height: rows, in pixels.
            width: columns, in pixels.
            generator: CPU generator, the only source of randomness.
        """
        return None

    @abstractmethod
    def _apply(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """A(x); x and its size are checked."""

    def _transpose(self, y: Tensor, mask: Tensor | None) -> Tensor:
        """A^T y, y is checked; a symmetric A needs no other."""
        return self._apply(y, mask)

    def _refuse_needless_mask(self, mask: Tensor | None) -> None:
        if mask is not None and not self.needs_mask:
            raise OperatorError(f"{type(self).__name__} takes no mask: leave the mask out.")
