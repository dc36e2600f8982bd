"""Many rows of data as few weighted points, so that an EM step does not sweep the data.

If the log-density of a row y, as a function of y, is a combination of R known functions (quadratic
in y, or any function of y where only R values occur), then for all parameters

    log f(y) = sum_r c_r(y) log f(y_r) + h(y)

with R fixed points y_r and coefficients c_r and h that do not depend on the parameters. Sums over
rows with weights become sums over points: sufficient statistics, found from the model itself. The
identity is checked against the rows at other parameters before it is used.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.discrete import BASIS, Layout, LogFactors, Table, add
from ppl_em.problem import Problem
from ppl_em.structure.interpolation import MAX_EVENT, corners, tolerance
from ppl_em.util import compiled


class Condensed(NamedTuple):
    """Rows of one site: points (R, *event_shape), coefficients (N, R), offsets (N,)."""

    points: jax.Array
    coefficients: jax.Array
    offsets: jax.Array


Condensation = dict[str, Condensed]
"""Key of a table to its rows."""

MAX_VALUES = 200
"""Distinct rows up to which each one is a point of its own."""

MAX_ENTRIES = 10**8
"""Coefficients that may be stored for one site."""


def condense(rng_key: jax.Array, problem: Problem, x: jax.Array, min_rows: int) -> Condensation:
    """Find the sites whose rows can be condensed, with proof.

    Parameters
    ----------
    rng_key
        Draws the parameters at which the identity is checked.
    problem, x
        The problem and its unconstrained parameters, shape (p,).
    min_rows
        Sites with fewer rows are left as they are.
    """
    params = problem.constrain(x)
    shapes = jax.eval_shape(_rows, problem, params)
    long = {key for key, rows in shapes.items() if len(rows.shape) and rows.shape[0] >= min_rows}
    if not long:
        return {}
    found = jax.device_get(compiled(_rows)(problem, params))
    proposed = {key: _propose(found[key]) for key in sorted(long)}
    result: Condensation = {key: value for key, value in proposed.items() if value is not None}
    while result:
        points = {key: value.points for key, value in result.items()}
        short = _abstract(problem, params, points)
        fixed = {key: value for key, value in result.items() if _is_constant(short, key)}
        if len(fixed) < len(result):
            result = fixed
            continue
        result, accepted = _with_offsets(rng_key, problem, x, result)
        if len(accepted) == len(result):
            return result
        result = {key: result[key] for key in accepted}
    return {}


def expand(factors: LogFactors, condensation: Condensation) -> LogFactors:
    """The tables over all rows again, from those over points."""
    tables, names = dict(factors.tables), dict(factors.layout.names)
    for key, rows in condensation.items():
        axes, target = names[key], _target(factors, key)
        basis = BASIS + target
        table = jnp.moveaxis(tables[key], axes.index(basis), -1)
        left = [name for name in axes if name != basis]
        if target in left:
            table = jnp.squeeze(table, left.index(target))
            left.remove(target)
        if target in {chain.time for chain in factors.layout.chains}:
            full = jnp.einsum("...r,nr->n...", table, rows.coefficients)
            offsets = rows.offsets.reshape((-1, *(1,) * len(left)))
            tables[key], names[key] = full + offsets, (target, *left)
        else:
            full = jnp.einsum("...r,nr->...n", table, rows.coefficients)
            tables[key], names[key] = full + rows.offsets, (*left, target)
    layout = factors.layout
    return LogFactors(tables, replace(layout, names=tuple(names.items())), factors.weights)


def _target(factors: LogFactors, key: str) -> str:
    """The axis of the rows that a condensed table stands for."""
    axes = dict(factors.layout.names)[key]
    return next(name for name in axes if name.startswith(BASIS)).removeprefix(BASIS)


def _rows(problem: Problem, params: dict[str, Any]) -> dict[str, jax.Array]:
    return {key: rows for key, (_, rows) in problem.observed_rows(params).items()}


def _abstract(problem: Problem, params: dict[str, Any], points: dict[str, jax.Array]) -> LogFactors:
    """Shapes and layout of the tables over points."""
    found: list[Layout] = []

    def run(problem: Problem, params: dict[str, Any], points: dict[str, jax.Array]) -> Any:
        factors = problem.log_factors(params, {}, points)
        found.append(factors.layout)
        return factors.tables

    return LogFactors(jax.eval_shape(run, problem, params, points), found[0])


def _is_constant(short: LogFactors, key: str) -> bool:
    """Whether the table over points does not change along the axis of the rows."""
    names, target = dict(short.layout.names)[key], _target(short, key)
    return target not in names or short.tables[key].shape[names.index(target)] == 1


def _propose(rows: np.ndarray) -> Condensed | None:
    """Points and coefficients for rows (N, *event_shape); offsets are found later."""
    flat = rows.reshape(len(rows), -1)
    values, first, index = _distinct(flat)
    if values is not None and len(rows) * len(values) <= MAX_ENTRIES:
        one_hot = np.zeros((len(rows), len(values)))
        one_hot[np.arange(len(rows)), index] = 1.0
        return Condensed(
            jnp.asarray(rows[first]), jnp.asarray(one_hot), jnp.zeros(len(rows), one_hot.dtype)
        )
    d = flat.shape[1]
    if flat.dtype.kind != "f" or d > MAX_EVENT or not np.all(np.isfinite(flat)):
        return None
    if len(rows) * (d + 1) * (d + 2) // 2 > MAX_ENTRIES:
        return None
    points, coefficients = _quadratic(flat)
    shaped = points.reshape((len(points), *rows.shape[1:]))
    return Condensed(
        jnp.asarray(shaped), jnp.asarray(coefficients), jnp.zeros(len(rows), flat.dtype)
    )


def _distinct(flat: np.ndarray) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Distinct rows, where each first occurs, and which one each row is; None if too many."""
    head = np.unique(flat[: 5 * MAX_VALUES], axis=0)
    if len(head) <= MAX_VALUES:
        values, first, index = np.unique(flat, axis=0, return_index=True, return_inverse=True)
        if len(values) <= MAX_VALUES:
            return values, first, index.ravel()
    return None, np.zeros(0, int), np.zeros(0, int)


