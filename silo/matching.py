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
from silo.jpeg_quality import find_quality

# A blur that is found to be within these multiples of what is expected is taken to be just that:
# the estimate is no closer, and restorations are no better.
SAME_BLUR = 0.87, 1.15
CLOSE = 0.05  # of what is expected: operators do not mind
LEAST_STD = 0.1  # px; blurs nothing
SHARP = 0.75  # px, of what is worked on; photos that are not blurred are found to have less
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
    """

    picture: Tensor
    fit: Fit
    degradation: Degradation
    missing: GaussianBlur | None = None
    found: str | None = None
    doubt: str | None = None


def match(
    place: Place, expected: Degradation, *, least_side: int, blur_std: float | None = None
) -> Matched:
    """Put a photo on the grid, by what it shows of a blur or of JPEG compression.

    A photo that is blurred more than is expected is scaled down until it is not, and has lost
    nothing by it. What is blurred less has to be blurred further for the operator, as `missing`
    tells. To what JPEG compression has left, an operator does not mind the quality.

    Args:
        place: puts the photo on the grid, with a longer side of at most so many pixels, if any.
        expected: what the operator was trained for.
        least_side: it is not scaled down further.
        blur_std: std of its Gaussian blur, in pixels of the photo; None to estimate it.
    """
    picture, fit = place(None)
    if expected.kind == "jpeg":
        return _match_quality(picture, fit, expected)
    if expected.kind == "gaussian_blur":
        return _match_blur(picture, fit, place, expected, least_side, blur_std)
    return Matched(picture, fit, expected)


def _match_quality(picture: Tensor, fit: Fit, expected: Degradation) -> Matched:
    quality = find_quality(fit.cut(picture))
    if quality is None:
        return Matched(picture, fit, expected, doubt=NOT_COMPRESSED)
    found = f"The photo was found to be compressed with a JPEG quality of {quality}."
    same = quality == expected.parameters["quality"]
    degradation = replace(expected, parameters={"quality": quality})
    return Matched(picture, fit, degradation, found=None if same else found)


def _match_blur(
    picture: Tensor,
    fit: Fit,
    place: Place,
    expected: Degradation,
    least_side: int,
    std: float | None,
) -> Matched:
    blur = expected.operator()
    assert isinstance(blur, GaussianBlur)
    found = doubt = None
    if std is None:
        seen = estimate_blur(fit.cut(picture))
        if seen is None or SAME_BLUR[0] <= seen / blur.std <= SAME_BLUR[1]:
            return Matched(picture, fit, expected)
        std = seen / fit.scale
        found = f"Blur of {std:.1f} pixels (standard deviation) was found in the photo."
        doubt = HARDLY_BLURRED if seen < SHARP else None
    excess = std * fit.scale / blur.std
    if excess > 1 + CLOSE:
        picture, fit = place(max(round(max(fit.scaled) / excess), least_side))
    here = max(std * fit.scale, LEAST_STD)
    degradation = replace(expected, parameters={**expected.parameters, "std": here})
    missing = None
    if here < (1 - CLOSE) * blur.std:
        missing = replace(blur, std=math.sqrt(blur.std**2 - here**2))
    return Matched(picture, fit, degradation, missing, found, doubt)
