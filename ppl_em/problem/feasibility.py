"""A problem's constraints as seen from the unconstrained vector: bounds, conditions, a start."""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to

from ppl_em.optimize import Conditions, kkt
from ppl_em.params import Constraint, Params, Restriction, resolve
from ppl_em.problem.problem import Problem
from ppl_em.util import ModelError, brief, compiled

logger = logging.getLogger("ppl_em")

MARGIN = 1e-2
"""Slack, relative to unit + |bound|, of a start that was moved inside a barrier."""


def restrict(
    problem: Problem, params: Params, functional: dict[str, Constraint]
) -> tuple[Problem, Params]:
    """The problem with constraints on functions of its parameters, and a feasible start.

    Raises
    ------
    ModelError
        If a constraint cannot be used, or nothing near the start satisfies it.
    """
    restrictions = resolve(functional, problem.space, params)
    if not restrictions:
        return problem, params
    problem = problem.with_spec(restrictions=restrictions)
    x = problem.unconstrain(params)
    if violated(problem, x) is None and bool(is_inside(problem, x)):
        return problem, params
    first = violated(problem, x) or restrictions[0].name
    moved = kkt.restored(np.asarray(x, dtype=float), _with_margin(problem))
    new_x = jnp.asarray(moved, x.dtype)
    left = violated(problem, new_x)
    if left is not None or not bool(is_inside(problem, new_x)):
        row = next(r for r in restrictions if r.name == (left or first))
        raise ModelError(
            f"Constraint '{row.name}': the start violates it (its value is "
            f"{brief(row.fn(params))}), and nothing near the start satisfies all constraints. "
            f"Start inside, with `init_params`."
        )
    logger.warning(
        "The start violates the constraint '%s'; it was moved to the nearest point that does not.",
        first,
    )
    return problem, problem.constrain(new_x)


def values(problem: Problem, x: jax.Array, rows: tuple[Restriction, ...]) -> jax.Array:
    """The functions of restrictions at `x` (p,), flattened and joined, (m,)."""
    params = problem.constrain(x)
    parts = [jnp.ravel(jnp.asarray(row.fn(params), x.dtype)) for row in rows]
    return jnp.concatenate(parts) if parts else jnp.zeros(0, x.dtype)


_values = compiled(values, static_argnums=2)


@compiled(static_argnums=2)
def _jacobian(problem: Problem, x: jax.Array, rows: tuple[Restriction, ...]) -> jax.Array:
    return jax.jacobian(values, argnums=1)(problem, x, rows)


@compiled(static_argnums=2)
def curvature(
    problem: Problem, x: jax.Array, rows: tuple[Restriction, ...], weights: jax.Array
) -> jax.Array:
    """Hessian at `x` of the functions of restrictions times `weights` (m,), (p, p)."""
    return jax.hessian(lambda x: weights @ values(problem, x, rows))(x)


