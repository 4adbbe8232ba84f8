"""What is asked of a restoration: one frozen description, checked as a whole when it is made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from torch import Tensor

from operators.catalog import TASKS
from operators.degradation import Degradation
from silo.errors import BadMask, BadRequest
from silo.images import to_pil
from silo.masks import check_size
from silo.photo.noise import estimate_camera_noise
from silo.samplers import SAMPLERS


@dataclass(frozen=True)
class Preset:
    """A sampler, by its name, and its number of steps."""

    sampler: str
    steps: int


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "quick": Preset("silo-fast", 16),
        "balanced": Preset("silo", 100),
        "paper": Preset("silo", 1000),
    }
)
MAX_STEPS = 1000
MIN_WORKING_SIZE, MAX_WORKING_SIZE = 256, 4096  # px
MAX_SAMPLES = 16
MAX_ITERATIONS = 10_000
MAX_SEED = 2**32 - 1
MAX_GUIDANCE_SCALE = 50.0
MAX_BLUR_STD = 100.0
# Noise carries a measurement past [-1, 1]; a picture in 0..255 lies far beyond.
_MAX_MAGNITUDE = 4.0


@dataclass(frozen=True, eq=False)
class RestorationRequest:
    """One picture to restore, and how.

    Attributes:
        task: what degraded it; a key of `operators.catalog.TASKS`, or any name with `degradation`.
        image: (1, 3, H, W) in [-1, 1]: the degraded picture, or the clean one with `simulate`.
        simulate: degrade `image` first, then restore it.
        degradation: what degrades the picture, in place of the catalog's: of a task of one's
            own; or, with `simulate`, another than a catalog's task is for, whose operator restores
            it all the same.
        mask: (1, 1, H, W), 1 = known, 0 = hole, with some of both; for the tasks with holes. With
            `simulate` it may be left out, and one of the task's kind is drawn.
        prompt: what the picture shows; "" for nothing.
        negative_prompt: what it should not show; only with a guidance scale above 1.
        guidance_scale: of the prompt (classifier-free guidance), from 1, which is none.
        preset: a key of `PRESETS`, which gives the sampler and the number of steps.
        sampler: a key of `silo.samplers.SAMPLERS`, in place of the preset's; one that is not the
            preset's takes the number of steps that it was published with.
        steps: denoising steps, 1 to 1000, in place of those.
        eta: consistency scale, 0 or more, in place of the operator's or the task's; for samplers
            that are guided by a latent operator. It is for 1,000 steps: fewer are guided by as
            much more strongly each.
        noise_sigma: std of the measurement's noise in [0, 1] units, in place of the task's or, of a
            photo to be denoised, of what it shows.
        blur_std: std in pixels of the Gaussian blur of a photo that comes with one, in place of
            what is estimated (`silo.photo.blur`); 0 for a sharp one.
        keep_known: keep what is measured: known pixels as they are, and their tones in the hole; of
            other damage what it has left, as far as noise allows (`PixelOperator.explain`).
            Without, as in the paper, everything comes out of the decoder.
        working_size: pictures of more pixels than this squared, 256 to 4096, are worked on scaled
            down to so many. With a larger one finer detail is painted in, in a time that grows with
            the area. None for what suits the damage (`silo.measured.usual_working_size`).
        clamp: bound on each element of the guidance gradient; None for none; as `eta`.
        hyperparameters: of the other samplers, by name, in place of their published ones.
        samples: how many restorations of the picture; sample i is seeded with seed + i.
        seed: 0 to 2^32 - 1, the source of all random numbers.

    Raises:
        BadRequest: a value is out of range, or does not fit the others.
        BadMask: the mask is missing, of another size, or without a hole or anything known.
    """

    task: str
    image: Tensor
    simulate: bool = False
    degradation: Degradation | None = None
    mask: Tensor | None = None
    prompt: str = ""
    negative_prompt: str = ""
    guidance_scale: float = 1.0
    preset: str = "balanced"
    sampler: str | None = None
    steps: int | None = None
    eta: float | None = None
    noise_sigma: float | None = None
    blur_std: float | None = None
    keep_known: bool = True
    working_size: int | None = None
    clamp: float | None = None
    hyperparameters: Mapping[str, float | int] = field(default_factory=dict)
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks every value."""
        _check_choice("preset", self.preset, PRESETS)
        check_task(self.task, self.effective_sampler, self.degradation)
        if self.task in TASKS and self.degradation is not None and not self.simulate:
            raise BadRequest(
                f"a degradation other than that of {self.task} can only be simulated: leave it out."
            )
        self._check_image()
        self._check_mask()
        _check_number("guidance_scale", self.guidance_scale, 1, MAX_GUIDANCE_SCALE)
        if self.negative_prompt and self.guidance_scale == 1:
            raise BadRequest(
                "a negative prompt acts only through guidance: set guidance_scale above 1, or "
                "leave the negative prompt out."
            )
        if self.steps is not None:
            _check_integer("steps", self.steps, 1, MAX_STEPS)
        if self.eta is not None:
            _check_number("eta", self.eta, 0, 1000)
        if self.noise_sigma is not None:
            _check_number("noise_sigma", self.noise_sigma, 0, 1)
        if self.blur_std is not None:
            _check_number("blur_std", self.blur_std, 0, MAX_BLUR_STD)
            if not comes_blurred(self._described, self.simulate):
                raise BadRequest(
                    "blur_std is for photos that a Gaussian blur has damaged already: leave it out."
                )
        if self.working_size is not None:
            _check_integer("working_size", self.working_size, MIN_WORKING_SIZE, MAX_WORKING_SIZE)
        if self.clamp is not None:
            _check_number("clamp", self.clamp, 1e-6, 1000)
        self._check_hyperparameters()
        _check_integer("samples", self.samples, 1, MAX_SAMPLES)
        _check_integer("seed", self.seed, 0, MAX_SEED)

    @property
    def effective_sampler(self) -> str:
        """`sampler`, or else the preset's."""
        return self.sampler or PRESETS[self.preset].sampler

    @property
    def effective_steps(self) -> int:
        """`steps`, or else the preset's, or else the sampler's own."""
        if self.steps is not None:
            return self.steps
        preset, sampler = PRESETS[self.preset], self.effective_sampler
        return preset.steps if sampler == preset.sampler else SAMPLERS[sampler].steps

    @property
    def effective_hyperparameters(self) -> dict[str, float | int]:
        """The sampler's published ones for the task and the steps, or else `hyperparameters`."""
        published = SAMPLERS[self.effective_sampler].published(self.task, self.effective_steps)
        return {**published, **self.hyperparameters}

    @cached_property
    def effective_noise_sigma(self) -> float:
        """`noise_sigma`, or else the task's; of a photo that is noisy alone, what it shows."""
        if self.noise_sigma is not None:
            return self.noise_sigma
        photo = self.degradation is None and not self.simulate
        if photo and self._described.kind == "denoising":
            return estimate_camera_noise(to_pil(self.image))
        return self._described.noise_sigma

    @property
    def effective_degradation(self) -> Degradation:
        """The task's degradation, with the noise level that is assumed."""
        return self._described.with_noise(self.effective_noise_sigma)

    @property
    def expected_noise_sigma(self) -> float:
        """The noise level that the operator for the task expects, whatever is simulated."""
        task = TASKS.get(self.task)
        return (self._described if task is None else task.degradation).noise_sigma

    @property
    def _described(self) -> Degradation:
        return TASKS[self.task].degradation if self.degradation is None else self.degradation

    def _check_image(self) -> None:
        shape = tuple(self.image.shape)
        if len(shape) != 4 or shape[:2] != (1, 3) or 0 in shape:
            raise BadRequest(f"the image must have the shape (1, 3, H, W), not {shape}.")
        if not self.image.is_floating_point():
            raise BadRequest(
                f"the image must be floating-point in [-1, 1], not {self.image.dtype}."
            )
        if not self.image.isfinite().all():
            raise BadRequest("the image holds values that are not finite numbers: load it again.")
        magnitude = self.image.abs().max().item()
        if magnitude > _MAX_MAGNITUDE:
            raise BadRequest(f"the image reaches {magnitude:g}: scale its values to [-1, 1].")

    def _check_hyperparameters(self) -> None:
        chosen = self.effective_sampler
        sampler = SAMPLERS[chosen]
        published = sampler.published(self.task, self.effective_steps)
        names = ", ".join(published) or "eta and clamp"
        if not sampler.needs_operator and (self.eta is not None or self.clamp is not None):
            raise BadRequest(
                f"eta and clamp are for samplers with a latent operator: {chosen} has the "
                f"hyper-parameters {names} instead."
            )
        for name, value in self.hyperparameters.items():
            if name not in published:
                raise BadRequest(f"{chosen} has no {name!r}: it has {names}.")
            if isinstance(published[name], int):
                _check_integer(name, value, 1, MAX_ITERATIONS)
            else:
                _check_number(name, value, 0, 1e6)

    def _check_mask(self) -> None:
        takes_mask = self._described.needs_mask
        if self.mask is None:
            if takes_mask and not self.simulate:
                raise BadMask(f"{self.task} needs a mask: mark in white what is to be filled in.")
            return
        if not takes_mask:
            raise BadMask(f"{self.task} takes no mask: leave it out, or choose an inpainting task.")
        shape = tuple(self.mask.shape)
        if len(shape) != 4 or shape[:2] != (1, 1):
            raise BadMask(f"the mask must have the shape (1, 1, H, W), not {shape}.")
        check_size(self.mask, self.image)
        known = self.mask == 1
        if not (known | (self.mask == 0)).all():
            raise BadMask("the mask must hold nothing but 1 (known) and 0 (hole).")
        if known.all():
            raise BadMask("the mask marks nothing: mark in white what is to be filled in.")
        if not known.any():
            raise BadMask("the mask marks the whole picture: leave some of it to restore from.")