def _quadratic(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Interpolation of quadratic functions of rows (N, d) from their center, +-e_i and e_i + e_j.

    Returns points (R, d) and coefficients (N, R), R = (d + 1)(d + 2)/2.
    """
    center, scale = flat.mean(0), flat.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    t = (flat - center) / scale
    d = flat.shape[1]
    pairs = np.column_stack(np.tril_indices(d, -1))
    basis = corners(d)
    coefficients = np.empty((len(flat), len(basis)))
    coefficients[:, 0] = 1 - np.sum(t**2, 1)
    coefficients[:, 1 : d + 1] = (t**2 + t) / 2
    coefficients[:, d + 1 : 2 * d + 1] = (t**2 - t) / 2
    for column, (i, j) in enumerate(pairs, 2 * d + 1):
        product = t[:, i] * t[:, j]
        coefficients[:, column] = product
        coefficients[:, 0] += product
        coefficients[:, 1 + i] -= product
        coefficients[:, 1 + j] -= product
    return center + scale * basis, coefficients


def _with_offsets(
    rng_key: jax.Array, problem: Problem, x: jax.Array, proposed: Condensation
) -> tuple[Condensation, list[str]]:
    """Offsets from the rows at `x`, and the sites that then agree at other parameters."""
    offsets = {key: offset for key, (offset, _) in _compare(problem, x, proposed).items()}
    result = {key: rows._replace(offsets=offsets[key]) for key, rows in proposed.items()}
    accepted = set(result)
    for key_x in jax.random.split(rng_key, 2):
        other = x + 0.3 * jax.random.normal(key_x, x.shape, x.dtype)
        found = jax.device_get(_compare(problem, other, result))
        accepted &= {key for key, (_, error) in found.items() if error < tolerance(x.dtype)}
    return result, sorted(accepted)


@compiled
def _compare(
    problem: Problem, x: jax.Array, condensation: Condensation
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Mean difference of tables over rows from tables over points, (N,), and its largest error.

    The error is relative to the largest entry of a row under its most likely values of the discrete
    sites: entries over points far apart may be so large that their combination has lost that.
    """
    params = problem.constrain(x)
    full = problem.log_factors(params, {})
    points = {key: rows.points for key, rows in condensation.items()}
    short = problem.log_factors(params, {}, points)
    long = expand(short, condensation)
    result = {}
    for key in condensation:
        names = dict(long.layout.names)[key]
        expected = Table(full.tables[key], dict(full.layout.names)[key])
        names = tuple(sorted(names, key=lambda name: name == _target(short, key)))
        long_table = Table(-long.tables[key], dict(long.layout.names)[key])
        gap = add([expected, long_table], names).array
        mean = jnp.mean(gap.reshape(-1, gap.shape[-1]), axis=0)
        variables = [i for i, n in enumerate(expected.names) if n in dict(full.layout.variables)]
        likely = jnp.min(jnp.abs(expected.array), axis=tuple(variables))
        scale = jnp.max(likely) + 1.0
        result[key] = mean, jnp.max(jnp.abs(gap)) / scale
    return result