def limits_of(rows: tuple[Restriction, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds of restrictions, flattened and joined, each (m,)."""
    lower = [np.ravel(row.lower.value) for row in rows]
    upper = [np.ravel(row.upper.value) for row in rows]
    return np.concatenate([*lower, np.zeros(0)]), np.concatenate([*upper, np.zeros(0)])


def units_of(rows: tuple[Restriction, ...]) -> np.ndarray:
    """The units of restrictions, flattened and joined, (m,)."""
    first = np.concatenate([*(np.ravel(row.first.value) for row in rows), np.zeros(0)])
    return kkt.unit_of(first, *limits_of(rows))


def all_conditions(problem: Problem, rows: tuple[Restriction, ...] | None = None) -> Conditions:
    """Restrictions as conditions on x (p,), in units of their functions; all by default."""
    chosen = problem.spec.restrictions if rows is None else rows
    return Conditions(
        lambda x: np.asarray(_values(problem, jnp.asarray(x), chosen), dtype=float),
        lambda x: np.asarray(_jacobian(problem, jnp.asarray(x), chosen), dtype=float),
        *limits_of(chosen),
        units_of(chosen),
    )


def bounds(problem: Problem, barriers: bool = False) -> tuple[np.ndarray, np.ndarray] | None:
    """Bounds on every coordinate of x, each (p,), from boxes; None if there are none.

    Those kept by a barrier count only if `barriers`.
    """
    rows = [r for r in problem.spec.restrictions if r.site and (barriers or not r.barrier)]
    if not rows:
        return None
    space = problem.space
    numbers = space.unravel(np.arange(space.size))
    lower, upper = np.full(space.size, -np.inf), np.full(space.size, np.inf)
    sites = {site.name: site for site in space.sites}
    for row in rows:
        transform = biject_to(sites[str(row.site)].constraint)
        low, high = _preimage(transform, row.lower.value, row.upper.value)
        places = [np.ravel(leaf) for leaf in jax.tree.leaves(numbers[str(row.site)])]
        index = np.concatenate(places).astype(int)
        lower[index] = np.maximum(lower[index], np.ravel(low))
        upper[index] = np.minimum(upper[index], np.ravel(high))
    return lower, upper


def _preimage(transform: Any, lower: np.ndarray, upper: np.ndarray) -> tuple:
    """Where a monotone transform is within bounds; infinite where they are beyond its image."""
    ends = np.asarray(transform(jnp.array([-np.inf, np.inf])), dtype=float)
    least, most = np.sort(ends)
    inverse = transform.inv
    with np.errstate(all="ignore"):
        low, high = (np.asarray(inverse(jnp.asarray(b)), dtype=float) for b in (lower, upper))
    sign = 1.0 if ends[0] <= ends[1] else -1.0
    low = np.where(lower <= least, -sign * np.inf, low)
    high = np.where(upper >= most, sign * np.inf, high)
    return (low, high) if sign > 0 else (high, low)


def conditions(problem: Problem, barriers: bool = False) -> Conditions | None:
    """Conditions on x beside its bounds; None if there are none.

    Those kept by a barrier count only if `barriers`.
    """
    rows = tuple(r for r in problem.spec.restrictions if not r.site and (barriers or not r.barrier))
    return all_conditions(problem, rows) if rows else None


def _with_margin(problem: Problem) -> Conditions:
    """All conditions, those with a barrier narrower by `MARGIN` or a quarter of their width."""
    rows, found = problem.spec.restrictions, all_conditions(problem)
    soft = np.concatenate([np.full(len(row.labels), bool(row.barrier)) for row in rows])
    low, high = found.lower, found.upper
    with np.errstate(invalid="ignore"):
        room = np.where(np.isfinite(high) & np.isfinite(low), (high - low) / 4, np.inf)
    below, above = (np.where(np.isfinite(s), s, found.unit) for s in found.scales)
    low_room, high_room = np.minimum(MARGIN * below, room), np.minimum(MARGIN * above, room)
    return found._replace(lower=low + soft * low_room, upper=high - soft * high_room)


def nearest_feasible(
    problem: Problem, x: jax.Array, onto: np.ndarray | int = 0
) -> jax.Array | None:
    """The point next to `x` (p,) that satisfies all constraints, None if there is none.

    Those with a side in `onto` (m,), see `active_set.sides`, hold as equations.
    """
    if not problem.spec.restrictions:
        return x
    found = all_conditions(problem)
    moved = jnp.asarray(kkt.restored(np.asarray(x, float), found, onto), x.dtype)
    if violated(problem, moved) is not None or not bool(is_inside(problem, moved)):
        return None
    return moved


def brought_inside(problem: Problem, params: Params, inside: Params) -> Params:
    """`params`, or the nearest that satisfy all constraints, or some on the way to `inside`."""
    if not problem.spec.restrictions:
        return params
    start, end = problem.unconstrain(params), problem.unconstrain(inside)
    for part in (0.0, 0.5, 0.75, 0.9):
        found = nearest_feasible(problem, start + part * (end - start))
        if found is not None:
            return problem.constrain(found)
    return inside


def needs(problem: Problem, barriers: bool = False) -> dict[str, list[str]]:
    """What an M-step has to honour: "bounds", "conditions", "rough", each with names.

    Constraints that a barrier keeps are left out, unless `barriers`.
    """
    hard = [row for row in problem.spec.restrictions if barriers or not row.barrier]
    found = {
        "bounds": [row.name for row in hard if row.site],
        "conditions": [row.name for row in hard if not row.site],
        "rough": list(problem.spec.rough),
    }
    return {need: names for need, names in found.items() if names}


def violated(problem: Problem, x: jax.Array) -> str | None:
    """The name of the constraint that is violated most at `x` (p,); None if none is."""
    rows = problem.spec.restrictions
    found = all_conditions(problem)
    amount = kkt.violations(found.values(np.asarray(x)), found)
    if not np.any(amount > kkt.FEASIBLE):
        return None
    names = [row.name for row in rows for _ in row.labels]
    return names[int(np.argmax(amount))]


def is_inside(problem: Problem, x: jax.Array) -> jax.Array:
    """Whether all constraints hold at `x` (p,), with room where there is a barrier; traceable."""
    rows = problem.spec.restrictions
    firm = tuple(row for row in rows if not row.barrier)
    soft = tuple(row for row in rows if row.barrier)
    inside = jnp.all(slacks(problem, x, firm) >= -kkt.FEASIBLE)
    return inside & jnp.all(slacks(problem, x, soft) > 0)


def slacks(problem: Problem, x: jax.Array, rows: tuple[Restriction, ...]) -> jax.Array:
    """Distances to all finite bounds, relative to unit + |bound|; negative outside."""
    found, (lower, upper), unit = values(problem, x, rows), limits_of(rows), units_of(rows)
    low, high = np.isfinite(lower), np.isfinite(upper)
    below = (found[low] - lower[low]) / (unit[low] + np.abs(lower[low]))
    above = (upper[high] - found[high]) / (unit[high] + np.abs(upper[high]))
    return jnp.concatenate([below, above])
