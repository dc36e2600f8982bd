"""The terms of the log-joint: the log-density of every element of every site.

Discrete sites are summed out as far as their plates go, and the log-Jacobian of every latent is a
term as well.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import (
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    constraints,
)
from numpyro.infer.util import compute_log_probs

from ppl_em.discrete import Layout, marginalization
from ppl_em.params import Params
from ppl_em.problem.checks import is_factor
from ppl_em.problem.problem import Latents, Problem
from ppl_em.problem.sites import site_dims
from ppl_em.problem.trace import run_model
from ppl_em.util import compiled

ADDING_UP: tuple[type, ...] = (type(constraints.simplex), constraints.multinomial)
"""Supports of vectors whose last entry the others tell."""


def terms(problem: Problem, params: Params, u: jax.Array) -> jax.Array:
    """Terms whose sum is the log-joint at the unconstrained latents `u` (D,); no support moves.

    Shape (E,): as many as the plates of the model tell apart.
    """
    u, idle = problem.without_idle(u)
    latents, jacobians = problem.transformed(u)
    parts = [idle, *jacobians]
    if problem.spec.discrete:
        parts.append(marginalization.log_terms(problem.log_factors(params, latents)))
    else:
        parts += problem.smooth(_log_probs, (params, latents), problem).values()
    return jnp.concatenate([jnp.ravel(jnp.asarray(part, u.dtype)) for part in parts])


def _log_probs(inputs: tuple[Params, Latents], problem: Problem) -> dict[str, jax.Array]:
    """The log-density of every element of each site."""
    args, kwargs = problem.arguments
    values = {**inputs[0], **inputs[1]}
    model = problem.spec.model
    found: dict[str, jax.Array] = compute_log_probs(
        model, args, kwargs, values, sum_log_prob=False
    )[0]
    return found


def terms_by_plate(problem: Problem, params: Params) -> dict[str, jax.Array]:
    """What the cells of every plate add to the log-joint of a model without continuous latents.

    Plate to array of its size, with the sum over everything else; only plates along which the
    log-joint is a sum.
    """
    found: dict[str, jax.Array] = {}
    for names, values in marginalization.log_cells(problem.log_factors(params, {})):
        for axis, name in enumerate(names):
            others = tuple(i for i in range(len(names)) if i != axis)
            found[name] = found.get(name, 0.0) + jnp.sum(values, others)
    return found


class Observed(NamedTuple):
    """What one site observes: its values, and how often each counts, both of one shape.

    The weights of scalars are 0 where they are masked, and the `numpyro.handlers.scale` around
    the site elsewhere; of the last entry of counts or shares that add up they are 0 as well.
    `cells` is the shape of the site's log-density, `dims` names its axes.
    """

    values: np.ndarray
    weights: np.ndarray
    cells: tuple[int, ...]
    dims: tuple[str, ...]


def observations(problem: Problem, params: Params, factors: bool = False) -> dict[str, Observed]:
    """What every site observes; `factors` are `numpyro.factor` statements, which have no values.

    A cell counts if any value of the discrete latents leaves it unmasked.
    """
    found = _seen(problem, params, factors)
    if not any(np.any(one.weights == 0) for one in found.values()):
        return found
    for k in range(max((len(site.values.value) for site in problem.spec.discrete), default=0)):
        other = _seen(problem, {**params, **_at_value(problem, k)}, factors)
        for name, one in found.items():
            weights = np.where(one.weights == 0, other[name].weights, one.weights)
            found[name] = one._replace(weights=weights)
    return found


def _at_value(problem: Problem, k: int) -> Latents:
    """All discrete latents at their value of this number, or their last."""
    return {
        site.name: jnp.broadcast_to(
            jnp.asarray(site.values.value[min(k, len(site.values.value) - 1)]), site.shape
        )
        for site in problem.spec.discrete
    }


def _seen(problem: Problem, values: Params, factors: bool) -> dict[str, Observed]:
    """What is observed at these parameters and latents."""
    args, kwargs = problem.arguments
    trace = run_model(problem.spec.model, jax.random.key(0), args, kwargs, values)
    found = {}
    for name in problem.spec.observed:
        site = trace[name]
        if is_factor(site) and not factors:
            continue
        fn, event = site["fn"], site["fn"].event_dim
        shape = np.broadcast_shapes(np.shape(site["value"]), fn.shape())
        cells = shape[: len(shape) - event]
        if is_factor(site):  # what it is made of is not known: each cell counts
            ones = np.ones(cells)
            found[name] = Observed(0 * ones, ones, cells, site_dims(site, shape)[: len(cells)])
            continue
        scale = 1.0 if site["scale"] is None else np.asarray(site["scale"], float)
        scale = np.broadcast_to(scale, cells).reshape(*cells, *[1] * event)
        weights = np.array(np.broadcast_to(scale * _counting(fn, shape), shape), float)
        if event and isinstance(fn.support, ADDING_UP):
            weights[..., -1] = 0.0
        seen = np.broadcast_to(np.asarray(site["value"]), shape)
        found[name] = Observed(seen, weights, cells, site_dims(site, shape)[: len(cells)])
    return found


def _counting(fn: Distribution, shape: tuple[int, ...]) -> np.ndarray:
    """Which scalars of a site's values, of this shape, no mask leaves out."""
    counts = np.ones(shape, bool)
    while isinstance(fn, MaskedDistribution | ExpandedDistribution | Independent):
        if isinstance(fn, MaskedDistribution):
            mask = np.asarray(fn._mask)
            counts &= mask.reshape(*mask.shape, *[1] * fn.event_dim)
        fn = fn.base_dist
    return counts


