"""The end of a slow deterministic run: Newton steps on the log-likelihood itself.

Near its maximum EM gains a constant fraction per step, which may need hundreds of steps for the
last digits. The log-likelihood and its information are at hand, the standard errors need them
anyway, and Newton's method converges there in a few steps.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.e_step import DeterministicEStep, expectation, noise_of
from ppl_em.information import is_large, marginal_information, score
from ppl_em.optimize import secant
from ppl_em.problem import Problem
from ppl_em.stopping import Step, Stopping, remaining_gap, remaining_steps, rounding

NEAR = 0.01
"""Remaining gain below which Newton steps are tried: about a seventh of a standard error."""

SOON = 2
"""EM steps before them where Newton steps are the rule."""

MAX_HALVINGS = 4
"""How often a Newton step that lowers the log-likelihood is halved."""

LEFT = 0.1
"""Share of the promised gain that a step may leave before the information is computed anew."""

WORTH = 15
"""EM steps still to come from which they are worth their compilation; and twice the parameters."""


class NewtonStep(NamedTuple):
    """Parameters (p,) after one step, the log-likelihood there, and the gain still promised."""

    x: jax.Array
    value: float
    promised: float


def is_due(steps: list[Step], e_step: Any, problem: Problem, stopping: Stopping) -> bool:
    """Whether Newton steps should be tried now."""
    if stopping.gap_for(False) <= 0:  # every step was asked for
        return False
    if not steps:
        return False
    if noise_of(e_step) is not None:  # EM would end in noise, and the Hessian is needed anyway
        return len(steps) >= SOON
    if e_step.kind != "exact" or remaining_gap(steps) > NEAR or is_large(problem):
        return False
    worth = max(WORTH, 2 * problem.spec.space.size)  # a Hessian costs an E-step per parameter
    return remaining_steps(steps, stopping.gap_for(False)) > worth


def newton_steps(
    e_step: DeterministicEStep, problem: Problem, x: jax.Array, state: Any, value: float
) -> Iterator[NewtonStep]:
    """Newton steps from `x` (p,), where the log-likelihood is `value`, as long as each one gains.

    Ends at once where the information is not positive definite. That of an approximation, which
    takes 2p + 1 gradients, is kept up to date by secants as long as each step leaves a tenth or
    less of what it promised to gain.
    """
    information = marginal_information(e_step, problem, x, state)
    noise, by_secants = noise_of(e_step) or 0.0, noise_of(e_step) is not None
    if not information.usable:
        return
    gradient, inverse, promised = information.gradient, information.covariance, information.gap
    while True:
        step, scale = jnp.asarray(inverse @ gradient, x.dtype), 1.0
        for _ in range(MAX_HALVINGS):
            new_x = x + scale * step
            _, new_state, info = expectation(e_step, problem, new_x, state)
            new_value = float(info.objective)
            if new_value >= value - max(noise, rounding(value, x.dtype)):
                break
            scale /= 2
        else:
            return
        x, value, state, before = new_x, new_value, new_state, promised
        if by_secants:
            new_gradient = score(e_step, problem, x, state)
            fall = jnp.asarray(gradient - new_gradient)
            inverse = np.asarray(secant(jnp.asarray(inverse), scale * step, fall))
            gradient, promised = new_gradient, 0.5 * new_gradient @ inverse @ new_gradient
        if not by_secants or scale < 1 or promised > LEFT * before:
            information = marginal_information(e_step, problem, x, state)
            if not information.usable:
                return
            gradient, inverse = information.gradient, information.covariance
            promised = information.gap
        yield NewtonStep(x, value, float(promised))
