"""The steps of a scan as few weighted steps, so that an M-step does not run over time.

Where the log-density of one step is quadratic in all that changes from step to step (the latents
before and after it, the observation, covariates), w_t say, it is

    l(w) = sum_r c_r(w) l(w_r)

with fixed w_r and quadratic c_r, for all parameters. The expected sum over steps is then a sum over
r with the weights E[sum_t c_r(w_t)], which moments of w give: the sufficient statistics of a linear
Gaussian model, found from the model's own code. The identity is checked before it is used.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.discrete import BASIS, LogFactors, Table, product
from ppl_em.params import Params
from ppl_em.problem import Problem
from ppl_em.structure.interpolation import MAX_EVENT, corners, tolerance
from ppl_em.util import compiled

StepPoints = dict[str, jax.Array]
"""Time axis of a scan to the points w_r, shape (R, m)."""


class StepTotals(NamedTuple):
    """Points of every condensed scan, and the expected sums of their coefficients, (R,)."""

    points: StepPoints
    weights: dict[str, jax.Array]


def condense_steps(
    rng_key: jax.Array, problem: Problem, x: jax.Array, min_rows: int | None
) -> StepPoints:
    """Find the scans whose steps can be condensed, with proof; empty if there are none.

    Parameters
    ----------
    rng_key
        Draws the parameters and latents at which the identity is checked.
    problem, x
        A problem without discrete latents, and its unconstrained parameters, shape (p,).
    min_rows
        Shorter scans are left as they are; None for all.
    """
    if min_rows is None or not problem.spec.scans or problem.spec.discrete:
        return {}
    u = problem.start
    shapes = jax.eval_shape(_rows, problem, x, u)
    chosen = {k for k, s in shapes.items() if s.shape[0] >= min_rows and s.shape[1] <= MAX_EVENT}
    if not chosen:
        return {}
    keys = jax.random.split(rng_key, 3)
    rows = jax.device_get(_scattered_rows(problem, x, u, keys[0]))
    points: StepPoints = {}
    for time in sorted(chosen):
        flat = rows[time]
        scale = np.where(flat.std(0) > 0, flat.std(0), 1.0)
        points[time] = jnp.asarray(flat.mean(0) + scale * corners(flat.shape[1]))
    errors = [float(_error(problem, x, u, points, key)) for key in keys[1:]]
    return points if max(errors) < tolerance(x.dtype) else {}


@compiled
def _scattered_rows(
    problem: Problem, x: jax.Array, u: jax.Array, rng_key: jax.Array
) -> dict[str, jax.Array]:
    return _rows(problem, x, u + jax.random.normal(rng_key, u.shape, u.dtype))


def _rows(problem: Problem, x: jax.Array, u: jax.Array) -> dict[str, jax.Array]:
    params = problem.constrain(x)
    return problem.step_rows(params, problem.constrain_latents(params, u))


def totals(problem: Problem, params: Params, draws: jax.Array, points: StepPoints) -> StepTotals:
    """Mean over equally weighted `draws`, shape (n, D), of the summed coefficients."""

    def one(u: jax.Array) -> dict[str, jax.Array]:
        rows = problem.step_rows(params, problem.constrain_latents(params, u))
        return {time: summed(rows[time], w) for time, w in points.items()}

    weights = jax.lax.map(one, draws)
    return StepTotals(points, {time: jnp.mean(w, axis=0) for time, w in weights.items()})


def summed(rows: jax.Array, points: jax.Array, spread: jax.Array | float = 0.0) -> jax.Array:
    """Sum over rows (T, m) of the coefficients of quadratic interpolation at `points` (R, m).

    If `rows` are means, `spread` (m, m) is the sum of their covariances.
    """
    size = rows.shape[1]
    scale = jnp.diagonal(points[1 : size + 1] - points[0])
    t = (rows - points[0]) / scale
    first, second = jnp.sum(t, 0), t.T @ t + spread / jnp.outer(scale, scale)
    square, cross = jnp.diagonal(second), second - jnp.diag(jnp.diagonal(second))
    row, column = np.tril_indices(size, -1)
    pairs = second[row, column]
    center = len(rows) - jnp.sum(square) + jnp.sum(pairs)
    plus, minus = (square + first) / 2 - jnp.sum(cross, 0), (square - first) / 2
    return jnp.concatenate([center[None], plus, minus, pairs])


def steps_term(factors: LogFactors, weights: dict[str, jax.Array]) -> jax.Array:
    """The part of the log-joint of condensed scans, from tables over points; a scalar."""
    names, total = dict(factors.layout.names), jnp.zeros(())
    for chain in factors.layout.chains:
        if chain.time not in weights:
            continue
        for key in chain.rest:
            axes, table = names[key], factors.tables[key]
            basis = axes.index(BASIS + chain.time)
            by_point = jnp.moveaxis(table, basis, 0)
            per_point = jnp.sum(by_point.reshape(len(by_point), -1), 1)
            total += per_point @ weights[chain.time]
    return total


def other_terms(factors: LogFactors, weights: dict[str, jax.Array]) -> jax.Array:
    """The log-joint of everything else; a scalar."""
    names, plates = dict(factors.layout.names), dict(factors.layout.plates)
    condensed = {k for c in factors.layout.chains if c.time in weights for k in c.rest}
    left = [Table(t, names[k]) for k, t in factors.tables.items() if k not in condensed]
    return product(left, plates)


@compiled
def _error(
    problem: Problem, x: jax.Array, u: jax.Array, points: StepPoints, rng_key: jax.Array
) -> jax.Array:
    """Relative error of the condensed log-joint, with rows taken at other parameters."""
    keys = jax.random.split(rng_key, 3)
    near = [x + 0.3 * jax.random.normal(key, x.shape, x.dtype) for key in keys[:2]]
    u = u + jax.random.normal(keys[2], u.shape, u.dtype)
    params = problem.constrain(near[0])
    latents = problem.constrain_latents(params, u)
    rows = totals(problem, problem.constrain(near[1]), u[None], points)
    factors = problem.log_factors(params, latents, points)
    short = steps_term(factors, rows.weights) + other_terms(factors, rows.weights)
    full = problem.log_joint(params, latents)
    error = jnp.abs(short - full) / (1 + jnp.abs(full))
    return jnp.where(jnp.isfinite(error), error, jnp.inf)
