"""Which settings an evaluation compares: a protocol's, or every combination of the asked ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from operators.catalog import Task, get_task
from operators.latent import architectures
from silo.errors import BadRequest
from silo.evaluation.protocols import FACE_PROMPT, PAPER_STEPS, PROMPT, Protocol, Setting
from silo.samplers import SAMPLERS, Sampler

FEW_STEPS = 20  # samplers that take no more are not shortened
_GENERIC = (FACE_PROMPT, PROMPT)


@dataclass(frozen=True)
class Overrides:
    """What may be asked of a protocol, too; None or empty leaves it as it is.

    Attributes:
        tasks: only these.
        samplers: only these.
        prior: in place of the protocol's; operators and etas, which belong to those, then are the
            shelf's and the operators' own.
        operators: each of these, for samplers that need one.
        steps_scale: of every sampler's published number of steps, but those that need few anyway.
        steps: of every sampler, in place of those.
        eta: of the samplers that have one.
        prompt: in place of the paper's generic one, which suits no pictures but its own.
        seed: of every picture.

    Raises:
        BadRequest: `steps` or `steps_scale` is out of range.
    """

    tasks: Sequence[str] = ()
    samplers: Sequence[str] = ()
    prior: str | None = None
    operators: Sequence[str] = ()
    steps_scale: float = 1.0
    steps: int | None = None
    eta: float | None = None
    prompt: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Checks what would otherwise fail at every picture, or be rounded to something else."""
        if not 0 < self.steps_scale <= 1:
            raise BadRequest(f"--steps-scale {self.steps_scale:g}: set more than 0, at most 1.")
        if self.steps is not None and not 1 <= self.steps <= PAPER_STEPS:
            raise BadRequest(f"--steps {self.steps}: set 1 to {PAPER_STEPS}.")


def from_protocol(protocol: Protocol, overrides: Overrides) -> list[Setting]:
    """The settings of a protocol.

    Raises:
        BadRequest: it has none of the tasks or samplers that are asked for, or they do not fit.
    """
    settings = [
        setting
        for setting in protocol.settings
        if not overrides.tasks or setting.task in overrides.tasks
        if not overrides.samplers or setting.sampler in overrides.samplers
    ]
    if not settings:
        tasks = dict.fromkeys(setting.task for setting in protocol.settings)
        samplers = dict.fromkeys(setting.sampler for setting in protocol.settings)
        raise BadRequest(
            f"the protocol has nothing of this: its tasks are {', '.join(tasks)}, its samplers "
            f"{', '.join(samplers)}."
        )
    if overrides.prior is not None:
        own = {"prior": overrides.prior, "operator": None, "eta": None}
        settings = [replace(setting, **own) for setting in settings]
    if overrides.prompt is not None:
        settings = [
            replace(setting, prompt=overrides.prompt) if setting.prompt in _GENERIC else setting
            for setting in settings
        ]
    if overrides.seed is not None:
        settings = [replace(setting, seed=overrides.seed) for setting in settings]
    return _finish(settings, overrides)


def from_axes(
    overrides: Overrides,
    *,
    noise_sigmas: Sequence[float],
    prompts: Sequence[str | None],
    guidance_scales: Sequence[float],
    clamp: float | None,
    keep_known: bool,
    own: Task | None = None,
) -> list[Setting]:
    """Every combination; a note tells those apart that differ in prompt or guidance scale.

    A task of one's own, `own`, takes the place of the catalog's.

    Raises:
        BadRequest: an unknown sampler, nothing that any of the samplers can do, or a choice that
            none of them has a use for.
        OperatorError: an unknown task.
    """
    for sampler in overrides.samplers:
        if sampler not in SAMPLERS:
            raise BadRequest(f"there is no sampler {sampler!r}: use {', '.join(SAMPLERS)}.")
    guides = overrides.operators or overrides.eta is not None or clamp is not None
    if guides and not any(SAMPLERS[sampler].needs_operator for sampler in overrides.samplers):
        raise BadRequest(
            "an operator, eta and clamp are for samplers with a latent operator: leave them out, "
            "or add one of "
            f"{', '.join(name for name, each in SAMPLERS.items() if each.needs_operator)}."
        )
    settings = []
    tasks = overrides.tasks if own is None else [own.name]
    combinations = product(
        tasks, noise_sigmas or [None], overrides.samplers, prompts, guidance_scales
    )
    for task, noise_sigma, sampler, prompt, scale in combinations:
        if own is None:
            get_task(task)
        notes = []
        if len(guidance_scales) > 1:
            notes.append(f"CFG {scale:g}")
        if len(prompts) > 1:
            notes.append("captions" if prompt is None else f"'{prompt}'")
        settings.append(
            Setting(
                task,
                sampler,
                prior=overrides.prior or "tiny",
                degradation=None if own is None else own.degradation,
                noise_sigma=noise_sigma,
                prompt=prompt,
                guidance_scale=scale,
                clamp=clamp if SAMPLERS[sampler].needs_operator else None,
                keep_known=keep_known,
                seed=overrides.seed or 0,
                note=", ".join(notes),
            )
        )
    return _finish(settings, overrides)


def _finish(settings: Iterable[Setting], overrides: Overrides) -> list[Setting]:
    """Set operators, steps and eta; leave out what a sampler cannot do, and what is there twice.

    Raises:
        BadRequest: nothing is left.
    """
    finished: dict[str, Setting] = {}
    for setting in settings:
        sampler = SAMPLERS[setting.sampler]
        if sampler.linear_only and not setting.measured.operator().linear:
            continue
        steps = overrides.steps
        if steps is None:
            steps = scaled_steps(setting.sampler, overrides.steps_scale)
        eta = None  # a sampler with a scale of its own keeps it
        if sampler.eta is None:
            eta = setting.eta
        if overrides.eta is not None and sampler.needs_operator:
            eta = overrides.eta
        operators = overrides.operators if sampler.needs_operator else ()
        for operator in operators or (setting.operator,):
            if not _fits(sampler, operator):
                continue
            changed = replace(setting, steps=steps, eta=eta, operator=operator)
            finished.setdefault(changed.key, changed)
    if not finished:
        raise BadRequest(
            "none of these samplers can do any of these tasks with such an operator: change one."
        )
    return list(finished.values())


def _fits(sampler: Sampler, operator: str | None) -> bool:
    """Whether an operator of this architecture, or of a kind that is not known yet, can guide."""
    architecture = None if operator is None else architectures().get(operator)
    return architecture is None or sampler.differentiates or not architecture.needs_features


def scaled_steps(sampler: str, scale: float) -> int:
    """A sampler's published number of steps times `scale`; a few-step sampler's own number."""
    steps = SAMPLERS[sampler].steps
    return steps if steps <= FEW_STEPS else max(1, round(steps * scale))
