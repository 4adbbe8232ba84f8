"""A measurement on the grid that the prior works on: simulated, or the picture itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from operators.degradation import Degradation
from operators.pixel import measure
from operators.pixel_operator import PixelOperator
from silo import masks
from silo.images import Fit, fit, to_pil
from silo.photo.filling import keep_known
from silo.photo.matching import NOISE, Matched, has_unexplained, match
from silo.photo.noise import estimate_noise
from silo.photo.turning import TurnedFit
from silo.prior import WINDOW_RATIO, LatentPrior
from silo.request import RestorationRequest
from silo.streams import stream

# Detail that these have lost is painted in at up to so many pixels; the others leave a large photo
# most of what it has, or see too little of what is around a hole (hub_cards/photos.md).
WORKING_SIZE = 1024
LOSE_DETAIL = ("gaussian_blur", "motion_blur", "super_resolution", "function")
# Photos with a strong blur are scaled down to no less than this, times the prior's side.
SMALLEST_SIDE_RATIO = 0.5
MOST_EXPLAINED = 16_000_000  # pixels of a picture; larger ones come back scaled up
LEAST_DRAFTED = 0.5  # turned photos that are scaled down further have no draft
TOLD_NOISE = 0.02  # less is not worth a sentence
DOUBT = (
    "The photo has detail that this damage would have removed: it is damaged less, or differently, "
    "or was framed or written on later. The result is likely to be wrong."
)


@dataclass(frozen=True)
class Original:
    """A photo as it came, where what is worked on is smaller or turned.

    Attributes:
        picture: (1, 3, h, w) in [-1, 1].
        mask: (1, 1, H, W), 1 = known, for the tasks that have one.
        degradation: what damaged it, at this size.
    """

    picture: Tensor
    mask: Tensor | None
    degradation: Degradation

    @cached_property
    def white_noise_sigma(self) -> float:
        """What is assumed of its noise, in [0, 1] units; or what it shows, if that is more."""
        return max(self.degradation.noise_sigma, estimate_noise(to_pil(self.picture)))

    @cached_property
    def noise_sigma(self) -> float:
        """What is taken for noise, in [0, 1] units: what the damage leaves nothing of, too."""
        unexplainable = self.degradation.operator().unexplainable(self.picture)
        return max(self.white_noise_sigma, unexplainable)


@dataclass(frozen=True)
class Measured:
    """A measurement on the grid the prior works on.

    Attributes:
        degradation: how it came about, noise level included.
        y: the measurement (1, 3, h, w) in [-1, 1], not clipped.
        mask: (1, 1, H, W), 1 = known, for the tasks that have one.
        clean: the clean picture (1, 3, H, W) when the damage is simulated.
        photo: (1, 3, h, w), as `y` but with what lies in a hole, when it is not.
        fit: how the picture went on the grid, at the size of what is restored.
        expected_noise_sigma: the noise that its operator in latent space expects.
        keep_known: whether a restoration has to agree with what is known.
        original: a photo that was scaled or turned, where what is measured can be kept at its size.
        missing: the blur that a photo lacks of what its operator was trained for, if any.
        found: what a photo was found to show of its damage, if it was looked at.
        doubt: what speaks against a photo's having been damaged as is said.
        jpeg_noise: what compression as a JPEG file was off by, of a photo where that counts.
    """

    degradation: Degradation
    y: Tensor
    mask: Tensor | None
    clean: Tensor | None
    fit: Fit
    expected_noise_sigma: float
    keep_known: bool = False
    photo: Tensor | None = None
    original: Original | None = None
    missing: PixelOperator | None = None
    found: str | None = None
    doubt: str | None = None
    jpeg_noise: float = 0.0

    @property
    def full_size(self) -> Tensor:
        """The measurement as large as the restoration, (1, 3, H, W)."""
        return self.degradation.operator().to_full_size(self.y).clamp(-1, 1)

    @property
    def to_encode(self) -> Tensor:
        """What an operator was trained for, (1, 3, H, W): `y`, blurred as much further as it lacks.

        Of more noise than that it is freed. What this loses, `finish` brings back from `y` itself.
        """
        y, operator = self.y, self.degradation.operator()
        if self._is_cleaned:
            y = operator.clean(y, self.noise_sigma, self.expected_noise_sigma)
        return operator.to_full_size(y if self.missing is None else self.missing.forward(y))

    @property
    def encoded_noise_sigma(self) -> float:
        """The noise of `to_encode` in [0, 1] units, as its operator is told."""
        return self.expected_noise_sigma if self._is_cleaned else self.degradation.noise_sigma

    @property
    def _is_cleaned(self) -> bool:
        return self.keep_known and self.noise_sigma > self.expected_noise_sigma

    @property
    def output_size(self) -> Tensor:
        """The measurement as large as the picture that comes back, (1, 3, *fit.output).

        A photo is whole: what lies in its holes may be a scratch to compare with.
        """
        if self.original is not None:
            operator = self.original.degradation.operator()
            return operator.to_full_size(self.original.picture).clamp(-1, 1)
        shown = self.y if self.photo is None else self.photo
        return self.fit.undo(self.degradation.operator().to_full_size(shown).clamp(-1, 1))

    def fill_in(self, decoded: Tensor) -> Tensor:
        """Decoded pictures (B, 3, H, W) on the grid, with known pixels as they are, if kept."""
        if self.mask is None or not self.keep_known:
            return decoded
        return keep_known(decoded, self.full_size, self.mask)

    @cached_property
    def noise_sigma(self) -> float:
        """What is taken for noise, in [0, 1] units."""
        if self.clean is not None:
            return self.degradation.noise_sigma
        return self._on_grid.noise_sigma

    @cached_property
    def _on_grid(self) -> Original:
        """A photo as it is worked on."""
        return Original(self.y, None, self.degradation)

    def draft(self, decoded: Tensor) -> Tensor | None:
        """What is to be encoded and decoded once more before `finish`, (1, 3, H, W), if anything.

        It explains the measurement of a decoded picture (1, 3, H, W) at the expense of its looks.
        """
        if self.mask is not None or not self.keep_known:
            return None
        if not isinstance(self.fit, TurnedFit):
            return self.degradation.operator().draft(decoded, self.y, self.noise_sigma)
        if self.original is None or self.fit.scale < LEAST_DRAFTED:
            return None
        # What lies beyond the rim of a turned photo was not shaken with it, and would show.
        image, operator = self.fit.undo(decoded), self.original.degradation.operator()
        draft = operator.draft(image, self.original.picture.to(image), self.original.noise_sigma)
        return None if draft is None else self.fit.apply(draft)

    def finish(self, decoded: Tensor) -> Tensor:
        """As `fill_in`, and the same for what is known of a picture measured otherwise.

        Where its original is at hand, that is left to `at_output_size`.
        """
        if self.original is not None:
            return decoded
        if self.mask is not None or not self.keep_known:
            return self.fill_in(decoded)
        return self.degradation.operator().explain(decoded, self.y, self.noise_sigma)

    def notices(self) -> list[str]:
        """What a photo shows of its damage, in sentences for the user."""
        return [*self.findings(), *self.doubts()]

    def findings(self) -> list[str]:
        """What was found of a photo's damage, in sentences for the user."""
        sentences = [] if self.found is None else [self.found]
        if self._noise_beside is not None:
            sentences.append(NOISE.format(self._noise_beside))
        return sentences

    @cached_property
    def _noise_beside(self) -> float | None:
        """A photo's noise that is taken away with other damage, if it is worth a sentence."""
        kind = self.degradation.operator()
        if self.clean is not None or not self.keep_known or not kind.linear or kind.needs_mask:
            return None
        if self.degradation.kind == "denoising":  # which `found` tells of
            return None
        came = self.original or self._on_grid
        noise = came.white_noise_sigma
        return noise if noise > max(TOLD_NOISE, came.degradation.noise_sigma) else None

    def doubts(self) -> list[str]:
        """What a photo shows against its having been damaged as is said; a sentence, or none."""
        if self.doubt is not None:
            return [self.doubt]
        if self.clean is not None or isinstance(self.fit, TurnedFit):  # whose shake was found
            return []
        operator = self.degradation.operator()
        return [DOUBT] if has_unexplained(self.y, operator, self.jpeg_noise) else []

    def watch(self, decoded: Tensor) -> Tensor:
        """Decoded pictures as they come back, for a look on the way: without what takes seconds."""
        image = self.fit.undo(self.fill_in(decoded))
        if self.original is None or self.original.mask is None:
            return image
        return torch.where(self.original.mask > 0, self.original.picture.to(image), image)

    def at_output_size(self, finished: Tensor) -> Tensor:
        """Finished pictures (B, 3, H, W) on the grid as they come back, (B, 3, *fit.output)."""
        image = self.fit.undo(finished)
        if self.original is None:
            return image
        picture, degradation = self.original.picture, self.original.degradation
        if self.original.mask is not None:
            magnified = 1 / self.fit.scale
            return keep_known(image, picture, self.original.mask, magnified=magnified)
        operator, noise = degradation.operator(), self.original.noise_sigma
        return operator.explain(image, picture.to(image), noise)


