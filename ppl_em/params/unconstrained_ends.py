"""Where the coordinates of the unconstrained vector end, on the scale of their parameters."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro.distributions import constraints

from ppl_em.params.space import ParamSite, ParamSpace
from ppl_em.util import compiled

FAR = 40.0
"""Unconstrained value that is as good as infinite."""


def ends(space: ParamSpace) -> np.ndarray:
    """The bounds that coordinates of x (p,) approach as they go to -inf and to +inf, (p, 2).

    NaN where there is none. Where coordinates together make a vector or a matrix, -1 and 1 stand
    for the edges of its support: a simplex without a component, a singular Cholesky factor.
    """
    return np.concatenate([np.zeros((0, 2)), *(ends_of(site) for site in in_order(space))])


def has_end(space: ParamSpace) -> np.ndarray:
    """Coordinates of x (p,) that belong to parameters with a bounded or curved support."""
    found = []
    for site in in_order(space):
        size = len(ends_of(site))
        found.append(np.full(size, not is_real(site)))
    return np.concatenate([np.zeros(0, bool), *found])


def is_share(space: ParamSpace) -> np.ndarray:
    """Coordinates of x (p,) that belong to a simplex."""
    found = [
        np.full(len(ends_of(site)), base_of(site) is constraints.simplex)
        for site in in_order(space)
    ]
    return np.concatenate([np.zeros(0, bool), *found])


def is_elementwise(site: ParamSite) -> bool:
    """Whether every coordinate of x moves one parameter of its own."""
    return not base_of(site).event_dim


def is_real(site: ParamSite) -> bool:
    """Whether its values are plain numbers, without an end."""
    return base_of(site) in (constraints.real, constraints.real_vector)


def in_order(space: ParamSpace) -> list[ParamSite]:
    """Sites in the order of the unconstrained vector."""
    return sorted(space.sites, key=lambda site: site.name)


@lru_cache(maxsize=256)
def ends_of(site: ParamSite) -> np.ndarray:
    """`ends` of one site."""
    base = base_of(site)
    value = jax.tree.unflatten(site.treedef, [np.zeros(shape) for shape in site.shapes])
    if not is_elementwise(site) and base is not constraints.real_vector:
        return _edges_of(site)
    bounds = [getattr(base, name, None) for name in ("lower_bound", "upper_bound")]
    found = [bound for bound in bounds if bound is not None]
    if base is constraints.circular or not found:
        leaves = jax.tree.leaves(jax.eval_shape(site.unconstrain, value))
        return np.full((sum(int(np.prod(leaf.shape)) for leaf in leaves), 2), np.nan)
    columns, span = [], float(np.ptp(np.concatenate([np.ravel(bound) for bound in found])))
    far = np.multiply.outer([-FAR, FAR], np.ones(raveled(value).size))
    for limit in np.asarray(_values(_nameless(site), far.astype(jnp.result_type(float)))):
        column = np.where(np.abs(limit) > np.exp(FAR / 2), np.sign(limit) * np.inf, np.nan)
        for bound in found:
            flat = raveled(jax.tree.map(lambda leaf, bound=bound: leaf + bound, value))
            rounding = 16 * np.finfo(limit.dtype).eps * (np.abs(flat) + span)
            near = rounding + 10 * np.exp(-FAR) * max(1.0, span)
            column = np.where(np.abs(limit - flat) <= near, flat, column)
        columns.append(column)
    return np.stack(columns, axis=1)


@lru_cache(maxsize=64)
def _edges_of(site: ParamSite) -> np.ndarray:
    """`ends` of a vector or a matrix: -1 and 1 where the value does not move any more."""
    leaves = [jax.ShapeDtypeStruct(shape, jnp.result_type(float)) for shape in site.shapes]
    whole = jax.eval_shape(site.unconstrain, jax.tree.unflatten(site.treedef, leaves))
    size = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(whole))
    edges = np.full((size, 2), np.nan)
    for side in (-1, 1):
        near, far = (
            np.asarray(_values(_nameless(site), side * distance * np.eye(size)))
            for distance in (FAR - 3, FAR)
        )
        still = np.max(np.abs(near - far), axis=1, initial=0.0) < 1e-6
        edges[still, (side + 1) // 2] = side
    return edges


def _nameless(site: ParamSite) -> ParamSite:
    return replace(site, name="")


@compiled(static_argnums=0)
def _values(site: ParamSite, rows: jax.Array) -> jax.Array:
    """Values of a site, flat, at unconstrained `rows` (m, q)."""
    leaves = [jax.ShapeDtypeStruct(shape, rows.dtype) for shape in site.shapes]
    whole = jax.eval_shape(site.unconstrain, jax.tree.unflatten(site.treedef, leaves))
    unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), whole))[1]
    return jax.vmap(lambda row: ravel_pytree(site.constrain(unravel(row)))[0])(rows)


def base_of(site: ParamSite) -> Any:
    """Its constraint, without `independent` around it."""
    base: Any = site.constraint
    while isinstance(base, type(constraints.independent(constraints.real, 1))):
        base = base.base_constraint
    return base


def raveled(value: Any) -> np.ndarray:
    """All numbers of a value, flat."""
    return np.concatenate([np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(value)])