def comes_blurred(degradation: Degradation, simulate: bool) -> bool:
    """Whether a picture that was damaged so, or is to be, came with a Gaussian blur."""
    return not simulate and degradation.kind == "gaussian_blur"


def check_task(task: str, sampler: str, degradation: Degradation | None = None) -> None:
    """Whether there are such a task and sampler, and the one can do the other.

    Args:
        task: a key of `operators.catalog.TASKS`, or any name with `degradation`.
        sampler: a key of `silo.samplers.SAMPLERS`.
        degradation: in place of the task's.

    Raises:
        BadRequest: if not.
    """
    if degradation is None:
        _check_choice("task", task, TASKS)
        degradation = TASKS[task].degradation
    _check_choice("sampler", sampler, SAMPLERS)
    if SAMPLERS[sampler].linear_only and not degradation.linear:
        able = ", ".join(name for name, each in SAMPLERS.items() if not each.linear_only)
        raise BadRequest(
            f"{sampler} restores linear degradations only, which {task} is not: use {able}."
        )


def _check_choice(name: str, value: str, choices: Mapping[str, object]) -> None:
    if value not in choices:
        raise BadRequest(f"there is no {name} {value!r}: choose one of {', '.join(choices)}.")


def _check_number(name: str, value: float, low: float, high: float) -> None:
    valid = isinstance(value, int | float) and not isinstance(value, bool)
    if not valid or not low <= value <= high:  # which is false for nan
        raise BadRequest(f"{name} must be a number from {low:g} to {high:g}, not {value!r}.")


def _check_integer(name: str, value: float, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise BadRequest(f"{name} must be an integer from {low} to {high}, not {value!r}.")
