"""silo-fast: a few steps guided in latent space, with no gradient through the denoiser."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import adaptive_avg_pool2d

from silo.errors import BadRequest
from silo.samplers.problem import Problem, Sampler, Step, standard_normal
from silo.schedule import Schedule, to_clean, to_epsilon

Measure = Callable[[Tensor], Tensor]  # H_theta of clean estimates (B, C, h, w)

# Where H_theta weakens detail, a step made for a Jacobian of 1 falls short: one for a smaller, down
# to this, is longer. Corrections converge where the Jacobian's norm, which is near 1, is below 2 J.
JACOBIAN = 0.65
PROBES = 3  # corrections of w by itself, which show what corrections can reach
# They do not converge where the last leaves more than STALLED of the error that the one before it
# left, and more than REMAINING of the first: what has become small may well stay as it is.
STALLED, REMAINING = 0.92, 0.25
# In place of a correction then: so many steps of descent, which leave so many times as much open.
DESCENT_STEPS, DESCENT_DOUBT = 5, 2.0
# The share of the first error that the trial corrections leave tells how much detail H_theta
# loses, from none to all that matters. The less it loses, the longer the steps set shapes, and
# errors of theirs are taken back: with a correction, and noise that is all fresh.
LOST_NONE, LOST_ALL = 0.1, 0.2
SHAPING_WHERE_KNOWN, SHAPING_WHERE_LOST = 0.5, 0.25
# Then a share of the predicted noise is kept in the next level's, by which textures come out
# sharper; in a hole less, where it becomes clutter. Where detail is lost, noise is a little
# weaker, lest textures come out too sharp.
KEPT, KEPT_IN_HOLES = 0.95, 0.4
NOISE_WHERE_LOST = 0.98
# In the last steps noise, too, is corrected, by so much of what an estimate is. Not sooner: what
# is measured around a hole would have less noise than the hole, which then fills with shards.
SETTLING, SETTLED = 0.8, 0.5
# rmse of an operator that does not say its own, per latent element.
DEFAULT_RMSE = 0.15


@torch.no_grad()
def silo_fast(
    problem: Problem,
    schedule: Schedule,
    *,
    eta: float,
    generators: Sequence[torch.Generator],
    clamp: float | None = None,
) -> Generator[Step, None, None]:
    """Per step, one denoiser evaluation, one correction towards w, and noise, in part fresh.

    The correction is Van Cittert's on w = H_theta(z): where the measurement tells something,
    H_theta is near the identity, so that the error w - H_theta(z0hat) is itself a direction that
    lessens it, and no gradient is needed. The gain eta k r^2 / (eta J k r^2 + s^2) weighs what the
    denoiser leaves open, r^2 = 1 - abar, against H_theta's error on held-out latents, s = `rmse`;
    k is the share of a latent pixel that is known, J how much of a correction H_theta passes on.

    Where H_theta loses detail altogether, as in SR x8, such corrections stop short of w and grow
    what cannot be reached; where it turns detail around, as a motion blur does, they diverge. This
    is tried on w beforehand. A measurement of that kind is answered, once shapes are set, by
    gradient descent on ||w - H_theta(z)||^2 / s^2 + ||z - z0hat||^2 / (2 eta r^2), through H_theta
    alone. J is what the first trial shows, between JACOBIAN and 1; what the last leaves tells how
    much detail the denoiser has to draw, and so how soon the noise that it predicts is kept.

    In the last steps noise is corrected halfway, too, by what H_theta passes on of it: what is
    measured settles, without grain, and what is not is still drawn.

    For the arguments see `Sampler`; here eta divides the variance that H_theta's error is taken
    to have, and 0 leaves w out. What lies in a hole is left to the denoiser.

    Raises:
        BadRequest: there is no latent operator, it reads the denoiser's features, or a clamp is
            asked for, of which there is nothing to bound.
    """
    operator = problem.operator
    if operator is not None and operator.needs_features:
        raise BadRequest("silo-fast needs an operator that reads the latent alone: use silo.")
    if clamp is not None:
        raise BadRequest("silo-fast takes no gradient that a clamp could bound: leave it out.")
    w = problem.measurement_latent
    known = _known(problem.mask, w)
    rmse = DEFAULT_RMSE if operator is None else operator.metadata.get("rmse", DEFAULT_RMSE)
    z, trials = standard_normal(generators, w), None
    for index, (t, alpha_bar, alpha_bar_prev) in enumerate(schedule):
        prediction = problem.predict(z, t)
        kind = problem.prior.prediction_type
        clean = to_clean(z, prediction.output, alpha_bar, kind)
        epsilon = to_epsilon(z, prediction.output, alpha_bar, kind)
        measure = partial(problem.predict_measurement, prediction=prediction)
        error = known * (w - measure(clean))
        residual = vector_norm(error, dim=(1, 2, 3))
        if trials is None:
            trials = _trials(measure, w, known, holes=problem.mask is not None)
        doubt, progress = eta * (1 - alpha_bar), (index + 0.5) / len(schedule)
        gain = doubt / (trials.jacobian * known * doubt + rmse**2)
        moved = clean + gain * error
        if trials.stalling is not None and progress >= SHAPING_WHERE_LOST:
            descended = _descend(measure, clean, w, known, DESCENT_DOUBT * doubt, rmse**2)
            moved = torch.where(trials.stalling, descended, moved)
        fresh = standard_normal(generators, z)
        noise = (1 - alpha_bar_prev) ** 0.5 * _noise(epsilon, fresh, trials.lost, known, progress)
        if progress >= SETTLING and alpha_bar_prev < 1:
            grown = known * (w - measure(clean + noise)) - error
            noise = noise + SETTLED * (1 - trials.lost) * gain * grown
        z = alpha_bar_prev**0.5 * moved + noise
        yield Step(index, len(schedule), t, clean, z, residual)


class _Trials(NamedTuple):
    """How corrections of w by itself fare, each (1 or B, 1, 1, 1).

    Attributes:
        jacobian: J, how much of a step H_theta passes on, within JACOBIAN and 1.
        lost: how much detail H_theta loses, from 0 to 1.
        stalling: of which measurements they do not converge; None if all do.
    """

    jacobian: Tensor
    lost: Tensor
    stalling: Tensor | None


def _trials(measure: Measure, w: Tensor, known: Tensor, *, holes: bool) -> _Trials:
    """Correct w by itself; beside `holes`, no detail is taken to be lost where that converges."""
    z, predicted, errors = w, [], []
    for _ in range(PROBES + 1):
        predicted.append(measure(z))
        errors.append(known * (w - predicted[-1]))
        z = z + errors[-1] / JACOBIAN
    first, *_, before, last = (vector_norm(e, dim=(1, 2, 3), keepdim=True) for e in errors)
    lost = (last / first).nan_to_num(0).sub(LOST_NONE).div(LOST_ALL - LOST_NONE).clamp(0, 1)
    stalling = (last > STALLED * before) & (last > REMAINING * first)
    return _Trials(
        _jacobian(errors[0] / JACOBIAN, predicted[1] - predicted[0]),
        lost * stalling if holes else lost,
        stalling if stalling.any() else None,
    )


def _jacobian(step: Tensor, response: Tensor) -> Tensor:
    """How much of a step H_theta passes on, J, (1 or B, 1, 1, 1), within JACOBIAN and 1."""
    along = (response * step).sum(dim=(1, 2, 3), keepdim=True)
    squared = step.square().sum(dim=(1, 2, 3), keepdim=True)
    return (along / squared).nan_to_num(1).clamp(JACOBIAN, 1)  # 0 / 0: w is passed on as it is


def _descend(
    measure: Measure, clean: Tensor, w: Tensor, known: Tensor, doubt: float, variance: float
) -> Tensor:
    """Descends ||known (w - H(z))||^2 / variance + ||z - clean||^2 / doubt from `clean`.

    The step is Newton's for a Jacobian whose square is JACOBIAN.
    """
    z = clean
    for _ in range(DESCENT_STEPS):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            predicted = measure(z)
            (pull,) = torch.autograd.grad(predicted, z, (known * (w - predicted)).detach())
        z = z.detach()
        z = z + (doubt * pull - variance * (z - clean)) / (JACOBIAN * doubt + variance)
    return z


def _noise(epsilon: Tensor, fresh: Tensor, lost: Tensor, known: Tensor, progress: float) -> Tensor:
    """The next level's noise (B, C, h, w), of the predicted and fresh noise, both so shaped."""
    shaped = lost * (progress >= SHAPING_WHERE_LOST)
    shaped = shaped + (1 - lost) * (progress >= SHAPING_WHERE_KNOWN)
    kept = shaped * (KEPT_IN_HOLES + (KEPT - KEPT_IN_HOLES) * known)
    strength = 1 + (NOISE_WHERE_LOST - 1) * lost
    return strength * (kept * epsilon + (1 - kept**2) ** 0.5 * fresh)


def _known(mask: Tensor | None, w: Tensor) -> Tensor:
    """The share of each latent pixel that is known, (1 or B, 1, h, w); 1 without a mask."""
    if mask is None:
        return w.new_ones(1, 1, 1, 1)
    return adaptive_avg_pool2d(mask.to(w), (w.shape[2], w.shape[3]))


SILO_FAST = Sampler(silo_fast, needs_operator=True, differentiates=False, steps=16, eta=0.7)
