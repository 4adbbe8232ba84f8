"""What a photo shows of its damage, and how it is brought to what its operator was trained for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from operators.blur import GaussianBlur
from operators.degradation import Degradation
from silo.blur import estimate_blur
from silo.images import Fit
from silo.jpeg_quality import HIGHEST, find_quality

# A blur that is found to be within these multiples of what is expected is taken to be just that:
# the estimate is no closer, and restorations are no better.
SAME_BLUR = 0.87, 1.15
CLOSE = 0.05  # of what is expected: operators do not mind
MAX_KERNEL = 255  # px
LEAST_STD = 0.1  # px; blurs nothing
SHARP = 0.75  # px; photos that are not blurred are found to have less
LARGEST_FOUND = 4.5  # px; a stronger blur is better told from a smaller picture
HARDLY_BLURRED = "The photo hardly looks blurred, so little of it is changed."
NOT_COMPRESSED = (
    "The photo does not look compressed as a JPEG file of low quality, or was scaled or cropped "
    "since; its restoration may lose detail."
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
    picture, fit = place(None)
    if expected.kind == "jpeg":
        return _match_quality(photo, picture, fit, expected)
    if expected.kind == "gaussian_blur":
        if blur_std is not None:
            return _match_blur(picture, fit, place, expected, least_side, blur_std)
        std, expected_std = _find_blur(photo, picture, fit), _blur(expected).std / fit.scale
        if std is None or SAME_BLUR[0] <= std / expected_std <= SAME_BLUR[1]:
            return _match_blur(picture, fit, place, expected, least_side, expected_std)
        matched = _match_blur(picture, fit, place, expected, least_side, std)
        if std < SHARP:
            return replace(matched, doubt=HARDLY_BLURRED)
        found = f"Blur of {std:.1f} pixels (standard deviation) was found in the photo."
        return replace(matched, found=found)
    as_it_came = expected if expected.kind == "super_resolution" else None
    return Matched(picture, fit, expected, as_it_came=as_it_came)


def _match_quality(photo: Tensor, picture: Tensor, fit: Fit, expected: Degradation) -> Matched:
    quality = find_quality(photo)
    if quality is None:  # a large one shows no blocks once it is scaled down: all of it is kept
        kept = replace(expected, parameters={"quality": HIGHEST})
        return Matched(picture, fit, expected, doubt=NOT_COMPRESSED, as_it_came=kept)
    degradation, found = replace(expected, parameters={"quality": quality}), None
    if degradation != expected:
        found = f"The photo was found to be compressed with a JPEG quality of {quality}."
    return Matched(picture, fit, degradation, found=found, as_it_came=degradation)


def _find_blur(photo: Tensor, picture: Tensor, fit: Fit) -> float | None:
    """The std of a photo's blur in its pixels, where it can be told."""
    found = estimate_blur(photo)
    if found is not None and found < LARGEST_FOUND or fit.scale == 1:
        return found
    scaled = estimate_blur(fit.cut(picture))
    return None if scaled is None else scaled / fit.scale


def _match_blur(
    picture: Tensor, fit: Fit, place: Place, expected: Degradation, least_side: int, std: float
) -> Matched:
    blur = _blur(expected)
    excess = std * fit.scale / blur.std
    if excess > 1 + CLOSE:
        picture, fit = place(max(round(max(fit.scaled) / excess), least_side))
    missing = None
    if std * fit.scale < (1 - CLOSE) * blur.std:
        missing = replace(blur, std=math.sqrt(blur.std**2 - (std * fit.scale) ** 2))
    degradation, came = _blur_of(expected, std * fit.scale), _blur_of(expected, std)
    return Matched(picture, fit, degradation, missing, as_it_came=came)


def _blur(degradation: Degradation) -> GaussianBlur:
    operator = degradation.operator()
    assert isinstance(operator, GaussianBlur)
    return operator


def _blur_of(expected: Degradation, std: float) -> Degradation:
    """A Gaussian blur of another std, with a kernel that holds it."""
    std = max(std, LEAST_STD)
    size = max(_blur(expected).kernel_size, min(2 * math.ceil(3 * std) + 1, MAX_KERNEL))
    return replace(expected, parameters={"kernel_size": size, "std": std})
