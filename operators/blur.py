"""Gaussian and motion blur: convolution with a fixed kernel after reflection padding."""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from operators.consistency import CLEANING_TRUST, DRAFT_TRUST, LARGE, explain
from operators.errors import OperatorError
from operators.mirroring import mirror_index
from operators.pixel_operator import PixelOperator, Range

KernelSize = Annotated[int, Range(1, 255, odd=True)]

# A frequency is lost where a blur leaves less than this of it: in photos that is less than noise of
# 0.001 in [0, 1]. Where fewer than the least share are lost, they tell too little.
LOST, LEAST_LOST = 0.03, 0.01


def convolve_reflected(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve x (B, C, H, W) with a kernel of odd sides after reflection padding, by FFT."""
    below, beside = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded, sides = _mirrored(x, below, beside)
    height, width = padded.shape[-2:]
    spectrum = torch.fft.rfft2(kernel.to(x), s=sides)
    full = torch.fft.irfft2(torch.fft.rfft2(padded, s=sides) * spectrum, s=sides)
    # The first 2 * radius rows and columns mix both ends of the picture (the FFT is circular).
    return full[..., 2 * below : height, 2 * beside : width]


def convolve_reflected_adjoint(y: Tensor, kernel: Tensor) -> Tensor:
    """The exact adjoint of `convolve_reflected`: correlate, then fold the padding back."""
    height, width = y.shape[-2:]
    below, beside = kernel.shape[0] // 2, kernel.shape[1] // 2
    placed = F.pad(y, (2 * beside, 0, 2 * below, 0))
    sides = _fast(placed.shape[-2]), _fast(placed.shape[-1])
    spectrum = torch.fft.rfft2(kernel.to(y), s=sides)
    padded = torch.fft.irfft2(torch.fft.rfft2(placed, s=sides) * spectrum.conj(), s=sides)
    padded = padded[..., : placed.shape[-2], : placed.shape[-1]]
    rows = mirror_index(height, below).to(y.device)
    columns = mirror_index(width, beside).to(y.device)
    folded = y.new_zeros((*y.shape[:-2], height, padded.shape[-1])).index_add(-2, rows, padded)
    return torch.zeros_like(y).index_add(-1, columns, folded)


def _mirrored(x: Tensor, below: int, beside: int) -> tuple[Tensor, tuple[int, int]]:
    """X (B, C, H, W), padded by mirroring on all sides, and sides that make its FFT fast."""
    rows = mirror_index(x.shape[-2], below).to(x.device)
    columns = mirror_index(x.shape[-1], beside).to(x.device)
    padded = x.index_select(-2, rows).index_select(-1, columns)
    return padded, (_fast(padded.shape[-2]), _fast(padded.shape[-1]))


def _fast(size: int) -> int:
    """A length from `size` on of which an FFT is fast: others may hold large prime factors."""
    return size + -size % 64


def power_spectrum(x: Tensor, sides: tuple[int, int]) -> Tensor:
    """The power of x (..., H, W) at the frequencies of an `rfft2` of these sides.

    That of white noise is its variance. x is faded out at the rim: a picture's ends do not meet,
    and would look like detail.
    """
    window = torch.outer(
        *(torch.hann_window(n, dtype=x.dtype, device=x.device) for n in x.shape[-2:])
    )
    mean = (x * window).sum(dim=(-2, -1), keepdim=True) / window.sum()
    return torch.fft.rfft2((x - mean) * window, s=sides).abs().square() / window.square().sum()


class _Blur(PixelOperator):
    """A convolution with `kernel()` after reflection padding."""

    @abstractmethod
    def kernel(self) -> Tensor:
        """The point-spread function (kernel_size, kernel_size), float64, of sum 1."""

    def draft(self, x: Tensor, y: Tensor, noise_sigma: float) -> Tensor | None:
        """As `PixelOperator.draft`: sharper than is safe, with ripples.

        None, too, where it is beyond black and white so far that it explains y less well than x
        does. Then it was not this that blurred y.
        """
        draft = explain(self, x, y, noise_sigma, trust=DRAFT_TRUST)
        before, after = ((y - self.forward(each)).square().mean() for each in (x, draft))
        return draft if after < before else None

    def unexplainable(self, y: Tensor) -> float:
        """What y has of the frequencies that the blur loses; see `PixelOperator`."""
        kernel = self.kernel().to(y)
        if min(y.shape[-2:]) < len(kernel):  # too little to tell frequencies apart
            return 0.0
        sides = _fast(y.shape[-2]), _fast(y.shape[-1])
        lost = torch.fft.rfft2(kernel, s=sides).abs() < LOST
        if lost.double().mean() < LEAST_LOST:
            return 0.0
        return float(power_spectrum(y, sides)[..., lost].mean().sqrt()) / 2

    def _apply(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return convolve_reflected(x, self.kernel())

    def _transpose(self, y: Tensor, mask: Tensor | None) -> Tensor:
        return convolve_reflected_adjoint(y, self.kernel())


@dataclass(frozen=True)
class GaussianBlur(_Blur):
    """Gaussian blur; `std` in pixels. The paper's: 61x61, std 3, reflection padding."""

    kernel_size: KernelSize = 61
    std: Annotated[float, Range(0.1, 100.0)] = 3.0

    def kernel(self) -> Tensor:
        """The sampled Gaussian (kernel_size, kernel_size), float64, of sum 1."""
        radius = self.kernel_size // 2
        offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
        profile = torch.exp(-(offset**2) / (2 * self.std**2))
        return torch.outer(profile, profile) / profile.sum() ** 2

    def clean(self, y: Tensor, noise_sigma: float, expected: float) -> Tensor:
        """As `PixelOperator.clean`: the blur of a picture that explains y, found from y itself.

        Of noise it leaves as little as a blur does; a shake leaves more.
        """
        return self.forward(explain(self, y, y, noise_sigma, trust=CLEANING_TRUST))

    def start(self, right: Tensor, spread: Tensor, noise: Tensor) -> Tensor:
        """As `PixelOperator.start`: the solution, but for the rim, by an FFT.

        A mirrored picture that is blurred is mirrored, too, as none is that is shaken.
        """
        below, beside = (side // 2 for side in self.kernel().shape)
        padded, sides = _mirrored(right, below, beside)
        power = torch.fft.rfft2(self.kernel().to(right), s=sides).abs().square()
        spectrum = torch.fft.rfft2(padded, s=sides) / (spread * power + noise)
        height, width = right.shape[-2:]
        found = torch.fft.irfft2(spectrum, s=sides)
        return found[..., below : below + height, beside : beside + width]

    def solve(self, right: Tensor, spread: Tensor, noise: Tensor) -> Tensor:
        """As `PixelOperator.solve`; of large pictures just where it starts."""
        if right[0, 0].numel() <= LARGE:
            return super().solve(right, spread, noise)
        return self.start(right, spread, noise)


@dataclass(frozen=True)
class MotionBlur(_Blur):
    """Motion along a straight line of `length` pixels at `angle` degrees.

    The angle runs counter-clockwise from the rightward axis; `length` is at most `kernel_size`.
    """

    kernel_size: KernelSize = 61
    length: Annotated[int, Range(1, 255)] = 31
    angle: Annotated[float, Range(-180.0, 180.0)] = 45.0

    def __post_init__(self) -> None:
        """Check the parameters, and that the line fits in the kernel."""
        super().__post_init__()
        if self.length > self.kernel_size:
            raise OperatorError(
                f"length must be at most kernel_size ({self.kernel_size}), not {self.length}."
            )

    def kernel(self) -> Tensor:
        """The line (kernel_size, kernel_size), float64, of sum 1: one sample a pixel of length."""
        return _along_line(self.length, 1.0, self.angle, self.kernel_size // 2)

    def preconditioner(
        self, right: Tensor, spread: Tensor, noise: Tensor
    ) -> Callable[[Tensor], Tensor]:
        """As `PixelOperator.preconditioner`: the inverse, were there nothing beyond the rim.

        Of a Gaussian blur it saves no iterations: its solution starts near enough.
        """
        kernel, (height, width) = self.kernel().to(right), right.shape[-2:]
        sides = _fast(height + kernel.shape[0] // 2), _fast(width + kernel.shape[1] // 2)
        power = spread * torch.fft.rfft2(kernel, s=sides).abs().square() + noise

        def precondition(v: Tensor) -> Tensor:
            solved = torch.fft.irfft2(torch.fft.rfft2(v, s=sides) / power, s=sides)
            return solved[..., :height, :width]

        return precondition


@dataclass(frozen=True)
class Echoes(_Blur):
    """So many equal copies of the picture, `spacing` pixels apart at `angle` degrees.

    What a shake becomes by it is a longer one: of so many times the length that it had, where that
    was the spacing.
    """

    count: Annotated[int, Range(1, 255)]
    spacing: Annotated[float, Range(1.0, 255.0)]
    angle: Annotated[float, Range(-180.0, 180.0)]

    def kernel(self) -> Tensor:
        """One sample a copy, (side, side), float64, of sum 1."""
        radius = math.ceil((self.count - 1) / 2 * self.spacing) + 1
        return _along_line(self.count, self.spacing, self.angle, radius)


def _along_line(count: int, spacing: float, angle: float, radius: int) -> Tensor:
    """Samples along a line through the middle, (2 radius + 1, 2 radius + 1), float64, of sum 1.

    Each sample is shared bilinearly among the four pixels around it, which keeps slanted lines
    smooth and axis-aligned ones of odd length exact boxes.
    """
    along = spacing * (torch.arange(count, dtype=torch.float64) - (count - 1) / 2)
    radians = math.radians(angle)
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)[:, None]
    # Rows grow downwards, hence the sign. Each weight is a hat function, one pixel wide.
    rows = (1 - (offset + math.sin(radians) * along).abs()).clamp(min=0)
    columns = (1 - (offset - math.cos(radians) * along).abs()).clamp(min=0)
    return rows @ columns.T / count
