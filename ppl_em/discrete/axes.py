"""The log-density of one site as an array whose axes have names."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution, ExpandedDistribution, Independent
from numpyro.distributions.util import is_identically_one

from ppl_em.util import site_error

Named = tuple[jax.Array, tuple[str, ...]]
"""An array, and what its axes are."""


def named(
    site: dict[str, Any],
    table: jax.Array,
    dims: Mapping[int, str],
    in_plates: bool,
    keep: bool = False,
) -> Named:
    """An array over a site's batch and the names of its axes, those of size 1 left out.

    Parameters
    ----------
    site, table
        A sample site, and an array that has its batch axes.
    dims
        Which discrete site each further axis belongs to.
    in_plates
        Whether an axis in no plate is refused; else it is summed.
    keep
        Neither of the two: such an axis is kept, under a name of its own.
    """
    frames = {f.dim: f for f in site["cond_indep_stack"] if f.dim is not None}
    lowest = min([-table.ndim, *frames])
    table = table.reshape((1,) * (-lowest - table.ndim) + table.shape)
    owners = {**dims, **{dim: frame.name for dim, frame in frames.items()}}
    if keep:
        owners = {**{dim: f"axis {dim}" for dim in range(-table.ndim, 0)}, **owners}
    if not in_plates:
        nobody = tuple(dim for dim in range(-table.ndim, 0) if dim not in owners)
        table = jnp.sum(table, nobody, keepdims=True)
    names, shape = [], []
    for dim in range(-table.ndim, 0):
        size, owner = table.shape[dim], owners.get(dim)
        if owner is None and size > 1:
            raise site_error(
                site["name"],
                f"an axis of size {size} of its log-density is in no plate, which models with "
                f"discrete latents need",
                "Put the site in `numpyro.plate`, or make the axis part of the event with "
                "`.to_event`",
            )
        if owner is not None and (dim in frames or size > 1):
            names.append(owner)
            shape.append(size)
    return table.reshape(shape), tuple(names)


def log_prob(site: dict[str, Any]) -> jax.Array:
    """Log-density of a site without its scale, of size 1 where a plate only repeats it."""
    fn, value = site["fn"], site["value"]
    if site["intermediates"]:
        return jnp.asarray(fn.log_prob(value, site["intermediates"]))
    return jnp.asarray(stripped(fn).log_prob(value))


def scaled(site: dict[str, Any]) -> bool:
    """Whether a `numpyro.handlers.scale` is around a site."""
    return site["scale"] is not None and not is_identically_one(site["scale"])


def stripped(fn: Distribution) -> Distribution:
    """The distribution without the axes that plates only repeat."""
    while isinstance(fn, ExpandedDistribution):
        fn = fn.base_dist
    if isinstance(fn, Independent):
        inner, count = stripped(fn.base_dist), fn.reinterpreted_batch_ndims
        whole = fn.base_dist.batch_shape
        if len(inner.batch_shape) >= count and inner.batch_shape[-count:] == whole[-count:]:
            return Independent(inner, count)
    return fn
