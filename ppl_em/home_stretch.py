"""The end of a slow deterministic run: Newton steps on the log-likelihood itself.

Near its maximum EM gains a constant fraction per step, which may need hundreds of steps for the
last digits. The log-likelihood and its information are at hand, the standard errors need them
anyway, and Newton's method converges there in a few steps.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from ppl_em.constrained import hold, moved
from ppl_em.e_step import DeterministicEStep, expectation, noise_of
from ppl_em.information import is_large, marginal_information
from ppl_em.problem import Problem
from ppl_em.stopping import Step, Stopping, remaining_gap, remaining_steps, rounding

NEAR = 0.01
"""Remaining gain below which Newton steps are tried: about a seventh of a standard error."""

SOON = 2
"""EM steps before them where Newton steps are the rule."""

MAX_HALVINGS = 4
"""How often a Newton step that lowers the log-likelihood is halved."""

WORTH = 15
"""EM steps still to come from which they are worth their compilation; and twice the parameters."""


class NewtonStep(NamedTuple):
    """Parameters (p,) after one step, the log-likelihood there, and the gain still promised."""

    x: jax.Array
    value: float
    promised: float


def is_due(steps: list[Step], e_step: Any, problem: Problem, stopping: Stopping) -> bool:
    """Whether Newton steps should be tried now."""
    if stopping.gap_for(False) <= 0 or problem.spec.rough:  # every step was asked for
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

    Ends at once where the information is not positive definite.
    """
    information = hold(problem, x, marginal_information(e_step, problem, x, state))
    noise = noise_of(e_step) or 0.0
    while information.usable:
        step = information.newton_step
        for _ in range(MAX_HALVINGS):
            new_x = moved(problem, x, step, information)
            if new_x is not None:
                new_value = float(expectation(e_step, problem, new_x, state)[2].objective)
                if new_value >= value - max(noise, rounding(value, x.dtype)):
                    break
            step = step / 2
        else:
            return
        x, value = new_x, new_value
        information = hold(problem, x, marginal_information(e_step, problem, x, state))
        if not information.usable:
            return
        yield NewtonStep(x, value, information.gap)
