"""Condensed data held against all rows at the end of a run, and given up where they differ."""

import logging
from collections.abc import Callable
from typing import cast

import jax.numpy as jnp

from ppl_em.algorithms import Outcome
from ppl_em.e_step import DeterministicEStep, EStep, expectation
from ppl_em.params import Params
from ppl_em.problem import Problem
from ppl_em.result import Status

logger = logging.getLogger("ppl_em")

SAME = 1e-8
"""Difference of log-likelihoods, relative to their size, that is rounding in float64."""

IN_NATS = 0.01
"""Difference that estimates do not show, in float32."""


def on_all_rows(
    problem: Problem, outcome: Outcome, again: Callable[[EStep, Params], Outcome]
) -> Outcome:
    """The outcome of a run, or of another one from its end, on every row of the data.

    Points that stand for rows were proved at the start. Where scales shrink, a quadratic through
    points far apart loses its digits, and the run climbs what is not the likelihood.

    Parameters
    ----------
    problem, outcome
        The model with its data, and the end of the run.
    again
        Runs EM with another E-step from given parameters.
    """
    if outcome.e_step.stochastic or outcome.status is Status.INTERRUPTED:
        return outcome
    e_step, x = cast(DeterministicEStep, outcome.e_step), outcome.x
    params = problem.constrain(x)
    found = e_step.in_full(problem, params, outcome.e_state)
    if found is None:
        return outcome
    full = float(found)
    condensed = float(expectation(e_step, problem, x, outcome.e_state)[2].objective)
    eps = float(jnp.finfo(x.dtype).eps)
    allowed = min(max(SAME, 100 * eps) * (1 + abs(full)), IN_NATS + 10 * eps * abs(full))
    if abs(full - condensed) < allowed:
        return outcome
    logger.info(
        "The condensed data give the log-likelihood %.10g, all rows %.10g: the run goes on with "
        "all rows.",
        condensed,
        full,
    )
    last = again(e_step.uncondensed(), params)
    return last._replace(rows=[*outcome.rows, *last.rows])