def cells_of_terms(
    problem: Problem, params: Params, u: jax.Array, observed: dict[str, Observed]
) -> dict[str, np.ndarray]:
    """The number of the term that each cell of observed sites is part of, -1 if of none.

    Of the shape of the site's log-density. Sites that cannot be told apart are left out.
    """
    if problem.spec.discrete:
        return _cells_of_tables(problem, params, u, observed)
    found, count = {}, 0
    for name, shape in parts(problem, params):
        size = int(np.prod(shape))
        if name in observed and shape == observed[name].cells:
            found[name] = count + np.arange(size).reshape(shape)
        count += size
    return {name: _masked(found[name], observed[name]) for name in observed if name in found}


def parts(problem: Problem, params: Params) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of what `terms` joins, where no latent is discrete.

    First idle coordinates, under an empty name; then the Jacobian of every latent and the
    log-density of every site, by name.
    """

    def shapes(problem: Problem, u: jax.Array) -> list[Any]:
        latents, jacobians = problem.transformed(u)
        names = [site.name for site in problem.spec.latents]
        found = problem.smooth(_log_probs, (params, latents), problem)
        order.extend(["", *names, *found])
        return [u, *jacobians, *found.values()]

    order: list[str] = []
    arrays = jax.eval_shape(shapes, problem, problem.start)
    return [(name, array.shape) for name, array in zip(order, arrays, strict=True)]


def _masked(terms: np.ndarray, observed: Observed) -> np.ndarray:
    """The same with -1 for cells of which nothing counts."""
    weights = observed.weights.reshape(*observed.cells, -1)
    return np.where(np.any(weights != 0, axis=-1), terms, -1)


def _cells_of_tables(
    problem: Problem, params: Params, u: jax.Array, observed: dict[str, Observed]
) -> dict[str, np.ndarray]:
    """What moves with a cell's log-density, whatever the discrete latents are, is its term."""
    kept: list[Layout] = []

    def look(problem: Problem, u: jax.Array) -> list[jax.Array]:
        kept.append(problem.log_factors_unconstrained(params, u)[0].layout)
        return problem.transformed(u)[1]

    before = u.size + sum(int(np.prod(part.shape)) for part in jax.eval_shape(look, problem, u))
    names, plates = dict(kept[0].names), dict(kept[0].plates)
    weights, numbered = jax.device_get(_slopes_of_tables(problem, params, u))

    def piece(key: str, seen: Observed) -> np.ndarray | None:
        kept = [axis for axis in names[key] if axis in plates]
        away = tuple(i for i, axis in enumerate(names[key]) if axis not in plates)
        weight, number = (np.sum(found[key], axis=away) for found in (weights, numbered))
        array = np.rint(number / np.where(weight == 0, 1.0, weight)) - 1
        own = ["time" if axis.startswith("time ") else axis for axis in kept]
        wanted = ["time" if dim.startswith("time_") else dim for dim in seen.dims]
        if not set(own) <= set(wanted):
            return None
        order = [own.index(dim) for dim in wanted if dim in own]
        sizes = [array.shape[own.index(dim)] if dim in own else 1 for dim in wanted]
        return np.transpose(array, order).reshape(sizes)

    found = {}
    for name, seen in observed.items():
        keys = [key for key in (f"{name}[0]", name) if key in names]
        pieces = [array for key in keys if (array := piece(key, seen)) is not None]
        if not pieces or len(pieces) < len(keys):
            continue
        whole = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        if np.all(np.isfinite(whole)) and np.all(whole >= -1):
            whole = np.broadcast_to(whole, seen.cells).astype(int)
            found[name] = _masked(np.where(whole < 0, -1, whole + before), seen)
    return found


@compiled
def _slopes_of_tables(
    problem: Problem, params: Params, u: jax.Array
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Derivatives, in all tables, of the sum of the terms, and of that of terms times numbers."""
    factors = problem.log_factors_unconstrained(params, u)[0]

    def values(tables: dict[str, jax.Array]) -> jax.Array:
        return marginalization.log_terms(factors._replace(tables=tables))

    found, pull = jax.vjp(values, factors.tables)
    numbers = jnp.arange(1, len(found) + 1, dtype=found.dtype)
    return pull(jnp.ones_like(found))[0], pull(numbers)[0]
