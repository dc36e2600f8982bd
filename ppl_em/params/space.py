"""Parameters: the constrained values that users see, the flat unconstrained vector we optimise."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from numpyro.distributions import biject_to, constraints

from ppl_em.util import Static, brief, brief_repr, check_shape, compiled, content_key, site_error

Params = dict[str, Any]
"""Site name to value on the model's own scale; an array, or a pytree for `numpyro.module`."""


@dataclass(frozen=True)
class ParamSite:
    """One free parameter: its name, its constraint, and whether it is a sample site (MAP)."""

    name: str
    support: Static
    is_sample: bool
    treedef: Any
    shapes: tuple[tuple[int, ...], ...]

    @property
    def constraint(self) -> constraints.Constraint:
        """Where its values lie."""
        return self.support.value

    def unconstrain(self, value: Any) -> Any:
        """Map a value of the site to the unconstrained scale."""
        transform = biject_to(self.constraint)
        return jax.tree.map(lambda leaf: transform.inv(jnp.asarray(leaf)), value)

    def constrain(self, value: Any) -> Any:
        """Map an unconstrained value back to the model's own scale."""
        transform = biject_to(self.constraint)
        return jax.tree.map(transform, value)


def make_site(name: str, value: Any, support: constraints.Constraint, is_sample: bool) -> ParamSite:
    """Describe a parameter from its initial value and constraint."""
    leaves, treedef = jax.tree.flatten(value)
    return ParamSite(
        name,
        Static(support, (type(support).__name__, content_key(support))),
        is_sample,
        treedef,
        tuple(np.shape(leaf) for leaf in leaves),
    )


def check_start(space: "ParamSpace", values: Params) -> None:
    """Check that initial values lie strictly inside their constraints.

    Raises
    ------
    ModelError
        If a value is not finite, outside its constraint, or on the edge, where the
        unconstrained value is infinite.
    """
    flags = jax.device_get(_start_flags(space, {k: values[k] for k in space.names}))
    for site in space.sites:
        finite, inside, interior = flags[site.name]
        if finite and inside and interior:
            continue
        start = f"its initial value {brief(values[site.name])}"
        if not finite:
            fact = f"{start} is not finite"
        else:
            fact = f"{start} is {'on the edge of' if inside else 'outside'} its support "
            fact += str(site.constraint)
        raise site_error(
            site.name, fact, "Start it strictly inside, with `init_params` or in the model"
        )


@compiled(static_argnums=0)
def _start_flags(space: "ParamSpace", values: Params) -> dict[str, jax.Array]:
    def flags(site: ParamSite) -> jax.Array:
        leaves = jax.tree.leaves(values[site.name])
        unconstrained = jax.tree.leaves(site.unconstrain(values[site.name]))
        return jnp.stack(
            [
                jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])),
                jnp.all(jnp.array([jnp.all(site.constraint(leaf)) for leaf in leaves])),
                jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in unconstrained])),
            ]
        )

    return {site.name: flags(site) for site in space.sites}


def as_value(value: Any) -> Any:
    """Convert the leaves of a parameter value to floating-point JAX arrays.

    Weakly typed ones (from Python scalars) become strongly typed: the result of a step is, and a
    change of type would compile the step again.
    """

    def convert(leaf: ArrayLike) -> jax.Array:
        dtype = jnp.result_type(leaf)
        dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)
        if isinstance(leaf, jax.core.Tracer):
            return jnp.asarray(leaf, dtype)
        return jax.device_put(np.asarray(leaf, dtype))

    return jax.tree.map(convert, value)


def is_inside(value: Any, constraint: constraints.Constraint) -> bool:
    """Whether every leaf of a site's value satisfies the constraint; its edge counts."""
    return all(bool(jnp.all(constraint(jnp.asarray(leaf)))) for leaf in jax.tree.leaves(value))


def check_numbers(name: str, what: str, value: Any) -> None:
    """Raise if what was given for a site is not real numbers."""
    words = {"c": "complex numbers", "U": "text", "S": "text", "M": "dates", "m": "time spans"}
    for leaf in jax.tree.leaves(value):
        if isinstance(leaf, jax.Array):
            kind = "c" if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else "f"
        else:
            kind = np.asarray(leaf).dtype.kind
        if kind not in "fiub":
            found = f"{what} is or holds {words.get(kind, 'objects')}, {brief_repr(leaf)}"
            raise site_error(name, found, "Pass real numbers, codes from 0 for categories")


def check_value(name: str, option: str, value: Any, prototype: Any) -> Any:
    """Convert a user's value for a site, or raise if its structure or shape is another."""
    found: Any = jax.tree.structure(value)
    if found != jax.tree.structure(prototype):
        raise site_error(
            name,
            f"`{option}` has another tree structure than the model's parameter",
            "Pass an array, or a value built like the model's own initial value",
        )
    check_numbers(name, f"its value in `{option}`", value)
    value = as_value(value)
    for leaf, proto in zip(jax.tree.leaves(value), jax.tree.leaves(prototype), strict=True):
        check_shape(name, option, jnp.shape(leaf), jnp.shape(proto))
    return value


@dataclass(frozen=True)
class ParamSpace:
    """All free parameters and the bijection between their values and one vector, shape (p,).

    No Jacobian is involved: a maximum does not depend on the scale.
    """

    sites: tuple[ParamSite, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the free parameters, in the order of the model."""
        return tuple(site.name for site in self.sites)

    def unconstrain(self, params: Params) -> jax.Array:
        """Flatten the free entries of `params` to the unconstrained vector, shape (p,)."""
        return _unconstrain(self, {site.name: params[site.name] for site in self.sites})

    def constrain(self, x: jax.Array) -> Params:
        """Rebuild the free parameters from the unconstrained vector `x`, shape (p,)."""
        return _constrain(self, x)

    def unravel(self, x: Any) -> Params:
        """Split the unconstrained vector `x`, shape (p,), into unconstrained values by site.

        Takes arrays of JAX or NumPy.
        """
        leaves, treedef = jax.tree.flatten(self._prototype())
        ends = np.cumsum([int(np.prod(leaf.shape)) for leaf in leaves])
        parts = (np if isinstance(x, np.ndarray) else jnp).split(x, ends[:-1])
        shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        return jax.tree.unflatten(treedef, shaped)

    @property
    def size(self) -> int:
        """p, the length of the unconstrained vector."""
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(self._prototype()))

    def _prototype(self) -> dict[str, Any]:
        return _prototype(self, jnp.result_type(float))


@lru_cache(maxsize=64)
def _prototype(space: ParamSpace, dtype: np.dtype) -> dict[str, Any]:
    """Shapes of all unconstrained values; kept, as each costs milliseconds."""

    def shape_of(site: ParamSite) -> Any:
        leaves = [jax.ShapeDtypeStruct(shape, dtype) for shape in site.shapes]
        value = jax.tree.unflatten(site.treedef, leaves)
        return jax.eval_shape(site.unconstrain, value)

    return {site.name: shape_of(site) for site in space.sites}


# Compiled as a whole, also where they are called outside of compiled code.


@compiled(static_argnums=0)
def _unconstrain(space: ParamSpace, params: Params) -> jax.Array:
    tree = {site.name: site.unconstrain(params[site.name]) for site in space.sites}
    return ravel_pytree(tree)[0]


@compiled(static_argnums=0)
def _constrain(space: ParamSpace, x: jax.Array) -> Params:
    tree = space.unravel(x)
    return {site.name: site.constrain(tree[site.name]) for site in space.sites}
