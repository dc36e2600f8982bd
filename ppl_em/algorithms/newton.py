"""The end of a slow deterministic run: Newton steps on the log-likelihood itself.

Near its maximum EM gains a constant fraction per step, which may need hundreds of steps for the
last digits. The log-likelihood and its information are at hand, the standard errors need them
anyway, and Newton's method converges there in a few steps.
"""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.algorithms.history import Run
from ppl_em.algorithms.stopping import Step, Stopping, remaining_gap, remaining_steps, rounding
from ppl_em.e_step import DeterministicEStep, Strength, expectation
from ppl_em.likelihood import (
    Information,
    hold,
    is_large,
    marginal_information,
    moved,
    value_and_score,
)
from ppl_em.optimize import secant
from ppl_em.problem import Problem

NEAR = 0.01
"""Remaining gain below which Newton steps are tried: about a seventh of a standard error."""

SOON = 2
"""EM steps before them where Newton steps are the rule."""

MAX_HALVINGS = 4
"""How often a Newton step that lowers the log-likelihood is halved."""

MAX_NEWTON = 10
"""Newton steps before EM goes on."""

FINE = 1e-3
"""Share of an approximation's noise below which gains are not asked for."""

LEFT = 0.3
"""Share of the promised gain that a step may leave before the information is computed anew."""

WORTH = 15
"""EM steps still to come from which they are worth their compilation; and twice the parameters."""


class NewtonStep(NamedTuple):
    """Parameters (p,) after one step, the log-likelihood there, and the gain still promised.

    `evaluations` counts E-steps, and a Hessian as one for each parameter. `inverse` (p, p) is that
    of the information of an approximation without constraints, as far as it is known.
    """

    x: jax.Array
    value: float
    promised: float
    evaluations: int
    inverse: np.ndarray | None = None


def is_due(steps: list[Step], e_step: Any, problem: Problem, stopping: Stopping) -> bool:
    """Whether Newton steps should be tried now."""
    if stopping.gap_for(False) <= 0 or problem.spec.rough:  # every step was asked for
        return False
    if not steps:
        return False
    if e_step.noise is not None:  # EM would end in noise, and the Hessian is needed anyway
        return len(steps) >= SOON
    if e_step.strength < Strength.EXACT or remaining_gap(steps) > NEAR or is_large(problem):
        return False
    worth = max(WORTH, 2 * problem.space.size)  # a Hessian costs an E-step per parameter
    return remaining_steps(steps, stopping.gap_for(False)) > worth


def newton_steps(
    e_step: DeterministicEStep,
    problem: Problem,
    x: jax.Array,
    state: Any,
    value: float,
    gap: float,
    inverse: np.ndarray | None = None,
) -> Iterator[NewtonStep]:
    """Newton steps from `x` (p,), where the log-likelihood is `value`, as long as each one gains.

    Ends at once where the information is not positive definite; stays at `x` if the gain promised
    there is below `gap`. The information of an approximation, which takes 2p + 1 gradients, is kept
    up to date by secants as long as each step leaves no more than `LEFT` of what it promised to
    gain. With the `inverse` (p, p) of a coarser approximation it starts from that, and stays at `x`
    once, to tell the log-likelihood there.
    """
    noise, evaluations, here = e_step.noise or 0.0, x.size, None
    if inverse is None:
        here = hold(problem, x, marginal_information(e_step, problem, x, state))
        if not here.usable:
            return
        gradient, inverse, promised = here.gradient, here.covariance, here.gap
    else:
        value, gradient = value_and_score(e_step, problem, x, state)
        evaluations, promised = 0, 0.5 * gradient @ inverse @ gradient
        yield NewtonStep(x, value, promised, 1, inverse)
    by_secants = e_step.noise is not None and (here is None or here.held is None)

    def kept(inverse: np.ndarray) -> np.ndarray | None:
        return inverse if by_secants and not problem.spec.restrictions else None

    if promised < gap:
        yield NewtonStep(x, value, promised, evaluations, kept(inverse))
        return
    while True:
        step, scale = inverse @ gradient, 1.0
        for _ in range(MAX_HALVINGS):
            new_x = _moved(problem, x, scale * step, here)
            if new_x is not None:
                evaluations += 1
                if by_secants:
                    new_value, new_gradient = value_and_score(e_step, problem, new_x, state)
                    new_state = state
                else:
                    _, new_state, info = expectation(e_step, problem, new_x, state)
                    new_value = float(info.objective)
                if new_value >= value - max(noise, rounding(value, x.dtype)):
                    break
            scale /= 2
        else:
            return
        x, value, state, before = new_x, new_value, new_state, promised
        if by_secants:
            fall = jnp.asarray(gradient - new_gradient)
            inverse = np.asarray(secant(jnp.asarray(inverse), jnp.asarray(scale * step), fall))
            gradient, promised = new_gradient, 0.5 * new_gradient @ inverse @ new_gradient
        if not by_secants or scale < 1 or promised > LEFT * before:
            evaluations += x.size
            here = hold(problem, x, marginal_information(e_step, problem, x, state))
            if not here.usable:
                return
            gradient, inverse, promised = here.gradient, here.covariance, here.gap
        yield NewtonStep(x, value, float(promised), evaluations, kept(inverse))
        evaluations = 0


def _moved(
    problem: Problem, x: jax.Array, step: np.ndarray, here: Information | None
) -> jax.Array | None:
    if here is None:
        return x + jnp.asarray(step, x.dtype)
    return moved(problem, x, step, here)


def take_newton_steps(run: Run) -> bool:
    """Newton steps at the end of a run. Whether they converged: if not, it goes on.

    The history keeps the information for a finer approximation, if one follows.
    """
    problem, e_step, history, limits = run.problem, run.e_step, run.history, run.limits
    before, start, converged = history.x, time.monotonic(), True
    found: list[tuple[NewtonStep, float, int]] = []
    gap = max(limits.stopping.gap_for(False), rounding(history.objective, history.x.dtype))
    gap = max(gap, FINE * (e_step.noise or 0.0))
    start_at, inverse, history.inverse = history.objective, history.inverse, None
    for step in newton_steps(e_step, problem, history.x, history.e_state, start_at, gap, inverse):
        history.evaluations += step.evaluations
        seconds, start = time.monotonic() - start, time.monotonic()
        found.append((step, seconds, history.evaluations))
        run.bar.set_postfix_str(f"Newton step to {step.value:.6f}")
        run.bar.update(0)
        if step.promised < gap:
            break
        if (
            len(found) + len(history.rows) >= limits.max_steps
            or len(found) >= MAX_NEWTON
            or time.monotonic() > limits.deadline
        ):
            converged = False
            break
    else:
        converged = False
    if not converged and e_step.noise is None:  # EM takes as many steps for more
        return False
    for step, seconds, evaluations in found:
        if step.x is before:
            history.objective = step.value
            continue
        change = step.value - history.objective
        length = float(jnp.linalg.norm(step.x - before))
        history.record(Step(step.value, change, 0.0, length), step.x, "newton", seconds)
        history.rows[-1]["evaluations"] = evaluations
        history.x = before = step.x
        run.bar.update(1)
    history.inverse = found[-1][0].inverse if converged else None
    return converged
