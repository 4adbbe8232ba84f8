"""Restores one picture: encode the measurement, sample, decode, keep what is measured."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from operators.catalog import SHELF, TASKS, Task, find_operator, own_task, shelf
from operators.degradation import Degradation
from operators.errors import OperatorError
from operators.latent import LatentOperator, load_operator
from silo import __version__
from silo.devices import dtype_name, generators
from silo.errors import BadRequest
from silo.fingerprint import weights_fingerprints
from silo.images import to_pil
from silo.measured import LOSE_DETAIL, Measured, take_measurement, working_size
from silo.memory import (
    DIFFERENTIATING,
    EVALUATING,
    OFFLOADING,
    autoencoding,
    in_batches,
    within_memory,
)
from silo.prior import LatentPrior
from silo.request import MAX_WORKING_SIZE, RestorationRequest
from silo.samplers import SAMPLERS
from silo.samplers.problem import Problem, Step
from silo.schedule import spaced

# The paper bounds the measurement latent (section 4.1): SD 1.5's latents stay within +-4.
MEASUREMENT_LATENT_BOUND = 4.0
LEAST_KNOWN_LEFT = 0.5  # of what is known, after scaling; a result with less says so
NEARLY = 0.8  # of the area at hand is filled by a picture that was scaled down to fit in
PAPER_STEPS = 1000  # what the paper's consistency scales are for


@dataclass(frozen=True)
class Progress:
    """One sampling step done.

    Attributes:
        step: how many of `total` are done, on average over the samples.
        total: the number of steps.
        seconds: time so far.
        seconds_left: time left, by the steps so far.
    """

    step: int
    total: int
    seconds: float
    seconds_left: float
    _prior: LatentPrior = field(repr=False)
    _estimate: Tensor = field(repr=False)
    _measured: Measured = field(repr=False)

    def preview(self) -> Image:
        """The clean estimate of the first sample; costs one decoding, so ask now and then."""
        decodes = self._prior.decodes
        image = _decode(self._prior, self._estimate)
        self._prior.decodes = decodes  # the counter tells what the algorithm costs
        return to_pil(self._measured.watch(image.cpu()))


@dataclass(frozen=True)
class Finishing:
    """All steps are done, and a sample is made to agree with what is measured: it takes seconds.

    Of a photo that was scaled or turned most of that is done when `Result` is asked for it.

    Attributes:
        sample: which, from 1 on.
        samples: how many there are.
        seconds: time so far.
    """

    sample: int
    samples: int
    seconds: float


@dataclass(frozen=True)
class Result:
    """A finished restoration.

    Attributes:
        restored: (B, 3, H, W) on the prior's grid, B samples.
        measured: what it was restored from.
        parameters: all that is needed to do it again, JSON-able.
        seconds: wall time.
        nfe: denoiser evaluations.
        encodes: pictures encoded, that of the measurement included.
        decodes: latents decoded, that of the restoration included.
        notices: sentences for the user.
    """

    restored: Tensor
    measured: Measured
    parameters: dict[str, Any]
    seconds: float
    nfe: int
    encodes: int
    decodes: int
    notices: list[str]

    @cached_property
    def images(self) -> Tensor:
        """The restorations at the size of the original picture, (B, 3, H, W) in [-1, 1].

        Of a photo that was scaled or turned, what it shows is put back here: half a minute for one
        of 12 megapixels.
        """
        return torch.cat(list(self.image_by_image()))

    def image_by_image(self) -> Iterator[Tensor]:
        """Yield `images` one after another, each (1, 3, H, W): many at once may take gigabytes."""
        for sample in self.restored.split(1):
            yield self.measured.at_output_size(sample)

    @property
    def measurement(self) -> Tensor:
        """The measurement at the size of `images`, (1, 3, H, W) in [-1, 1]; of a photo itself."""
        return self.measured.output_size

    @property
    def clean(self) -> Tensor | None:
        """The clean picture at the size of `images`, when the damage was simulated."""
        return None if self.measured.clean is None else self.measured.fit.undo(self.measured.clean)


class Restorer:
    """Restores pictures with one prior and the operators that fit it."""

    def __init__(self, prior: LatentPrior, *, operator: str | Path | None = None) -> None:
        """Use `prior`; `operator` is a folder or Hub id (ID@REVISION), the shelf's by default."""
        self.prior = prior
        self._chosen = operator
        self._places: dict[str, str | Path] = {}
        self._operators: dict[str, LatentOperator] = {}

    def restore(
        self, request: RestorationRequest, measured: Measured | None = None
    ) -> Iterator[Progress | Finishing | Result]:
        """Yield a `Progress` after every step, a `Finishing` a sample, and the `Result` at the end.

        Closing the iterator stops the restoration and frees its memory. What the device's memory
        is too small for is done again in less of it (`silo.memory`): `Progress` may then go back,
        and the result's notices say what was changed.

        Args:
            request: what to restore, and how.
            measured: what `take_measurement` made of it for this prior, if that was done already.

        Raises:
            SiloError, OperatorError: as named, with what to do.
        """
        started, before = time.perf_counter(), _calls(self.prior)
        if measured is None:
            measured = take_measurement(request, self.prior)
        problem = self._problem(request, measured)
        sample = partial(self._sample, request, problem, measured, started)
        differentiates = SAMPLERS[request.effective_sampler].differentiates
        rungs = DIFFERENTIATING if differentiates else EVALUATING
        batches = yield from in_batches(self.prior, rungs, request.samples, sample)
        decoded = torch.cat([_decode(self.prior, latents).cpu() for latents in batches])
        finished = []  # one after another: many large ones at once may take gigabytes
        for count, picture in enumerate(decoded.split(1), 1):
            yield Finishing(count, request.samples, time.perf_counter() - started)
            finished.append(self._finished(measured, picture))
        # What was given up for an earlier restoration may cost this one nothing.
        elsewhere = {each.notice for each in DIFFERENTIATING if each not in rungs}
        notices = [each for each in self.prior.notices if each not in elsewhere]
        if len(batches) > 1:
            notices.append(f"Memory ran out: the samples were made in {len(batches)} batches.")
        if problem.prompt.truncated:
            notices.append("The prompt is longer than the prior reads; its end was ignored.")
        notices += [*measured.notices(), *self._scaling_notices(request, measured)]
        seconds = time.perf_counter() - started
        nfe, encodes, decodes = (
            now - then for now, then in zip(_calls(self.prior), before, strict=True)
        )
        yield Result(
            torch.cat(finished),
            measured,
            self.parameters(request),
            seconds,
            nfe=nfe,
            encodes=encodes,
            decodes=decodes,
            notices=notices,
        )

    def run(self, request: RestorationRequest) -> Result:
        """Restore as `restore` does, to the end, without word of its progress."""
        # Events hold latents on the device: none is kept but the last.
        (result,) = deque(self.restore(request), maxlen=1)
        assert isinstance(result, Result), "a restoration ends with its result"
        return result

    def task(self, name: str) -> Task:
        """The catalog's task of this name, or else the one that the operator was trained for.

        Raises:
            OperatorError: the catalog has none, nor does an operator name it.
        """
        if name in TASKS:
            return TASKS[name]
        known = dict.fromkeys([*TASKS, *(entry.task for entry in shelf())])
        if self._chosen is None and name not in known:
            raise OperatorError(
                f"There is no task '{name}'; choose one of {', '.join(known)}, or name the "
                "operator for your own with --operator."
            )
        described = self._operator(name).metadata.get("degradation")
        if described is None:
            raise OperatorError(f"The operator does not say what degradation {name} is.")
        return own_task(name, Degradation.from_dict(described))

    def reads_features(self, task: str) -> bool:
        """Whether the operator for `task` reads the denoiser's features, not the latent alone.

        Raises:
            SiloError, OperatorError: there is no such operator, or it does not fit.
        """
        return self._operator(task).needs_features

    def parameters(self, request: RestorationRequest) -> dict[str, Any]:
        """All that decides the restoration, but for the picture and its mask; JSON-able."""
        return {
            "task": request.task,
            "simulate": request.simulate,
            "degradation": request.degradation.to_dict() if request.degradation else None,
            "sampler": request.effective_sampler,
            "steps": request.effective_steps,
            "eta": self._eta(request),
            "keep_known": request.keep_known,
            "working_size": working_size(request, self.prior),
            "clamp": request.clamp,
            "hyperparameters": request.effective_hyperparameters,
            "noise_sigma": request.effective_noise_sigma,
            "noise_told": request.noise_sigma is not None,
            "blur_std": request.blur_std,
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "guidance_scale": request.guidance_scale,
            "samples": request.samples,
            "seed": request.seed,
            "prior": {"name": self.prior.name, "revision": self.prior.revision},
            "operator": self._operator_record(request),
            "dtype": dtype_name(self.prior.dtype),
            "version": __version__,
        }

    def weights(self, request: RestorationRequest) -> dict[str, str | None]:
        """SHA-256 of the weights of prior and operator, as far as no revision names them."""
        needs_operator = SAMPLERS[request.effective_sampler].needs_operator
        place = self._place(request.task) if needs_operator else None
        return weights_fingerprints(self.prior, place)

    @torch.no_grad()
    def _problem(self, request: RestorationRequest, measured: Measured) -> Problem:
        """What the sampler is given: the measurement, encoded, with the networks and the prompt."""
        prior, device = self.prior, self.prior.device
        needs_operator = SAMPLERS[request.effective_sampler].needs_operator
        operator = self._operator(request.task).to(device) if needs_operator else None
        to_encode = measured.to_encode.to(device)
        words = request.prompt, request.negative_prompt, request.guidance_scale
        prompt = within_memory(prior, (OFFLOADING,), lambda: prior.embed(*words))
        latent = _encode(prior, to_encode)
        return Problem(
            prior=prior,
            operator=operator,
            degradation=measured.degradation,
            measurement=measured.y.to(device),
            measurement_latent=latent.clamp(-MEASUREMENT_LATENT_BOUND, MEASUREMENT_LATENT_BOUND),
            mask=None if measured.mask is None else measured.mask.to(device),
            noise_sigma=measured.encoded_noise_sigma,
            prompt=prompt,
        )

    def _sample(
        self,
        request: RestorationRequest,
        problem: Problem,
        measured: Measured,
        started: float,
        first: int,
        size: int,
    ) -> Generator[Progress, None, Tensor]:
        """Samples `size` latents z_0 (size, C, h, w), of which the first is number `first`."""
        sampler = SAMPLERS[request.effective_sampler]
        guidance = {"eta": self._applied_eta(request), "clamp": request.clamp}
        steps = sampler.sample(
            problem,
            spaced(self.prior.alphas_cumprod, request.effective_steps),
            generators=generators(request.seed + first, size),
            **(guidance if sampler.needs_operator else request.effective_hyperparameters),
        )
        last: Step | None = None
        for last in steps:
            seconds = time.perf_counter() - started
            done = first * last.total + size * (last.index + 1)  # steps of single samples
            left = seconds * (request.samples * last.total / done - 1)
            step, estimate = done // request.samples, last.clean_estimate[:1]
            yield Progress(step, last.total, seconds, left, self.prior, estimate, measured)
        assert last is not None, "a schedule has at least one step"
        return last.latent

    @torch.no_grad()
    def _finished(self, measured: Measured, decoded: Tensor) -> Tensor:
        """A decoded picture (1, 3, H, W) that agrees with what is measured, as far as is wished."""
        draft = measured.draft(decoded)
        if draft is not None:
            draft = draft.to(self.prior.device)
            decoded = _decode(self.prior, _encode(self.prior, draft)).cpu()
        return measured.finish(decoded)

    def _scaling_notices(self, request: RestorationRequest, measured: Measured) -> list[str]:
        """What a picture that was scaled down is told to have lost."""
        if measured.fit.scaled == measured.fit.original:
            return []
        height, width = measured.fit.scaled
        notices = [f"The picture was worked on at {width}x{height} pixels."]
        size, worked_on = working_size(request, self.prior), math.prod(measured.fit.working)
        # A strong blur or a long shake is worked on smaller than that.
        is_filled = worked_on > NEARLY * size**2 and size < MAX_WORKING_SIZE
        if is_filled and request.effective_degradation.kind in LOSE_DETAIL:
            notices.append("A larger working size brings finer detail, and takes longer.")
        if measured.original is not None:
            notices.append("What is known of it comes back at its own size.")
        if request.mask is not None and measured.mask is not None:
            known, left = float(request.mask.float().mean()), float(measured.mask.mean())
            if left < LEAST_KNOWN_LEFT * known:
                notices.append(f"There {left:.1%} is wholly known, at full size {known:.0%}.")
        return notices

    def _eta(self, request: RestorationRequest) -> float | None:
        """The consistency scale: asked for, or the sampler's, the operator's or the task's.

        None for a sampler without a latent operator.
        """
        sampler = SAMPLERS[request.effective_sampler]
        if request.eta is not None or not sampler.needs_operator:
            return request.eta
        if sampler.eta is not None:
            return sampler.eta
        eta = self._operator(request.task).metadata.get("eta")
        if eta is None:
            eta = self.task(request.task).eta
        return eta

    def _applied_eta(self, request: RestorationRequest) -> float | None:
        """What a step is scaled by, so that guidance adds up to the same in any number of them.

        A sampler that has a scale of its own has it for any number.
        """
        eta = self._eta(request)
        if eta is None or SAMPLERS[request.effective_sampler].eta is not None:
            return eta
        return eta * PAPER_STEPS / request.effective_steps

    def _operator_record(self, request: RestorationRequest) -> dict[str, str | None] | None:
        """Which operator guides the restoration, if one does."""
        if not SAMPLERS[request.effective_sampler].needs_operator:
            return None
        revision = self._operator(request.task).revision
        return {"name": self._operator_name(request.task), "revision": revision}

    def _operator_name(self, task: str) -> str:
        place = self._place(task)
        on_shelf = Path(place).is_relative_to(SHELF)
        return str(Path(place).relative_to(SHELF.parent) if on_shelf else place)

    def _place(self, task: str) -> str | Path:
        """The folder or Hub id of the operator for `task`.

        It stays the same, as its weights do, when another comes onto the shelf meanwhile.
        """
        if self._chosen is not None:
            return self._chosen
        if task not in self._places:
            prior = self.prior
            self._places[task] = find_operator(task, prior.name, prior.latent_channels)
        return self._places[task]

    def _operator(self, task: str) -> LatentOperator:
        """The operator for `task`, loaded once and checked against the prior.

        It is on the CPU until it guides: the page asks what an operator is where there is no GPU,
        which on ZeroGPU is everywhere but inside of what has been lent one.
        """
        if task not in self._operators:
            operator = load_operator(self._place(task))
            trained_for = operator.metadata.get("task", task)
            if trained_for != task:
                raise OperatorError(
                    f"This operator was trained for {trained_for}, not for {task}: choose that "
                    f"task, or an operator for one of {', '.join(TASKS)}."
                )
            if operator.latent_channels != self.prior.latent_channels:
                raise BadRequest(
                    f"The operator reads latents of {operator.latent_channels} channels, the prior "
                    f"'{self.prior.name}' has {self.prior.latent_channels}: choose a matching pair."
                )
            self._operators[task] = operator.requires_grad_(False)
        return self._operators[task]


def _encode(prior: LatentPrior, images: Tensor) -> Tensor:
    return within_memory(prior, autoencoding(len(images)), lambda: prior.encode(images))


@torch.no_grad()
def _decode(prior: LatentPrior, latents: Tensor) -> Tensor:
    return within_memory(prior, autoencoding(len(latents)), lambda: prior.decode(latents))


def _calls(prior: LatentPrior) -> tuple[int, int, int]:
    return prior.nfe, prior.encodes, prior.decodes
