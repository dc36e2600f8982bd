"""Rows of data that differ in their values only, not in their law."""

from typing import Any

import jax
import jax.numpy as jnp

from ppl_em.discrete.axes import stripped
from ppl_em.discrete.supports import mask_of


def rows_of(site: dict[str, Any], time: str) -> dict[str, tuple[str, jax.Array]]:
    """The axis of the rows of an observed site and their values, by its name; empty if it has none.

    `time` is the time axis of the scan that it is in, empty outside.
    """
    fn, value = stripped(site["fn"]), jnp.asarray(site["value"])
    if not site["is_observed"] or site["scale"] is not None or site["intermediates"]:
        return {}
    if mask_of(fn) is not True or value.ndim < fn.event_dim:
        return {}
    batch = value.shape[: value.ndim - fn.event_dim]
    long = [dim for dim in range(-len(batch), 0) if batch[dim] > 1]
    frames = {f.dim: f.name for f in site["cond_indep_stack"]}
    if time and not long:
        return {site["name"]: (time, value.reshape(fn.event_shape))}
    if time or len(long) != 1 or long[0] not in frames:
        return {}
    own = fn.batch_shape
    if len(own) >= -long[0] and own[long[0]] > 1:
        return {}
    rows = value.reshape((batch[long[0]], *fn.event_shape))
    return {site["name"]: (frames[long[0]], rows)}