@torch.no_grad()
def take_measurement(request: RestorationRequest, prior: LatentPrior) -> Measured:
    """The measurement that is asked for, at the size that `prior` works at.

    Args:
        request: what to restore; its picture is simulated to be damaged, or is the measurement.
        prior: whose sizes count.

    Raises:
        BadImage: a picture too large or too narrow to be brought to such a size.
        BadMask: a mask of which nothing, or everything, is left at that size.
        OperatorError: a degradation of one's own that fails.
    """
    # What is measured is worked on on the CPU, where half precision has no transforms; some
    # devices that it goes to then know no double precision.
    photo = request.image.to("cpu", torch.float32)
    mask = None if request.mask is None else request.mask.to("cpu", torch.float32)
    take = _simulated if request.simulate else _shown
    return take(request, prior, photo, mask)


def _simulated(
    request: RestorationRequest, prior: LatentPrior, photo: Tensor, given: Tensor | None
) -> Measured:
    """What the damage makes of a clean picture, with a mask of its own where none is given."""
    degradation = request.effective_degradation
    operator = degradation.operator()
    generator = measurement_generator(request.seed)
    clean, plan = fit(
        photo,
        multiple=math.lcm(prior.size_multiple, operator.downscale),  # or it has no smaller size
        max_pixels=working_size(request, prior) ** 2,
    )
    if given is not None:
        mask = masks.fit(given, plan)
    else:
        drawn = operator.draw_mask(*plan.scaled, generator)
        mask = None if drawn is None else plan.pad(drawn)
    return Measured(
        degradation,
        measure(clean, degradation, generator, mask),
        mask,
        clean,
        plan,
        request.expected_noise_sigma,
        keep_known=request.keep_known,
    )


