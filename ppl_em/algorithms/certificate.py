"""Before a maximum is claimed: the score and the information at the end of a run without noise.

A run that its own rule ends, because steps were short or gained little, may be at a maximum, at a
saddle, or on a slope on which it only creeps. The gain that a Newton step still promises and the
smallest eigenvalue of the scaled information tell. Where something is left to gain it is taken, by
Newton steps in a trust region, which also go along directions of negative curvature.
"""

import itertools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.algorithms.ascent import Point, ascend
from ppl_em.algorithms.certified_model import ByProducts, Whole
from ppl_em.algorithms.history import Run
from ppl_em.algorithms.newton import FINE
from ppl_em.algorithms.stopping import Step, rounding
from ppl_em.algorithms.unbounded import STEEP, why_no_maximum
from ppl_em.e_step import expectation
from ppl_em.likelihood import (
    Information,
    change_by_last_digits,
    meaningless,
    value_and_score,
)
from ppl_em.result import CONVERGED, Certificate, Status

PROMISE = 2e-11
"""Gain, in nats, below which no further step is taken: 6e-6 standard errors."""

ENOUGH = 1e-6
"""Gain that may be promised where no step brings it."""

MAX_NEWTON = 60
"""Newton steps of one climb."""

MAX_SADDLES = 5
"""Saddles that a run leaves."""

KICKS = (1.0, 4.0)
"""Lengths of steps from a saddle, in units in which the information has a unit diagonal."""

KICKED = 8
"""Newton steps after such a step, before it is given up."""

MAX_PARAMS = 300
"""Parameters up to which the information is computed whole."""

ENDS = (*CONVERGED, Status.STALLED, Status.DECREASED)
"""Ends of a run that are looked at: those that found nothing more to gain."""


class Certified(NamedTuple):
    """The certificate, with the information (p, p) that it was read from, at `x` (p,)."""

    certificate: Certificate
    information: Information | None
    x: jax.Array


def certify(run: Run, status: Status) -> Status | None:
    """Look at where a run has ended, and climb on from there if it is not a maximum.

    The history keeps the certificate; `None` asks for the run to go on, from beyond a saddle.
    """
    history, e_step = run.history, run.e_step
    if status not in ENDS or not e_step.is_function or run.limits.stopping.gap_for(False) <= 0:
        return status
    if not np.isfinite(history.objective):
        return Status.NON_FINITE
    terrain = (ByProducts if history.x.size > MAX_PARAMS else Whole)(run)
    if not _is_real(run):
        return Status.STALLED if status is Status.CONVERGED else status
    model = terrain.model_at(history.x, history.e_state)
    if model is None:
        return _by_score(run, status)
    here = Point(history.x, history.e_state, history.objective, model)
    here = _climbed(run, terrain, here)
    if here.model is None:
        return _by_score(run, status)
    certificate = terrain.certificate(here.x)
    history.certified = Certified(certificate, terrain.raw, here.x)
    maximum = Status.BOUNDARY if history.at is not None else Status.CONVERGED
    if certificate.promised_gain > max(_tolerance(run, here.value), ENOUGH):
        return _short_of_it(run, status)
    beyond = _beyond(terrain, here)
    if beyond is None:
        return maximum
    if history.saddles >= MAX_SADDLES or run.limits.plan.finish is None:
        return Status.SADDLE
    history.saddles += 1
    history.inverse = None
    history.decide(f"a saddle: on in the direction of {', '.join(certificate.direction)}")
    _record(run, here, beyond, time.monotonic())
    return None


def _is_real(run: Run) -> bool:
    """Whether the log-likelihood is finite where the run is, has digits, and may have a maximum."""
    history, e_step, problem = run.history, run.e_step, run.problem
    posterior, state, info = expectation(e_step, problem, history.x, history.e_state)
    history.e_state, value = state, float(info.objective)
    history.evaluations += 1
    if not np.isfinite(value):
        return False
    history.noise = change_by_last_digits(e_step, problem, history.x, state, value)
    if meaningless(e_step, history.noise, value, history.x.dtype):
        return False
    away = np.asarray(history.x) - np.asarray(history.start)
    steep = bool(history.rows) and history.rows[-1].get("gradient_norm", 0.0) > STEEP
    return not why_no_maximum(problem, e_step, history.x, state, posterior, away, steep)


def _tolerance(run: Run, value: float) -> float:
    noise = FINE * (run.e_step.noise or 0.0)
    gap = run.limits.stopping.gap_for(False)
    digits = max(rounding(value, run.history.x.dtype), run.history.noise)
    return max(gap, PROMISE, noise, 10 * digits)


def _short_of_it(run: Run, status: Status) -> Status:
    """The status of a run whose last place promises a gain."""
    if len(run.history.rows) >= run.limits.max_steps:
        return Status.MAX_STEPS
    if time.monotonic() > run.limits.deadline:
        return Status.MAX_SECONDS
    return Status.STALLED if status in CONVERGED else status


def _climbed(run: Run, terrain: Whole, here: Point) -> Point:
    """Newton steps while they promise something, and the budgets last."""
    if run.limits.plan.finish is None:
        return here
    steps, start = ascend(terrain, here), time.monotonic()
    for _ in range(MAX_NEWTON):
        if here.model is None or here.model.promised < _tolerance(run, here.value):
            break
        if len(run.history.rows) >= run.limits.max_steps or start > run.limits.deadline:
            break
        following = next(steps, None)
        if following is None:
            # What was refused left the model of another place behind.
            terrain.model_at(here.x, here.state)
            break
        _record(run, here, following, start)
        here, start = following, time.monotonic()
    return here


def _record(run: Run, before: Point, here: Point, start: float) -> None:
    history = run.history
    length = float(jnp.linalg.norm(here.x - before.x))
    phase = "newton" if history.at is None else "boundary"
    change = here.value - before.value
    seconds = time.monotonic() - start
    history.record(Step(here.value, change, 0.0, length), here.x, phase, seconds)
    history.x, history.e_state = here.x, here.state
    run.bar.set_postfix_str(f"Newton step to {here.value:.6f}")
    run.bar.update(1)


def _beyond(terrain: Whole, here: Point) -> Point | None:
    """A place that is higher, on either side of a saddle; None if there is none.

    Along directions that curve upwards, or not at all: the others may have to give way first, so
    that Newton steps follow.
    """
    directions = terrain.upwards()
    least = here.value + max(10 * terrain.floor(here.value), ENOUGH / 10)
    for count, side in itertools.product(range(min(directions.shape[1], MAX_SADDLES)), (-1, 1)):
        for length in KICKS:
            x = terrain.move(here, side * length * directions[:, count])
            if x is None:
                continue
            value, state = terrain.at(x, here.state)
            if not np.isfinite(value):
                continue
            there = Point(x, state, value, None)
            if not value > least:
                there = there._replace(model=terrain.model_at(x, state))
                climb = itertools.islice(ascend(terrain, there), KICKED)
                there = next((point for point in climb if point.value > least), there)
            if there.value > least:
                return there
    return None


def _by_score(run: Run, status: Status) -> Status:
    """Where there is no information: nothing is known but the score."""
    history = run.history
    _, score, _ = value_and_score(run.e_step, run.problem, history.x, history.e_state)
    if not np.all(np.isfinite(np.asarray(score))):
        return Status.NON_FINITE if status in CONVERGED else status
    certificate = Certificate(np.nan, np.nan, np.nan, (), "gradient")
    history.certified = Certified(certificate, None, history.x)
    return status
