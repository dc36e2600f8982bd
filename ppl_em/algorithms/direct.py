"""Maximising the objective of an E-step itself, by a quasi-Newton method or Newton's.

Fisher's identity, the gradient of the log-likelihood at theta is that of Q(. | theta) there, makes
any E-step without noise a gradient oracle; a bound that the E-step has maximised over its guide
has that gradient too.
"""

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.algorithms.boundary import to_boundary
from ppl_em.algorithms.boundary_watch import Watch
from ppl_em.algorithms.history import History, Limits, Run
from ppl_em.algorithms.newton import take_newton_steps
from ppl_em.algorithms.separation import is_time, to_limit
from ppl_em.algorithms.stopping import Step, rounding
from ppl_em.e_step import DeterministicEStep, expectation
from ppl_em.likelihood import (
    held_value_and_score,
    is_large,
    marginal_information,
    value_and_score,
)
from ppl_em.m_step import NEEDS, Region, Scipy, for_problem
from ppl_em.optimize import DERIVATIVE_FREE, SECOND_ORDER, TAKES, maximize
from ppl_em.problem import Problem, bounds, conditions, needs, violated
from ppl_em.result import Status
from ppl_em.util import ModelError

logger = logging.getLogger("ppl_em")

METHODS = ("auto", "bfgs", "lbfgs", "newton", "nelder-mead")
"""Flags of the direct method."""

SCIPY = {"bfgs": "BFGS", "lbfgs": "L-BFGS-B", "newton": "trust-exact", "nelder-mead": "Nelder-Mead"}

MAX_BFGS = 300
"""Parameters up to which `auto` keeps a dense inverse Hessian."""

FIRST = 10
"""EM steps before `finish="direct"` switches."""

WORTH = 15
"""EM steps still to come from which `finish="auto"` switches; and two for each parameter."""

FINE = 1e-10
"""Gap up to which they are counted: the last digits cost the direct method steps, too."""


WORTHWHILE = 0.01
"""Gain by a search from which another one follows, where values change with what is held."""


class _Late(Exception):
    """Raised inside a search when the time is over."""


class _AtLimit(Exception):
    """Raised inside a search that has been found to run to infinity."""


class _Drifting(Exception):
    """Raised inside a search that runs towards a bound of the parameters."""


@dataclass(eq=False)
class Ascent:
    """A climb from the end of `history` to a maximum, which leaves its steps there.

    Attributes
    ----------
    inverse_hessian
        What BFGS assumes at first of the inverse of minus the Hessian, (p, p); from EM it is that
        of Q, the inverse of the complete-data information.
    """

    run: Run
    inverse_hessian: np.ndarray | None = None
    problem: Problem = field(init=False)
    e_step: DeterministicEStep = field(init=False)
    history: History = field(init=False)
    limits: Limits = field(init=False)
    method: str = field(init=False)
    state: Any = field(init=False)
    watch: Watch = field(init=False)
    first: jax.Array = field(init=False)
    norm: float = field(default=np.nan, init=False)
    clock: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        run = self.run
        self.problem, self.e_step, self.history = run.problem, run.e_step, run.history
        self.limits = run.limits
        self.method = _method(self.problem, self.limits.plan.method)
        self.state, self.first = self.history.e_state, self.history.x
        self.watch = Watch(self.problem, self.e_step, self.limits.stopping)

    def climb(self) -> Status:
        """Climb.

        Returns
        -------
        Status
            `CONVERGED` only if the observed information says that the gain still to be had is
            below the tolerance. `STALLED` if the method found nothing more, but the information
            cannot be inverted, or is too large: EM steps can tell then.
        """
        drifting = True
        while drifting:
            try:
                ended = self._climb()
                drifting = False
            except _Drifting:
                if self._at_bound(self.watch.far_towards(self.first, self.history.x)):
                    return Status.BOUNDARY
            except _AtLimit:
                return Status.BOUNDARY
            except _Late:
                return Status.MAX_SECONDS
        if ended is not None:
            return ended
        if self._at_bound(self.watch.far_towards(self.first, self.history.x)):
            return Status.BOUNDARY
        if not is_large(self.problem) and take_newton_steps(self.run):
            return Status.CONVERGED
        spent = len(self.history.rows) >= self.limits.max_steps
        return Status.MAX_STEPS if spent else Status.STALLED

    def _climb(self) -> Status | None:
        """Searches while they gain, one if nothing is held; a status if nothing is to be done."""
        while True:
            before = self.history.objective
            ended = self._search()
            if ended is not None or not self.e_step.holds:
                return ended
            if not self.history.objective > before + WORTHWHILE:
                return None

    def _search(self) -> Status | None:
        """One search; a status if nothing is to be done after it."""
        problem, history = self.problem, self.history
        budget, start = self.limits.max_steps - len(history.rows), np.asarray(history.x, float)
        if budget <= 0:
            return Status.MAX_STEPS
        within = bounds(problem, barriers=True), conditions(problem, barriers=True)
        if self.method in DERIVATIVE_FREE:
            search = Scipy(self.method, max_steps=budget)
            best, _, info = search.search(
                lambda x: self._value_and_gradient(x)[0],
                start,
                search.init(history.x),
                Region(*within),
            )
            self._record(best, float(info.q_end))
            return Status.STALLED  # there is no information to confirm it
        noise = max(self.e_step.noise or 0.0, rounding(history.objective, history.x.dtype))
        found = maximize(
            self._value_and_gradient,
            start,
            self.method,
            max_steps=budget,
            tol=max(self.limits.stopping.gap_for(False), noise),
            bounds=within[0],
            conditions=within[1],
            hessian=self._hessian if self.method in SECOND_ORDER else None,
            inverse_hessian=self.inverse_hessian if self.method == "BFGS" else None,
            callback=self._step,
        )
        logger.info("%s, after %d steps: %s", self.method, len(history.rows), found.message)
        if not np.isfinite(found.start_value):
            return Status.NON_FINITE
        self._record(found.x, found.value)
        return None

    def _at_bound(self, towards: np.ndarray) -> bool:
        return to_boundary(self.run, towards)

    def _value_and_gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        self.history.evaluations += 1
        point = jnp.asarray(x, self.history.x.dtype)
        if self.e_step.holds:
            found, slope = held_value_and_score(self.e_step, self.problem, point, self.state)
            state = self.state
        else:
            found, slope, state = value_and_score(self.e_step, self.problem, point, self.state)
        value, gradient = float(found), np.asarray(slope, float)
        if np.isfinite(value) and np.all(np.isfinite(gradient)):
            self.state, self.norm = state, float(np.linalg.norm(gradient))
        return value, gradient

    def _hessian(self, x: np.ndarray) -> np.ndarray:
        self.history.evaluations += x.size
        point = jnp.asarray(x, self.history.x.dtype)
        found = marginal_information(self.e_step, self.problem, point, self.state)
        return -np.asarray(found.matrix, float)

    def _step(self, x: np.ndarray, value: float) -> None:
        self._record(x, value)
        if time.monotonic() > self.limits.deadline:
            raise _Late
        # A search that is broken off loses its curvature: only far from where it began.
        towards = self.watch.far_towards(self.first, self.history.x)
        if towards.any() and self.watch.is_due(self.history.steps, False):
            raise _Drifting
        if is_time(self.history.steps) and not towards.any() and to_limit(self.run):
            raise _AtLimit

    def _record(self, x: np.ndarray, value: float) -> None:
        history = self.history
        point = jnp.asarray(x, history.x.dtype)
        if value <= history.objective or violated(self.problem, point) is not None:
            return  # some methods go outside on their way
        seconds, self.clock = time.monotonic() - self.clock, time.monotonic()
        length = float(jnp.linalg.norm(point - history.x))
        history.record(
            Step(value, value - history.objective, 0.0, length), point, "direct", seconds
        )
        history.rows[-1]["gradient_norm"] = self.norm
        if self.e_step.holds:
            self.state = expectation(self.e_step, self.problem, point, self.state)[1]
        history.x, history.e_state = point, self.state
        self.run.bar.update(1)
        self.run.bar.set_postfix_str(f"{self.method} {value:.6f}, |grad| {self.norm:.1e}")


