"""Where parameters end: the bounds of their supports, and how to say that one is there."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from ppl_em.params.boundary import Boundary
from ppl_em.params.labels import flat_labels
from ppl_em.params.space import Params, ParamSpace
from ppl_em.params.unconstrained_ends import (
    FAR,
    base_of,
    ends,
    ends_of,
    in_order,
    is_elementwise,
    is_real,
    raveled,
)
from ppl_em.util import put

GONE = 1e-7
"""Entry of a simplex or of a Cholesky factor that is 0 but for rounding, next to the largest."""


@dataclass(frozen=True, eq=False)
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
        exact = self.space.unravel(np.asarray(self.bounds))
        moved = dict(params)
        for site in self.space.sites:
            if np.all(np.isnan(raveled(exact[site.name]))) or is_real(site):
                continue  # what is free keeps a value: infinity times a predictor of 0 has none
            if is_elementwise(site):
                moved[site.name] = jax.tree.map(_at, params[site.name], exact[site.name])
            elif self.x is not None:
                x = np.where(self.held, self.towards * FAR, self.x)
                limit = self.space.constrain(jax.device_put(x))[site.name]
                moved[site.name] = jax.tree.map(_without_dust, limit)
        return moved


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
        flat = raveled(space.constrain(x))
        if self.entry is None:
            return float(np.linalg.norm(flat - raveled(space.constrain(_at_end(x, self)))))
        value = float(flat[self.entry])
        return 1 / abs(value) if np.isinf(self.bound) else abs(value - self.bound)


def place_of(space: ParamSpace, x: jax.Array, place: int, side: int) -> Place:
    """Name what reaches an end there, next to `x` (p,)."""
    labels, count, params = flat_labels(space.constrain(x)), 0, 0
    for site in in_order(space):
        bounds, size = ends_of(site), sum(int(np.prod(shape)) for shape in site.shapes)
        if place < count + len(bounds):
            break
        count, params = count + len(bounds), params + size
    if is_elementwise(site):
        index = params + place - count
        bound = bounds[place - count, (side + 1) // 2]
        return Place(labels[index], float(bound), place, side, index)
    before = raveled(space.constrain(x))
    limit = raveled(space.constrain(_at_end(x, Place("", 0.0, place, side, None))))
    inner = np.arange(len(limit)) - params
    own = (inner >= 0) & (inner < size) & ((limit != 0) | (before != 0))
    gone = own & (np.abs(limit) < GONE * np.max(np.abs(limit[own]), initial=0.0))
    if gone.any():
        index = int(np.flatnonzero(gone)[-1])
        return Place(labels[index], 0.0, place, side, index)
    changed = np.flatnonzero(own & (before != limit))
    if base_of(site).event_dim == 1 and len(changed):  # neighbors that meet
        index = int(changed[0])
        return Place(labels[index], float(limit[index]), place, side, index)
    return Place(f"{site.name} (singular)", 0.0, place, side, None)


def _at_end(x: jax.Array, there: Place) -> jax.Array:
    return put(x, there.side * FAR, there.place)


def within_reach(space: ParamSpace, params: Params, errors: np.ndarray) -> dict[str, float]:
    """Free parameters less than a standard error from a bound, and the bound, by label.

    `errors` (P,) are standard errors of all flattened `params`; unknown ones (NaN) reach nothing.
    """
    values = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    known = dict(zip(flat_labels(params), zip(values, errors, strict=True), strict=True))
    labels = flat_labels(space.unravel(np.zeros(space.size)))
    found = {}
    single = [np.full(len(ends_of(s)), is_elementwise(s)) for s in in_order(space)]
    alone = np.concatenate([np.zeros(0, bool), *single])
    for label, bounds, own in zip(labels, ends(space), alone, strict=True):
        for bound in bounds[np.isfinite(bounds) & own]:
            value, error = known[label]
            if abs(value - bound) < error:
                found[label] = float(bound)
    return found


def _at(value: jax.Array, bound: np.ndarray) -> jax.Array:
    return jax.device_put(np.where(np.isnan(bound), value, bound).astype(value.dtype))


def _without_dust(value: jax.Array) -> jax.Array:
    size = np.abs(np.asarray(value))
    return jax.device_put(np.where(size < GONE * np.max(size), 0.0, value).astype(value.dtype))
