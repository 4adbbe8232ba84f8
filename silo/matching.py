"""What a photo shows of its damage, and how it is brought to what its operator was trained for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from operators.blur import GaussianBlur
from operators.degradation import Degradation
from silo.blur import LEAST_SIDE, estimate_blur
from silo.images import Fit, to_pil
from silo.jpeg_quality import HIGHEST, find_quality
from silo.noise import estimate_noise

# A blur that is found to be within these multiples of what is expected is taken to be just that:
# the estimate is no closer, and restorations are no better.
SAME_BLUR = 0.87, 1.15
CLOSE = 0.05  # of what is expected: operators do not mind
LEAST_STD, LARGEST_STD, MAX_KERNEL = 0.1, 100.0, 255  # px; the least blurs nothing
KERNEL_STDS = 5  # on each side, of a kernel
LEAST_KERNEL_STDS = 4  # of both sides; a kernel that is cut off before is no Gaussian to be found
SHARP = 0.75  # px; photos that are not blurred are found to have less
LEAST_NOISE = 0.01  # in [0, 1]
LARGEST_FOUND = 4.5  # px; a stronger blur is better told from a smaller picture
HARDLY_BLURRED = "The photo hardly looks blurred: little of it is left to restore."
HARDLY_NOISY = "The photo shows hardly any noise: little of it is changed."
UNTOLD = "The photo is too small or too flat to tell how blurred it is: {:g} pixels are assumed."
NOT_COMPRESSED = (
    "The photo does not show how it was compressed as a JPEG file: it hardly was, or it was scaled "
    "or cropped since. Little of it is changed."
)

Place = Callable[[int | None], tuple[Tensor, Fit]]


@dataclass(frozen=True)
class Matched:
    """A photo on the grid that the prior works on, and its damage there.

    Attributes:
        picture: (1, 3, h, w) in [-1, 1].
        fit: how it went on the grid.
        degradation: what damaged it, by what it shows.
        missing: the blur that it lacks of what its operator was trained for; None for none.
        found: what it was found to show, if that is not what is expected; a sentence for the user.
        doubt: what speaks against its having been damaged as is said; a sentence, too.
        as_it_came: what damaged it at its own size; None for kinds that this is not told of.
    """

    picture: Tensor
    fit: Fit
    degradation: Degradation
    missing: GaussianBlur | None = None
    found: str | None = None
    doubt: str | None = None
    as_it_came: Degradation | None = None


def match(
    photo: Tensor,
    place: Place,
    expected: Degradation,
    *,
    least_side: int,
    blur_std: float | None = None,
) -> Matched:
    """Put a photo on the grid, by what it shows of a blur or of JPEG compression.

    A photo that is blurred more than is expected is scaled down until it is not, and has lost
    nothing by it. What is blurred less has to be blurred further for the operator, as `missing`
    tells. To what JPEG compression has left, an operator does not mind the quality.

    Args:
        photo: (1, 3, H, W) in [-1, 1].
        place: puts the photo on the grid, with a longer side of at most so many pixels, if any.
        expected: what the operator was trained for.
        least_side: it is not scaled down further.
        blur_std: std of its Gaussian blur, in pixels of the photo; None to estimate it.
    """
    if expected.kind == "gaussian_blur":
        return _match_blur(photo, place, expected, least_side, blur_std)
    picture, fit = place(None)
    if expected.kind == "jpeg":
        return _match_quality(photo, picture, fit, expected)
    if expected.kind == "denoising":
        return _match_noise(photo, picture, fit, expected)
    as_it_came = expected if expected.kind == "super_resolution" else None
    return Matched(picture, fit, expected, as_it_came=as_it_came)


def _match_noise(photo: Tensor, picture: Tensor, fit: Fit, expected: Degradation) -> Matched:
    clean = estimate_noise(to_pil(photo)) < LEAST_NOISE
    # Scaling averages noise, and leaves as much of it as shows.
    here = expected if fit.scale == 1 else expected.with_noise(estimate_noise(to_pil(picture)))
    doubt = HARDLY_NOISY if clean else None
    return Matched(picture, fit, here, doubt=doubt, as_it_came=expected)


def _match_quality(photo: Tensor, picture: Tensor, fit: Fit, expected: Degradation) -> Matched:
    quality = find_quality(photo)
    if quality is None:
        kept = replace(expected, parameters={"quality": HIGHEST})
        return Matched(picture, fit, kept, doubt=NOT_COMPRESSED, as_it_came=kept)
    came, found = replace(expected, parameters={"quality": quality}), None
    if came != expected:
        found = f"The photo was found to be compressed with a JPEG quality of {quality}."
    # Once it is scaled down there are no blocks of which something could be left open.
    here = came if fit.scale == 1 else replace(expected, parameters={"quality": HIGHEST})
    return Matched(picture, fit, here, found=found, as_it_came=came)


def _match_blur(
    photo: Tensor,
    place: Place,
    expected: Degradation,
    least_side: int,
    told: float | None,
) -> Matched:
    picture, fit = place(None)
    blur = expected.operator()
    assert isinstance(blur, GaussianBlur)
    std, is_untold = told, False
    if told is None and blur.kernel_size >= LEAST_KERNEL_STDS * blur.std:
        std = _find_blur(photo)
        is_untold = std is None
    is_found = told is None and std is not None
    if std is None or (is_found and _is_same(std * fit.scale / blur.std)):
        std, is_found = blur.std / fit.scale, False
    excess = std * fit.scale / blur.std
    if excess > 1 + CLOSE and std * fit.scale > SHARP:
        picture, fit = place(max(round(max(fit.scaled) / excess), least_side))
    here = std * fit.scale
    missing = None
    if here < (1 - CLOSE) * blur.std:
        missing = _blur(math.sqrt(blur.std**2 - here**2))
    matched = Matched(
        picture,
        fit,
        expected if math.isclose(here, blur.std) else _described(expected, _blur(here)),
        missing,
        as_it_came=_described(expected, _blur(std)),
    )
    if not is_found:
        return replace(matched, doubt=UNTOLD.format(blur.std) if is_untold else None)
    if std < SHARP:  # what is not noise by what it shows is not taken for noise
        here, came = matched.degradation.with_noise(0), _described(expected, _blur(std))
        return replace(
            matched, degradation=here, doubt=HARDLY_BLURRED, as_it_came=came.with_noise(0)
        )
    found = f"Blur of {std:.1f} pixels (standard deviation) was found in the photo."
    return replace(matched, found=found)


def _find_blur(photo: Tensor) -> float | None:
    """The std of a photo's blur in its pixels, where it can be told; a strong one once scaled."""
    std = estimate_blur(photo)
    if std is None or std < LARGEST_FOUND or min(photo.shape[-2:]) < 2 * LEAST_SIDE:
        return std
    scaled = _find_blur(F.interpolate(photo, scale_factor=0.5, mode="bicubic", antialias=True))
    return std if scaled is None else 2 * scaled


def _is_same(ratio: float) -> bool:
    return SAME_BLUR[0] <= ratio <= SAME_BLUR[1]


def _blur(std: float) -> GaussianBlur:
    """A Gaussian blur with a kernel that holds all of it, as far as kernels reach."""
    std = min(max(std, LEAST_STD), LARGEST_STD)
    return GaussianBlur(kernel_size=min(2 * math.ceil(KERNEL_STDS * std) + 1, MAX_KERNEL), std=std)


def _described(expected: Degradation, blur: GaussianBlur) -> Degradation:
    return replace(expected, parameters=asdict(blur))
