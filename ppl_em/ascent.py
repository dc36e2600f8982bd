"""Maximising the objective of an E-step itself, by a quasi-Newton method or Newton's.

Fisher's identity, the gradient of the log-likelihood at theta is that of Q(. | theta) there, makes
any E-step without noise a gradient oracle; a bound that the E-step has maximised over its guide
has that gradient too.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from ppl_em import host
from ppl_em.e_step import DeterministicEStep, EStep, noise_of
from ppl_em.feasibility import bounds, conditions, needs
from ppl_em.home_stretch import take_newton_steps
from ppl_em.information import is_large, marginal_information
from ppl_em.m_step import NEEDS, Scipy, for_problem
from ppl_em.m_step import Limits as MStepLimits
from ppl_em.problem import Problem
from ppl_em.stopping import Status, Step, rounding
from ppl_em.trail import Limits, Trail
from ppl_em.validation import ModelError

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


@jax.jit(static_argnums=0)
def score(e_step: EStep, problem: Problem, x: jax.Array, state: Any) -> tuple:
    """Objective at `x` (p,), its gradient (p,) by Fisher's identity, and the E-step's state."""
    posterior, state, info = e_step.step(problem, problem.constrain(x), state)
    held = jax.lax.stop_gradient(posterior)

    def q_function(x: jax.Array) -> jax.Array:
        return held.expected_log_joint(problem, problem.constrain(x))

    return info.objective, jax.grad(q_function)(x), state


def ascend(
    problem: Problem,
    e_step: DeterministicEStep,
    trail: Trail,
    limits: Limits,
    bar: tqdm,
    inverse_hessian: np.ndarray | None = None,
) -> Status:
    """Climb from the end of `trail` to a maximum, and leave the steps there.

    Parameters
    ----------
    inverse_hessian
        What to assume at first of the inverse of minus the Hessian, (p, p); from EM it is that of
        Q, the inverse of the complete-data information.

    Returns
    -------
    Status
        `CONVERGED` only if the observed information says that the gain still to be had is below
        the tolerance. `STALLED` if the method found nothing more, but the information cannot be
        inverted, or is too large: EM steps can tell then.
    """
    method = _method(problem, limits.plan.method)
    state, start, dtype = trail.e_state, time.monotonic(), trail.x.dtype
    last, norm = trail.x, np.nan

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal state, norm
        trail.evaluations += 1
        value, gradient, new_state = score(e_step, problem, jnp.asarray(x, dtype), state)
        value, gradient = float(value), np.asarray(gradient, float)
        if np.isfinite(value) and np.all(np.isfinite(gradient)):
            state, norm = new_state, float(np.linalg.norm(gradient))
        return value, gradient

    def objective(x: np.ndarray) -> float:
        return value_and_gradient(x)[0]

    def hessian(x: np.ndarray) -> np.ndarray:
        trail.evaluations += x.size
        found = marginal_information(e_step, problem, jnp.asarray(x, dtype), state)
        return -np.asarray(found.matrix, float)

    def record(x: np.ndarray, value: float) -> None:
        nonlocal start, last
        if value <= trail.objective:
            return
        seconds, start = time.monotonic() - start, time.monotonic()
        new_x = jnp.asarray(x, dtype)
        length = float(jnp.linalg.norm(new_x - last))
        trail.record(Step(value, value - trail.objective, 0.0, length), new_x, "direct", seconds)
        trail.rows[-1]["gradient_norm"] = norm
        trail.x, trail.e_state, last = new_x, state, new_x
        bar.update(1)
        bar.set_postfix_str(f"{method} {value:.6f}, |grad| {norm:.1e}")
        if time.monotonic() > limits.deadline:
            raise TimeoutError

    gap, budget = limits.stopping.gap_for(False), limits.max_steps - len(trail.rows)
    noise = max(noise_of(e_step) or 0.0, rounding(trail.objective, dtype))
    if method in host.DERIVATIVE_FREE:
        record(*_without_gradient(method, objective, np.asarray(trail.x, float), problem, budget))
        return Status.STALLED  # there is no information to confirm it
    if budget > 0:
        try:
            found = host.maximize(
                value_and_gradient,
                np.asarray(trail.x, float),
                method,
                max_steps=budget,
                tol=max(gap, noise),
                bounds=bounds(problem, barriers=True),
                conditions=conditions(problem, barriers=True),
                hessian=hessian if method in host.SECOND_ORDER else None,
                inverse_hessian=inverse_hessian if method == "BFGS" else None,
                callback=record,
            )
        except TimeoutError:
            return Status.MAX_SECONDS
        logger.info("%s, after %d steps: %s", method, len(trail.rows), found.message)
        if not np.isfinite(found.start_value):
            return Status.NON_FINITE
        record(found.x, found.value)
    if not is_large(problem) and take_newton_steps(problem, e_step, trail, limits, bar):
        return Status.CONVERGED
    return Status.MAX_STEPS if len(trail.rows) >= limits.max_steps else Status.STALLED


def _method(problem: Problem, flag: str) -> str:
    """The method of SciPy for a flag, and for what the problem needs."""
    asked, size = needs(problem, barriers=True), problem.spec.space.size
    if flag != "auto":
        method = SCIPY[flag]
        unmet = [need for need in asked if method not in host.TAKES[need]]
        if unmet:
            raise ModelError(
                f"Option `method`: '{flag}' does not take {NEEDS[unmet[0]]} "
                f"('{asked[unmet[0]][0]}'). Use method='auto'."
            )
        return method
    if asked:
        return getattr(for_problem("auto", size, asked), "method", "SLSQP")
    return "BFGS" if size <= MAX_BFGS else "L-BFGS-B"


def _without_gradient(
    method: str, function: Callable, x: np.ndarray, problem: Problem, max_steps: int
) -> tuple[np.ndarray, float]:
    """Where simplices lead from `x` (p,), and the value there."""
    search = Scipy(method, max_steps=max_steps)
    limits = MStepLimits(bounds(problem, barriers=True), conditions(problem, barriers=True))
    found, _, info = search.search(function, x, search.init(jnp.asarray(x)), limits)
    return found, float(info.q_end)


def climb_directly(
    problem: Problem, e_step: DeterministicEStep, trail: Trail, limits: Limits, bar: tqdm
) -> tuple[Status, float]:
    """The direct method from the start: how it ended, and the seconds of the first evaluation."""
    start = time.monotonic()
    value, _, trail.e_state = score(e_step, problem, trail.x, trail.e_state)
    trail.objective, seconds = float(value), time.monotonic() - start
    if not np.isfinite(trail.objective):
        return Status.NON_FINITE, seconds
    return ascend(problem, e_step, trail, limits, bar), seconds


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
