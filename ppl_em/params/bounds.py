"""Where parameters end: the bounds of their supports, and how to say that one is there."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro.distributions import constraints

from ppl_em.params.labels import flat_labels
from ppl_em.params.space import Params, ParamSite, ParamSpace

FAR = 40.0
"""Unconstrained value that is as good as infinite."""


class Boundary(NamedTuple):
    """A parameter that is at a bound of its support, because the likelihood falls from there.

    Attributes
    ----------
    bound
        The bound, which is the estimate.
    score
        Change of the log-likelihood per unit of (distance from the bound) ** power, at the bound:
        negative, with the other parameters at their best.
    power
        1 if the log-likelihood has a slope at the bound, as in a probability or a variance; 2 if
        it has none, as in a standard deviation, on whose square it depends.
    """

    bound: float
    score: float
    power: int

    def sentence(self, label: str) -> str:
        """In words, with the parameter's name."""
        distance = label if self.bound == 0 else f"({label} - {self.bound:.6g})"
        unit = f"|{distance}|" if self.power == 1 else f"{distance}**{self.power}"
        return (
            f"`{label}` is at its boundary {self.bound:.6g} (the log-likelihood changes by "
            f"{self.score:.4g} per unit of {unit} from there)"
        )


@dataclass(frozen=True)
class AtBounds:
    """The parameters of a fit that are at a bound.

    `bounds` (p,) are NaN but for the coordinates of x that are at one; `found` says which by name.
    """

    space: ParamSpace
    bounds: np.ndarray
    found: dict[str, Boundary]

    @property
    def held(self) -> np.ndarray:
        """Which coordinates of x are at a bound, (p,)."""
        return np.isfinite(self.bounds)

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
            if np.any(np.isfinite(ravel_pytree(exact[site.name])[0])):
                moved[site.name] = jax.tree.map(_at, params[site.name], exact[site.name])
        return moved


def ends(space: ParamSpace) -> np.ndarray:
    """The bounds that coordinates of x (p,) approach as they go to -inf and to +inf, (p, 2).

    NaN where there is none, or where a coordinate moves several parameters at once.
    """
    return np.concatenate([np.zeros((0, 2)), *(_ends_of(site) for site in _in_order(space))])


def has_end(space: ParamSpace) -> np.ndarray:
    """Coordinates of x (p,) that belong to parameters with a bounded or curved support."""
    found = []
    for site in _in_order(space):
        size = len(_ends_of(site))
        real = _base(site) in (constraints.real, constraints.real_vector)
        found.append(np.full(size, not real))
    return np.concatenate([np.zeros(0, bool), *found])


def within_reach(space: ParamSpace, params: Params, errors: np.ndarray) -> dict[str, float]:
    """Free parameters less than a standard error from a bound, and the bound, by label.

    `errors` (P,) are standard errors of all flattened `params`; unknown ones (NaN) reach nothing.
    """
    values = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    known = dict(zip(flat_labels(params), zip(values, errors, strict=True), strict=True))
    labels = flat_labels(space.unravel(np.zeros(space.size)))
    found = {}
    for label, bounds in zip(labels, ends(space), strict=True):
        for bound in bounds[np.isfinite(bounds)]:
            value, error = known[label]
            if abs(value - bound) < error:
                found[label] = float(bound)
    return found


def _at(value: jax.Array, bound: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(bound), value, bound.astype(value.dtype))


def _in_order(space: ParamSpace) -> list[ParamSite]:
    """Sites in the order of the unconstrained vector."""
    return sorted(space.sites, key=lambda site: site.name)


def _ends_of(site: ParamSite) -> np.ndarray:
    """`ends` of one site."""
    base = _base(site)
    value = jax.tree.unflatten(site.treedef, [jnp.zeros(shape) for shape in site.shapes])
    bounds = [getattr(base, name, None) for name in ("lower_bound", "upper_bound")]
    found = [bound for bound in bounds if bound is not None]
    if base.event_dim or base is constraints.circular or not found:
        leaves = jax.tree.leaves(jax.eval_shape(site.unconstrain, value))
        return np.full((sum(int(np.prod(leaf.shape)) for leaf in leaves), 2), np.nan)
    columns = []
    for far in (-FAR, FAR):
        limit = _flat(site.constrain(jax.tree.map(lambda leaf, far=far: leaf + far, value)))
        column = np.full(limit.shape, np.nan)
        for bound in found:
            flat = _flat(jax.tree.map(lambda leaf, bound=bound: leaf + bound, value))
            column = np.where(np.abs(limit - flat) < 1e-6 * (1 + np.abs(flat)), flat, column)
        columns.append(column)
    return np.stack(columns, axis=1)


def _base(site: ParamSite) -> Any:
    base: Any = site.constraint
    while isinstance(base, type(constraints.independent(constraints.real, 1))):
        base = base.base_constraint
    return base


def _flat(value: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(value)[0])
