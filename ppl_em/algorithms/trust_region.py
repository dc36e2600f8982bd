"""Newton steps on the log-likelihood from places that may be far from its maximum.

Where EM creeps, because of a wrong start or of what the data leave open, the log-likelihood itself
is climbed. Its quadratic model is believed within a region that grows while it tells the truth, and
may curve upwards: that is a direction to go.
"""

import time
from dataclasses import dataclass, field

import jax
import numpy as np

from ppl_em.algorithms.ascent import MAX_LENGTH, MOST
from ppl_em.algorithms.boundary import to_boundary
from ppl_em.algorithms.boundary_watch import Watch
from ppl_em.algorithms.history import Run
from ppl_em.algorithms.newton import NEAR, take_newton_steps
from ppl_em.algorithms.separation import is_time, to_limit
from ppl_em.algorithms.stopping import Step, rounding
from ppl_em.e_step import expectation
from ppl_em.likelihood import Information, hold, marginal_information, moved
from ppl_em.params import has_end
from ppl_em.result import Status

ENOUGH = 1e-6
"""Gain, in nats, that may be promised where no step brings it."""

MAX_RADIUS, MIN_RADIUS = 1e6, 1e-4
"""Radii of the region, in units in which the information has a unit diagonal."""

PATIENCE = 25
"""EM steps before a climb where there are discrete latents."""

POOR, GOOD = 0.25, 0.75
"""Shares of the promised gain, below which the region shrinks, and above which it grows."""

CHANGE = 4.0
"""Factor by which it does."""


def may_leave(run: Run) -> bool:
    """Whether EM may be left at all: there are gradients, and not every step was asked for."""
    has_gradients = run.e_step.is_function and not run.problem.spec.rough
    return has_gradients and run.limits.stopping.gap_for(False) > 0


def is_early(run: Run) -> bool:
    """Whether EM should go on yet, because it finds the better of several maxima more often.

    Where components begin alike a quadratic model says little of where they belong.
    """
    return bool(run.problem.spec.discrete) and len(run.history.rows) < PATIENCE


@dataclass(eq=False)
class Region:
    """A climb from the end of the run's history, which leaves its steps there."""

    of: Run
    radius: float = MAX_LENGTH
    watch: Watch = field(init=False)
    first: jax.Array = field(init=False)
    ended: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        of = self.of
        self.watch = Watch(of.problem, of.e_step, of.limits.stopping)
        self.first, self.ended = of.history.x, has_end(of.problem.space)

    def climb(self) -> Status:
        """Climb until nothing more is promised; `STALLED` if what is promised is not gained."""
        history, limits, near = self.of.history, self.of.limits, False
        while len(history.rows) < limits.max_steps:
            if time.monotonic() > limits.deadline:
                return Status.MAX_SECONDS
            here = self._information()
            promised = here.within(self.radius)[1]
            if not np.isfinite(promised):
                return Status.STALLED
            if here.usable and here.gap < NEAR and not near:
                near = True
                if take_newton_steps(self.of):
                    return Status.CONVERGED
                continue
            if not self._step(here):
                # Directions may be flat, which the certificate tells from saddles.
                return Status.CONVERGED if promised < ENOUGH else Status.STALLED
            towards = self.watch.far_towards(self.first, history.x)
            due = towards.any() and self.watch.is_due(history.steps, False)
            if due and to_boundary(self.of, towards):
                return Status.BOUNDARY
            if is_time(history.steps) and not towards.any() and to_limit(self.of):
                return Status.BOUNDARY
        return Status.MAX_STEPS

    def _information(self) -> Information:
        of, history = self.of, self.of.history
        history.evaluations += history.x.size
        found = marginal_information(of.e_step, of.problem, history.x, history.e_state)
        return hold(of.problem, history.x, found)

    def _step(self, here: Information) -> bool:
        """One step that gains, of a length that the model is right for. Whether there is one."""
        of, history, start = self.of, self.of.history, time.monotonic()
        floor = max(of.e_step.noise or 0.0, rounding(history.objective, history.x.dtype))
        while self.radius > MIN_RADIUS:
            step, promised, length = here.within(self.radius)
            longest = float(np.max(np.abs(step)[self.ended], initial=0.0))
            if longest > MAX_LENGTH:  # on scales of logarithms no model is right for more
                self.radius = length * min(MAX_LENGTH / longest, 0.9)
                continue
            x = moved(of.problem, history.x, step, here)
            gain = -np.inf
            if x is not None:
                history.evaluations += 1
                _, state, info = expectation(of.e_step, of.problem, x, history.e_state)
                gain = float(info.objective) - history.objective
            if not (np.isfinite(gain) and gain <= MOST * (1 + promised)):
                gain = -np.inf
            if gain > GOOD * promised:
                self.radius = min(CHANGE * self.radius, MAX_RADIUS)
            elif not gain > POOR * promised:
                self.radius = length / CHANGE
            if x is not None and gain > floor:
                length = float(np.linalg.norm(np.asarray(x) - np.asarray(history.x)))
                row = Step(float(info.objective), gain, 0.0, length)
                history.record(row, x, "newton", time.monotonic() - start, info)
                history.x, history.e_state = x, state
                of.bar.update(1)
                of.bar.set_postfix_str(f"Newton step to {history.objective:.6f}")
                return True
            if gain > POOR * promised:  # what was promised came, and is too little to see
                break
        return False
