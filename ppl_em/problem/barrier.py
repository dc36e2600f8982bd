"""A barrier that keeps constraints: what it adds to Q, and when the constraint itself takes over.

The barrier adds Σ_i μ_i [s_i′ log s_i − s_i] to Q, with s_i the slacks and s_i′ those before the
step. It is largest at s = s′, so EM still never lowers the log-likelihood; at a fixed point its
gradient vanishes, so an interior maximum is not moved; and where one is on the bound, s shrinks by
the factor μ / (μ + λ) in every step, λ being its multiplier. μ follows λ to make that a tenth.
Once s is small, and the run would end, the constraint is held as it is, see `firm`.
"""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlogy

from ppl_em.params import Restriction
from ppl_em.problem.feasibility import slacks
from ppl_em.problem.problem import Problem

logger = logging.getLogger("ppl_em")

THIN = 1e-3
"""Slack, relative to unit + |bound|, below which a barrier gets no weaker: maximisers that take
differences of gradients need room."""

SHRINK = 0.1
"""How much of its slack a step leaves to a constraint that is active."""

FAINT = 1e-4
"""Smallest μ, in units of log-likelihood."""


def barrier_weights(problem: Problem, x: jax.Array, slope: jax.Array) -> jax.Array:
    """μ of every barrier in a step from `x` (p,), where Q has the gradient `slope` (p,)."""
    rows = tuple(row for row in problem.spec.restrictions if row.barrier)
    jacobian = jax.jacobian(slacks, argnums=1)(problem, x, rows)
    multipliers = -jnp.linalg.lstsq(jacobian.T, slope)[0]
    return jnp.maximum(SHRINK / (1 - SHRINK) * multipliers, FAINT)


def barrier(problem: Problem, x: jax.Array, x_before: jax.Array, weights: jax.Array) -> jax.Array:
    """What barriers add to Q at `x` (p,) in a step from `x_before`; a scalar, traceable."""
    rows = tuple(row for row in problem.spec.restrictions if row.barrier)
    slack = slacks(problem, x, rows)
    before = jnp.maximum(slacks(problem, x_before, rows), THIN)
    inside = slack > 0
    safe = jnp.where(inside, slack, 1.0)
    terms = jnp.where(inside, xlogy(before, safe / before) - safe + before, -jnp.inf)
    return jnp.sum(weights * terms)


def has_barrier(problem: Problem) -> bool:
    """Whether any constraint is kept by a barrier."""
    return any(row.barrier for row in problem.spec.restrictions)


def firm(problem: Problem, x: jax.Array) -> Problem | None:
    """The problem with constraints held that a barrier keeps at little slack; None if none is."""
    rows = tuple(
        dataclasses.replace(row, barrier=False)
        if row.barrier and _is_thin(problem, x, row)
        else row
        for row in problem.spec.restrictions
    )
    if rows == problem.spec.restrictions:
        return None
    logger.info("the barrier has reached a bound: its constraint is held from here on")
    return problem.with_spec(restrictions=rows)


def _is_thin(problem: Problem, x: jax.Array, row: Restriction) -> bool:
    return bool(np.any(np.asarray(slacks(problem, x, (row,))) < 10 * THIN))