def _shown(
    request: RestorationRequest, prior: LatentPrior, photo: Tensor, given: Tensor | None
) -> Measured:
    """A photo as it is, put on the grid by what it shows of its damage."""
    operator = request.effective_degradation.operator()

    def place(pixels: Tensor, max_side: int | None) -> tuple[Tensor, Fit]:
        return fit(
            pixels,
            multiple=prior.size_multiple,
            max_pixels=working_size(request, prior) ** 2,
            max_side=max_side,
            factor=operator.downscale,
        )

    matched = match(
        photo,
        place,
        request.effective_degradation,
        least_side=round(SMALLEST_SIDE_RATIO * prior.native_size),
        blur_std=request.blur_std,
        noise_sigma=request.noise_sigma,
    )
    mask = None if given is None else masks.fit(given, matched.fit)
    return Measured(
        matched.degradation,
        # What lies in a hole is no measurement: the operator expects it to be empty.
        matched.picture if mask is None else operator.forward(matched.picture, mask),
        mask,
        None,
        matched.fit,
        request.expected_noise_sigma,
        keep_known=request.keep_known,
        photo=matched.picture,
        original=_original(request, photo, given, matched),
        missing=matched.missing,
        found=matched.found,
        doubt=matched.doubt,
        jpeg_noise=matched.jpeg_noise,
    )


def _original(
    request: RestorationRequest, photo: Tensor, given: Tensor | None, matched: Matched
) -> Original | None:
    """The photo as it came, where it was scaled or turned and what it shows is to be kept."""
    plan = matched.fit
    # Blocks of a JPEG file that was turned since may begin where the grid's padding ends.
    is_turned = isinstance(plan, TurnedFit) or matched.degradation.parameters.get("turns", 0) != 0
    if not request.keep_known or (plan.scaled == plan.original and not is_turned):
        return None
    if given is not None:
        return Original(photo, given, request.effective_degradation)
    if matched.as_it_came is None or math.prod(plan.output) > MOST_EXPLAINED:
        return None
    return Original(photo, None, matched.as_it_came)


def working_size(request: RestorationRequest, prior: LatentPrior) -> int:
    """The side, in pixels, of a square as large as the largest picture that is not scaled down."""
    usual = usual_working_size(request.effective_degradation.kind, prior.native_size)
    return request.working_size or usual


def usual_working_size(kind: str, native_size: int) -> int:
    """The same where none is asked for, for a kind of damage and a prior: a window of it or more.

    Args:
        kind: `Degradation.kind`.
        native_size: of the prior, in pixels.
    """
    window = WINDOW_RATIO * native_size
    return max(window, WORKING_SIZE) if kind in LOSE_DETAIL else window


def measurement_generator(seed: int) -> torch.Generator:
    """Where a simulated measurement's mask and noise come from: apart from the samples' noise."""
    return stream("measurement", seed)
