"""Before a maximum is claimed: the score and the information at the end of a run without noise.

A run that its own rule ends, because steps were short or gained little, may be at a maximum, at a
saddle, or on a slope on which it only creeps. The gain that a Newton step still promises and the
smallest eigenvalue of the scaled information tell. Where something is left to gain it is taken, by
Newton steps in a trust region, which also go along directions of negative curvature.
"""

import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.algorithms.ascent import MAX_HALVINGS, MAX_LENGTH, Model, Point, ascend
from ppl_em.algorithms.history import Run
from ppl_em.algorithms.newton import FINE
from ppl_em.algorithms.stopping import Step, rounding
from ppl_em.e_step import expectation
from ppl_em.likelihood import (
    Information,
    held_value_and_score,
    marginal_information,
    moved,
    named,
    set_aside,
)
from ppl_em.params import flat_labels
from ppl_em.result import CONVERGED, Certificate, Status

PROMISE = 1e-9
"""Gain, in nats, below which no further step is taken: 4.5e-5 standard errors."""

ENOUGH = 1e-6
"""Gain that may be promised where no step brings it."""

MAX_NEWTON = 60
"""Newton steps of one climb."""

MAX_SADDLES = 5
"""Saddles that a run leaves."""

MAX_PARAMS = 300
"""Parameters up to which the information is computed whole."""

ENDS = (*CONVERGED, Status.STALLED, Status.DECREASED)
"""Ends of a run that are looked at: those that found nothing more to gain."""


class Certified(NamedTuple):
    """The certificate, with the information (p, p) that it was read from, at `x` (p,)."""

    certificate: Certificate
    information: Information
    x: jax.Array


@dataclass
class _Whole:
    """The log-likelihood with what cannot move held; `information` is that at the latest point."""

    run: Run
    raw: Information = field(init=False)
    information: Information = field(init=False)
    left_out: np.ndarray = field(init=False)

    def at(self, x: jax.Array, state: Any) -> tuple[float, Any]:
        self.run.history.evaluations += 1
        _, state, info = expectation(self.run.e_step, self.run.problem, x, state)
        return float(info.objective), state

    def floor(self, value: float) -> float:
        return max(self.run.e_step.noise or 0.0, rounding(value, self.run.history.x.dtype))

    def move(self, here: Point, step: np.ndarray) -> jax.Array | None:
        return moved(self.run.problem, here.x, step, self.information)

    def model(self, x: jax.Array, state: Any, before: Point, taken: np.ndarray) -> Model | None:
        return self.model_at(x, state)

    def model_at(self, x: jax.Array, state: Any) -> Model | None:
        """By the Hessian; without what is at a bound, flat, or has no influence."""
        run = self.run
        run.history.evaluations += x.size
        self.raw = marginal_information(run.e_step, run.problem, x, state)
        if not np.all(np.isfinite(self.raw.matrix)):
            return None

        def look(x: jax.Array) -> float:
            return self.at(x, state)[0]

        found = set_aside(run.problem, x, self.raw, run.history.at, look)
        self.information, self.left_out, _ = found
        step, promised = self.information.uphill(MAX_LENGTH)
        return Model(step, promised) if np.isfinite(promised) else None

    def certificate(self, x: jax.Array) -> Certificate:
        """From the latest information, which is at `x` (p,)."""
        here = self.information
        labels = flat_labels(self.run.problem.constrain(x))
        held = tuple(labels[i] for i in self.left_out)
        score, inside = here.inside
        if not len(score):
            return Certificate(0.0, 0.0, np.inf, held)
        values, vectors = np.linalg.eigh(inside)
        if not here.usable:
            promised = here.uphill(MAX_LENGTH)[1]
            along = here.frame @ vectors[:, 0]
            names = tuple(named(self.run.problem, x, along, here.matrix))
            return Certificate(
                promised, np.sqrt(2 * promised), float(values[0]), held, "information", names
            )
        step, errors = here.newton_step, np.sqrt(np.diag(here.covariance))
        longest = float(np.max(np.abs(step) / np.where(errors > 0, errors, np.inf)))
        return Certificate(float(0.5 * step @ here.gradient), longest, float(values[0]), held)


def certify(run: Run, status: Status) -> Status | None:
    """Look at where a run has ended, and climb on from there if it is not a maximum.

    The history keeps the certificate; `None` asks for the run to go on, from beyond a saddle.
    """
    history, e_step = run.history, run.e_step
    if status not in ENDS or not e_step.is_function or run.limits.stopping.gap_for(False) <= 0:
        return status
    if not np.isfinite(history.objective):
        return Status.NON_FINITE
    if history.x.size > MAX_PARAMS:
        return _by_score(run, status)
    terrain = _Whole(run)
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
    if terrain.information.usable or certificate.smallest_eigenvalue > -terrain.raw.resolution:
        return maximum
    beyond = _beyond(terrain, here)
    if beyond is None:
        return maximum
    if history.saddles >= MAX_SADDLES or run.limits.plan.finish == "em":
        return Status.SADDLE
    history.saddles += 1
    history.inverse = None
    history.decide(f"a saddle: on in the direction of {', '.join(certificate.direction)}")
    _record(run, here, beyond, time.monotonic())
    return None


def _tolerance(run: Run, value: float) -> float:
    noise = FINE * (run.e_step.noise or 0.0)
    gap = run.limits.stopping.gap_for(False)
    return max(gap, PROMISE, noise, 10 * rounding(value, run.history.x.dtype))


def _short_of_it(run: Run, status: Status) -> Status:
    """The status of a run whose last place promises a gain."""
    if len(run.history.rows) >= run.limits.max_steps:
        return Status.MAX_STEPS
    if time.monotonic() > run.limits.deadline:
        return Status.MAX_SECONDS
    return Status.STALLED if status in CONVERGED else status


def _climbed(run: Run, terrain: _Whole, here: Point) -> Point:
    """Newton steps while they promise something, and the budgets last."""
    if run.limits.plan.finish == "em":
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


def _beyond(terrain: _Whole, here: Point) -> Point | None:
    """A place that is higher, on either side of a saddle; None if there is none."""
    basis = terrain.information.frame
    vectors = np.linalg.eigh(terrain.information.inside[1])[1]
    best = None
    least = here.value + max(10 * terrain.floor(here.value), ENOUGH / 10)
    for count in range(MAX_HALVINGS):
        for side in (-1.0, 1.0):
            x = terrain.move(here, side * 2.0**-count * (basis @ vectors[:, 0]))
            if x is None:
                continue
            value, state = terrain.at(x, here.state)
            if np.isfinite(value) and value > (least if best is None else best.value):
                best = Point(x, state, value, None)
        if best is not None:
            return best
    return None


def _by_score(run: Run, status: Status) -> Status:
    """Where there is no information: nothing is known but the score."""
    history = run.history
    _, score = held_value_and_score(run.e_step, run.problem, history.x, history.e_state)
    if not np.all(np.isfinite(score)):
        return Status.NON_FINITE if status in CONVERGED else status
    certificate = Certificate(np.nan, np.nan, np.nan, (), "gradient")
    history.certified = Certified(certificate, None, history.x)  # type: ignore[arg-type]
    return status
