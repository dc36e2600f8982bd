"""Where parameters end: the bounds of their supports, and how to say that one is there."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro.distributions import constraints

from ppl_em.params.boundary import Boundary
from ppl_em.params.labels import flat_labels
from ppl_em.params.space import Params, ParamSite, ParamSpace

FAR = 40.0
"""Unconstrained value that is as good as infinite."""

GONE = 1e-7
"""Entry of a simplex or of a Cholesky factor that is 0 but for rounding, next to the largest."""


@dataclass(frozen=True)
class AtBounds:
    """The parameters of a fit that are at a bound.

    `bounds` (p,) are NaN but for the coordinates of x that are at one; `found` says which by name.
    `x` (p,) is the place, as near as computations can be, and `rest` what the log-likelihood still
    gains from there to the bounds themselves. `rays` (p, r) are directions in which it is at its
    limit at infinity, `across` (p, r) normals that keep it from moving along them.
    """

    space: ParamSpace
    bounds: np.ndarray
    found: dict[str, Boundary]
    x: jax.Array | None = None
    rest: float = 0.0
    rays: np.ndarray | None = None
    across: np.ndarray | None = None

    @property
    def normals(self) -> np.ndarray:
        """What keeps x where it is, towards all bounds and along all rays, (p, k)."""
        alone = np.eye(len(self.bounds))[:, self.held]
        return alone if self.across is None else np.concatenate([alone, self.across], axis=1)

    @property
    def on_rays(self) -> np.ndarray:
        """Which coordinates of x move along a ray, (p,)."""
        if self.rays is None:
            return np.zeros(len(self.bounds), bool)
        return np.any(self.rays != 0, axis=1)

    @property
    def held(self) -> np.ndarray:
        """Which coordinates of x are at a bound, (p,)."""
        return ~np.isnan(self.bounds)

    @property
    def towards(self) -> np.ndarray:
        """-1 where the bound is the lower end of x, +1 where it is the upper one, else 0; (p,)."""
        lower, upper = (self.bounds == end for end in ends(self.space).T)
        return upper.astype(int) - lower.astype(int)

    @property
    def sentences(self) -> str:
        """In words."""
        return "; ".join(where.sentence(label) for label, where in self.found.items())

    def exactly(self, params: Params) -> Params:
        """`params` with those at a bound moved onto it, from as near as computations can be."""
        exact = self.space.unravel(jnp.asarray(self.bounds))
        moved = dict(params)
        for site in self.space.sites:
            if np.all(np.isnan(ravel_pytree(exact[site.name])[0])) or _is_real(site):
                continue  # what is free keeps a value: infinity times a predictor of 0 has none
            if is_elementwise(site):
                moved[site.name] = jax.tree.map(_at, params[site.name], exact[site.name])
            elif self.x is not None:
                x = jnp.where(self.held, self.towards * FAR, self.x)
                limit = site.constrain(self.space.unravel(x)[site.name])
                moved[site.name] = jax.tree.map(_without_dust, limit)
        return moved


def ends(space: ParamSpace) -> np.ndarray:
    """The bounds that coordinates of x (p,) approach as they go to -inf and to +inf, (p, 2).

    NaN where there is none. Where coordinates together make a vector or a matrix, -1 and 1 stand
    for the edges of its support: a simplex without a component, a singular Cholesky factor.
    """
    return np.concatenate([np.zeros((0, 2)), *(_ends_of(site) for site in _in_order(space))])


class Place(NamedTuple):
    """What of the parameters reaches an end as coordinate `place` of x goes to `side` (-1 or 1).

    `entry` is where among all flattened parameters; None if it is no single one.
    """

    label: str
    bound: float
    place: int
    side: int
    entry: int | None

    def distance(self, space: ParamSpace, x: jax.Array) -> float:
        """How far from the end `x` (p,) is; from infinity, 1 / |value|."""
        flat = _flat(space.constrain(x))
        if self.entry is None:
            return float(np.linalg.norm(flat - _flat(space.constrain(_at_end(x, self)))))
        value = float(flat[self.entry])
        return 1 / abs(value) if np.isinf(self.bound) else abs(value - self.bound)


def place_of(space: ParamSpace, x: jax.Array, place: int, side: int) -> Place:
    """Name what reaches an end there, next to `x` (p,)."""
    labels, count, params = flat_labels(space.constrain(x)), 0, 0
    for site in _in_order(space):
        bounds, size = _ends_of(site), sum(int(np.prod(shape)) for shape in site.shapes)
        if place < count + len(bounds):
            break
        count, params = count + len(bounds), params + size
    if is_elementwise(site):
        index = params + place - count
        bound = bounds[place - count, (side + 1) // 2]
        return Place(labels[index], float(bound), place, side, index)
    before = _flat(space.constrain(x))
    limit = _flat(space.constrain(_at_end(x, Place("", 0.0, place, side, None))))
    inner = np.arange(len(limit)) - params
    own = (inner >= 0) & (inner < size) & ((limit != 0) | (before != 0))
    gone = own & (np.abs(limit) < GONE * np.max(np.abs(limit[own]), initial=0.0))
    if gone.any():
        index = int(np.flatnonzero(gone)[-1])
        return Place(labels[index], 0.0, place, side, index)
    changed = np.flatnonzero(own & (before != limit))
    if _base(site).event_dim == 1 and len(changed):  # neighbors that meet
        index = int(changed[0])
        return Place(labels[index], float(limit[index]), place, side, index)
    return Place(f"{site.name} (singular)", 0.0, place, side, None)


def _at_end(x: jax.Array, there: Place) -> jax.Array:
    return x.at[there.place].set(there.side * FAR)


def has_end(space: ParamSpace) -> np.ndarray:
    """Coordinates of x (p,) that belong to parameters with a bounded or curved support."""
    found = []
    for site in _in_order(space):
        size = len(_ends_of(site))
        found.append(np.full(size, not _is_real(site)))
    return np.concatenate([np.zeros(0, bool), *found])


def is_share(space: ParamSpace) -> np.ndarray:
    """Coordinates of x (p,) that belong to a simplex."""
    found = [
        np.full(len(_ends_of(site)), _base(site) is constraints.simplex)
        for site in _in_order(space)
    ]
    return np.concatenate([np.zeros(0, bool), *found])


def within_reach(space: ParamSpace, params: Params, errors: np.ndarray) -> dict[str, float]:
    """Free parameters less than a standard error from a bound, and the bound, by label.

    `errors` (P,) are standard errors of all flattened `params`; unknown ones (NaN) reach nothing.
    """
    values = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    known = dict(zip(flat_labels(params), zip(values, errors, strict=True), strict=True))
    labels = flat_labels(space.unravel(np.zeros(space.size)))
    found = {}
    single = [np.full(len(_ends_of(s)), is_elementwise(s)) for s in _in_order(space)]
    alone = np.concatenate([np.zeros(0, bool), *single])
    for label, bounds, own in zip(labels, ends(space), alone, strict=True):
        for bound in bounds[np.isfinite(bounds) & own]:
            value, error = known[label]
            if abs(value - bound) < error:
                found[label] = float(bound)
    return found


def _at(value: jax.Array, bound: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(bound), value, bound.astype(value.dtype))


def _without_dust(value: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(value) < GONE * jnp.max(jnp.abs(value)), 0.0, value)


def is_elementwise(site: ParamSite) -> bool:
    """Whether every coordinate of x moves one parameter of its own."""
    return not _base(site).event_dim


def _is_real(site: ParamSite) -> bool:
    return _base(site) in (constraints.real, constraints.real_vector)


def _in_order(space: ParamSpace) -> list[ParamSite]:
    """Sites in the order of the unconstrained vector."""
    return sorted(space.sites, key=lambda site: site.name)


def _ends_of(site: ParamSite) -> np.ndarray:
    """`ends` of one site."""
    base = _base(site)
    value = jax.tree.unflatten(site.treedef, [jnp.zeros(shape) for shape in site.shapes])
    if not is_elementwise(site) and base is not constraints.real_vector:
        return _edges_of(site)
    bounds = [getattr(base, name, None) for name in ("lower_bound", "upper_bound")]
    found = [bound for bound in bounds if bound is not None]
    if base is constraints.circular or not found:
        leaves = jax.tree.leaves(jax.eval_shape(site.unconstrain, value))
        return np.full((sum(int(np.prod(leaf.shape)) for leaf in leaves), 2), np.nan)
    columns, span = [], float(np.ptp(np.concatenate([np.ravel(bound) for bound in found])))
    for far in (-FAR, FAR):
        limit = _flat(site.constrain(jax.tree.map(lambda leaf, far=far: leaf + far, value)))
        column = np.where(np.abs(limit) > np.exp(FAR / 2), np.sign(limit) * np.inf, np.nan)
        for bound in found:
            flat = _flat(jax.tree.map(lambda leaf, bound=bound: leaf + bound, value))
            rounding = 16 * np.finfo(limit.dtype).eps * (np.abs(flat) + span)
            near = rounding + 10 * np.exp(-FAR) * max(1.0, span)
            column = np.where(np.abs(limit - flat) <= near, flat, column)
        columns.append(column)
    return np.stack(columns, axis=1)


@lru_cache(maxsize=64)
def _edges_of(site: ParamSite) -> np.ndarray:
    """`ends` of a vector or a matrix: -1 and 1 where the value does not move any more."""
    leaves = [jax.ShapeDtypeStruct(shape, jnp.result_type(float)) for shape in site.shapes]
    whole = jax.tree.unflatten(site.treedef, leaves)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(site.unconstrain, whole)
    )
    flat, unravel = ravel_pytree(zeros)
    edges = np.full((flat.size, 2), np.nan)
    for side in (-1, 1):
        near, far = (
            jax.vmap(lambda row: ravel_pytree(site.constrain(unravel(row)))[0])(
                jnp.eye(flat.size) * side * distance
            )
            for distance in (FAR - 3, FAR)
        )
        still = np.max(np.abs(near - far), axis=1, initial=0.0) < 1e-6
        edges[still, (side + 1) // 2] = side
    return edges


def _base(site: ParamSite) -> Any:
    base: Any = site.constraint
    while isinstance(base, type(constraints.independent(constraints.real, 1))):
        base = base.base_constraint
    return base


def _flat(value: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(value)[0])