def _method(problem: Problem, flag: str) -> str:
    """The method of SciPy for a flag, and for what the problem needs."""
    asked, size = needs(problem, barriers=True), problem.space.size
    if flag != "auto":
        method = SCIPY[flag]
        unmet = [need for need in asked if method not in TAKES[need]]
        if unmet:
            raise ModelError(
                f"Option `method`: '{flag}' does not take {NEEDS[unmet[0]]} "
                f"('{asked[unmet[0]][0]}'). Use method='auto'."
            )
        return method
    if asked:
        return getattr(for_problem("auto", size, asked), "method", "SLSQP")
    return "BFGS" if size <= MAX_BFGS else "L-BFGS-B"


def climb_directly(run: Run) -> tuple[Status, float]:
    """The direct method from the start: how it ended, and the seconds of the first evaluation."""
    start = time.monotonic()
    history = run.history
    value, _, history.e_state = value_and_score(run.e_step, run.problem, history.x, history.e_state)
    history.objective, seconds = float(value), time.monotonic() - start
    if not np.isfinite(history.objective):
        return Status.NON_FINITE, seconds
    return Ascent(run).climb(), seconds


def switch_reason(finish: str | None, steps: list[Step], size: int, gap: float) -> str:
    """Why EM should hand over to the direct method now; empty if it should not.

    Parameters
    ----------
    finish
        `"direct"`, `"auto"`, or whatever else never switches.
    steps
        EM steps so far.
    size
        Number of parameters, each of which costs a quasi-Newton method some evaluations.
    gap
        Tolerance on the remaining gain.
    """
    if finish == "direct" and len(steps) >= FIRST:
        return f"{len(steps)} EM steps are done"
    if finish != "auto" or len(steps) < 3:
        return ""
    gains = np.array([step.change for step in steps[-4:]])
    if not np.all(gains > gap):
        return ""
    # Near the maximum gains shrink by the square of the rate.
    rate = min(float(np.median(np.sqrt(gains[1:] / gains[:-1]))), 1 - 1e-6)
    rest = gains[-1] * rate**2 / (1 - rate**2)
    left = np.log(max(rest / max(gap, FINE), 1.0)) / (-2 * np.log(rate))
    if left <= WORTH + 2 * size:
        return ""
    return f"at the observed rate {rate:.3f} EM would need about {left:.0f} more steps"
