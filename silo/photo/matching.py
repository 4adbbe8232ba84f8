"""What a photo shows of its damage, and how it is brought to what its operator was trained for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from operators.blur import Echoes, GaussianBlur, MotionBlur
from operators.degradation import Degradation
from operators.pixel_operator import PixelOperator
from silo.decoding import MAX_PIXELS
from silo.images import Fit, middle, to_pil
from silo.photo.blur import LEAST_SIDE, estimate_blur
from silo.photo.jpeg_noise import estimate_jpeg_noise
from silo.photo.jpeg_quality import HIGHEST, find_compression
from silo.photo.noise import estimate_camera_noise, estimate_noise
from silo.photo.shake import Shake, estimate_shake
from silo.photo.turning import Turn, TurnedFit

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
BLUR = "Blur of {}{:.1f} pixels (standard deviation) was found in the photo."
JPEG_NOISE = "JPEG compression was found in the photo, as strong as noise of {:.3f}."
NOISE = "Noise of {:.3f} (standard deviation; white is 1) was found in the photo."
HARDLY_BLURRED = "The photo hardly looks blurred: little of it is left to restore."
HARDLY_NOISY = "The photo shows hardly any noise: little of it is changed."
UNTOLD = "The photo is too small or too flat to tell how blurred it is: {:g} pixels are assumed."
NOT_COMPRESSED = (
    "The photo does not show how it was compressed as a JPEG file: it hardly was, or it was scaled "
    "or cropped since. Little of it is changed."
)

# Of photos that were shaken. One of nearly the length and angle that are expected is just that.
SAME_LENGTH, SAME_ANGLE = 1.5, 3.0  # px, degrees
LARGEST_SCALE = 1.3
ROOM = 0.98  # of what a turned photo is given, which rounding its sides takes
SHAKE = "A shake of {:.0f} pixels at {:d} degrees was found in the photo."
NO_SHAKE = (
    "No straight shake was found in the photo: one of {:d} pixels at {:g} degrees is assumed."
)
# A photo is doubted that has so many times more of what its damage would have taken than its noise
# accounts for, and more than JPEG files commonly have: of the noise that compression left at low
# frequencies, shaken ones have 0.2 to 0.56, and sharp ones 0.7 to 3.
DOUBTED, LEAST_DOUBTED, DOUBTED_OF_JPEG = 2.0, 0.01, 0.6

Place = Callable[[Tensor, int | None], tuple[Tensor, Fit]]


@dataclass(frozen=True)
class Matched:
    """A photo on the grid that the prior works on, and its damage there.

    Attributes:
        picture: (1, 3, h, w) in [-1, 1].
        fit: how it went on the grid.
        degradation: what damaged it, by what it shows.
        missing: the blur that it lacks of what its operator was trained for; None for none.
        found: what it was found to show; a sentence for the user.
        doubt: what speaks against its having been damaged as is said; a sentence, too.
        as_it_came: what damaged it at its own size; None for kinds that this is not told of.
        jpeg_noise: on the grid, what compression as a JPEG file was off by, where that counts.
    """

    picture: Tensor
    fit: Fit
    degradation: Degradation
    missing: PixelOperator | None = None
    found: str | None = None
    doubt: str | None = None
    as_it_came: Degradation | None = None
    jpeg_noise: float = 0.0

    def allowing_for(self, jpeg_noise: float) -> Matched:
        """The same where a photo that was measured so was compressed as a JPEG file then.

        Args:
            jpeg_noise: what that was off by at lower frequencies, as noise at the photo's size;
                scaling down averages what there is at these.
        """
        here = min(self.fit.scale, 1) * jpeg_noise
        sentences = [] if self.found is None else [self.found]
        if jpeg_noise > self.degradation.noise_sigma:
            sentences.append(JPEG_NOISE.format(jpeg_noise))
        return replace(
            self,
            jpeg_noise=here,
            degradation=_at_least(self.degradation, here),
            as_it_came=None if self.as_it_came is None else _at_least(self.as_it_came, jpeg_noise),
            found=" ".join(sentences) or None,
        )


def match(
    photo: Tensor,
    place: Place,
    expected: Degradation,
    *,
    least_side: int,
    blur_std: float | None = None,
    noise_sigma: float | None = None,
) -> Matched:
    """Put a photo on the grid, by what it shows of a blur, a shake, noise or JPEG compression.

    A photo that is blurred more than is expected is scaled down until it is not, and has lost
    nothing by it. What is blurred less has to be blurred further for the operator, as `missing`
    tells. So is a shaken photo, turned to the direction that is expected, and scaled until its
    shake is the n-th part of the expected length, of which n echoes make the whole. To what JPEG
    compression has left, an operator does not mind the quality.

    Args:
        photo: (1, 3, H, W) in [-1, 1].
        place: puts a picture on the grid, with a longer side of at most so many pixels, if any.
        expected: what the operator was trained for.
        least_side: pixels of the longer side that it is not scaled down further than.
        blur_std: std of its Gaussian blur, in pixels of the photo; None to estimate it.
        noise_sigma: std of the noise that it has at least, in [0, 1], where that was said.

    Raises:
        BadImage: as `place` does.
    """
    if expected.kind == "gaussian_blur":
        return _match_blur(photo, place, expected, least_side, blur_std, noise_sigma or 0.0)
    if expected.kind == "motion_blur":
        jpeg_noise = estimate_jpeg_noise(photo)
        return _match_shake(photo, place, expected, jpeg_noise).allowing_for(jpeg_noise)
    picture, fit = place(photo, None)
    if expected.kind == "jpeg":
        return _match_quality(photo, picture, fit, expected)
    if expected.kind == "denoising":
        return _match_noise(photo, picture, fit, expected, noise_sigma or 0.0)
    as_it_came = expected if expected.kind == "super_resolution" else None
    return Matched(picture, fit, expected, as_it_came=as_it_came)


def _match_shake(photo: Tensor, place: Place, expected: Degradation, jpeg_noise: float) -> Matched:
    picture, fit = place(photo, None)
    blur, shake = expected.operator(), estimate_shake(photo)
    assert isinstance(blur, MotionBlur)
    if shake is None or not may_be_shaken(photo, shake, jpeg_noise):
        return Matched(picture, fit, expected, found=NO_SHAKE.format(blur.length, blur.angle))
    line = _line(shake)
    came = None if line is None else _described(expected, line)
    turn = (blur.angle - shake.angle + 90) % 180 - 90
    found = SHAKE.format(shake.length, round(shake.angle) % 180)
    difference = abs(shake.length * fit.scale - blur.length)
    if difference <= SAME_LENGTH and abs(turn) <= SAME_ANGLE:
        return Matched(picture, fit, expected, found=found, as_it_came=came)
    largest = LARGEST_SCALE if fit.scale == 1 else fit.scale
    picture, fit, echoes = _turned(photo, place, blur, shake, largest)
    spacing = blur.length / echoes
    here = MotionBlur(blur.kernel_size, max(round(spacing), 1), blur.angle)
    return Matched(
        picture,
        fit,
        _described(expected, here),
        Echoes(echoes, spacing, blur.angle) if echoes > 1 else None,
        found,
        as_it_came=came,
    )


def may_be_shaken(photo: Tensor, shake: Shake, jpeg_noise: float) -> bool:
    """Whether the middle of a photo (1, 3, H, W) has no detail that a shake would have taken.

    `jpeg_noise` is what `estimate_jpeg_noise` found of it.
    """
    line = _line(shake)
    return line is None or not has_unexplained(middle(photo), line, jpeg_noise)


def _line(shake: Shake) -> MotionBlur | None:
    """What blurred a photo that was shaken so; None for more than kernels reach."""
    length = round(shake.length)
    if length > MAX_KERNEL:
        return None
    return MotionBlur(max(length | 1, MotionBlur.kernel_size), length, shake.angle)


def has_unexplained(photo: Tensor, operator: PixelOperator, jpeg_noise: float = 0.0) -> bool:
    """Whether a photo (1, 3, H, W) has detail that a damage would have taken from it.

    `jpeg_noise` is what `estimate_jpeg_noise` found of it, if it was damaged before.
    """
    unexplained = operator.unexplainable(photo)
    if unexplained < max(LEAST_DOUBTED, DOUBTED_OF_JPEG * jpeg_noise):
        return False
    return unexplained >= DOUBTED * estimate_noise(to_pil(photo))


def _turned(
    photo: Tensor, place: Place, blur: MotionBlur, shake: Shake, largest: float
) -> tuple[Tensor, TurnedFit, int]:
    """Put a shaken photo on the grid, turned, and say how many echoes its shake needs there.

    It is scaled to no more than `largest` times its size, nor to more than the grid has room for.
    """
    turns = [
        ((blur.angle - angle + 90) % 180 - 90, angle != shake.angle)
        for angle in (shake.angle, 180 - shake.angle)
    ]
    degrees, mirrored = min(turns, key=lambda each: abs(each[0]))
    height, width = photo.shape[-2:]
    turned = math.prod(Turn((height, width), degrees, mirrored).canvas)
    largest = min(largest, ROOM * math.sqrt(MAX_PIXELS / turned))  # or no grid takes it

    def put(scale: float) -> tuple[Turn, Fit]:
        turn = Turn(
            (max(round(height * scale), 1), max(round(width * scale), 1)), degrees, mirrored
        )
        _, canvas = place(photo.new_zeros(1, 1, 1, 1).expand(-1, -1, *turn.canvas), None)
        return turn, canvas

    _, canvas = put(largest)
    if canvas.scale < 1:
        largest *= ROOM * canvas.scale
    echoes = min(math.ceil(blur.length / (shake.length * largest)), blur.length)
    turn, canvas = put(min(blur.length / echoes / shake.length, largest))
    fit = TurnedFit((height, width), turn.size, canvas.padded, turn=turn, canvas=canvas)
    return fit.apply(photo), fit, echoes


def _match_noise(
    photo: Tensor, picture: Tensor, fit: Fit, expected: Degradation, told: float
) -> Matched:
    noise = estimate_camera_noise(to_pil(photo))
    here = expected
    if fit.scale != 1:  # which averages noise, and leaves as much of it as shows
        left = estimate_camera_noise(to_pil(picture))
        here = expected.with_noise(max(left, min(fit.scale, 1) * told))
    if noise >= LEAST_NOISE:
        return Matched(picture, fit, here, found=NOISE.format(noise), as_it_came=expected)
    doubt = HARDLY_NOISY if told < LEAST_NOISE else None
    return Matched(picture, fit, here, doubt=doubt, as_it_came=expected)


def _match_quality(photo: Tensor, picture: Tensor, fit: Fit, expected: Degradation) -> Matched:
    compression = find_compression(photo)
    if compression is None:
        kept = replace(expected, parameters={"quality": HIGHEST})
        return Matched(picture, fit, kept, doubt=NOT_COMPRESSED, as_it_came=kept)
    came = replace(expected, parameters=asdict(compression))
    found = f"The photo was found to be compressed with a JPEG quality of {compression.quality}."
    # Once it is scaled down there are no blocks of which something could be left open.
    here = came if fit.scale == 1 else replace(expected, parameters={"quality": HIGHEST})
    return Matched(picture, fit, here, found=found, as_it_came=came)


def _match_blur(
    photo: Tensor,
    place: Place,
    expected: Degradation,
    least_side: int,
    told: float | None,
    told_noise: float,
) -> Matched:
    picture, fit = place(photo, None)
    operator = expected.operator()
    assert isinstance(operator, GaussianBlur)
    taken = _take_blur(photo, told, operator, fit.scale)
    excess = taken.std * fit.scale / operator.std
    if excess > 1 + CLOSE and taken.std * fit.scale > SHARP:
        picture, fit = place(photo, max(round(max(fit.scaled) / excess), least_side))
    std, missing = taken.std * fit.scale, None
    if std < (1 - CLOSE) * operator.std:
        missing = _blur(math.sqrt(operator.std**2 - std**2))
    here, came = _blurred_by(expected, std), _blurred_by(expected, taken.std)
    if taken.is_sharp:  # what is not noise by what it shows, or was said, is not taken for noise
        here = here.with_noise(min(fit.scale, 1) * told_noise)
        came = came.with_noise(told_noise)
    matched = Matched(picture, fit, here, missing, taken.found, taken.doubt, came)
    return matched if taken.is_sharp else matched.allowing_for(estimate_jpeg_noise(photo))


@dataclass(frozen=True)
class _Blur:
    """The blur that a photo is taken to have.

    Attributes:
        std: in its pixels.
        found: that it was found; a sentence for the user.
        doubt: what speaks against a blur; a sentence, too.
        is_sharp: it has about none.
    """

    std: float
    found: str | None = None
    doubt: str | None = None
    is_sharp: bool = False


def _take_blur(photo: Tensor, told: float | None, expected: GaussianBlur, scale: float) -> _Blur:
    """What is told of its blur, else what it shows, else what is expected on the grid."""
    if told is not None:
        return _Blur(told)
    usual = expected.std / scale
    if expected.kernel_size < LEAST_KERNEL_STDS * expected.std:
        return _Blur(usual)
    std = find_blur(photo)
    if std is None:
        return _Blur(usual, doubt=UNTOLD.format(expected.std))
    if SAME_BLUR[0] <= std / usual <= SAME_BLUR[1]:
        return _Blur(usual, found=BLUR.format("about ", usual))
    if std < SHARP:
        return _Blur(std, doubt=HARDLY_BLURRED, is_sharp=True)
    return _Blur(std, found=BLUR.format("", std))


def find_blur(photo: Tensor) -> float | None:
    """The std of a photo's blur in its pixels, where it can be told; a strong one once scaled.

    Args:
        photo: (1, 3, H, W) in [-1, 1].
    """
    std = estimate_blur(photo)
    if std is None or std < LARGEST_FOUND or min(photo.shape[-2:]) < 2 * LEAST_SIDE:
        return std
    scaled = find_blur(F.interpolate(photo, scale_factor=0.5, mode="bicubic", antialias=True))
    return std if scaled is None else 2 * scaled


def _blur(std: float) -> GaussianBlur:
    """A Gaussian blur with a kernel that holds all of it, as far as kernels reach."""
    std = min(max(std, LEAST_STD), LARGEST_STD)
    return GaussianBlur(kernel_size=min(2 * math.ceil(KERNEL_STDS * std) + 1, MAX_KERNEL), std=std)


def _blurred_by(expected: Degradation, std: float) -> Degradation:
    """The same degradation with a blur of `std`."""
    operator = expected.operator()
    assert isinstance(operator, GaussianBlur)
    return expected if math.isclose(std, operator.std) else _described(expected, _blur(std))


def _at_least(degradation: Degradation, noise: float) -> Degradation:
    return degradation.with_noise(max(degradation.noise_sigma, noise))


def _described(expected: Degradation, blur: GaussianBlur | MotionBlur) -> Degradation:
    return replace(expected, parameters=asdict(blur))
