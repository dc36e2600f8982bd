"""Probability vectors in closed form: the part of an M-step that is the same in every model.

Where Q depends on a probability vector p as sum_k n_k log p_k, as for mixture weights, initial and
transition probabilities, its maximum is p_k = n_k / sum_j n_j, and n_k = p_k dQ/dp_k needs no look
at the model. Numerical maximisers have a hard time there if some n_k is nearly 0.

References
----------
Baum & Eagon (1967), An inequality with applications to statistical estimation for probabilistic
functions of Markov processes, Bull. Amer. Math. Soc. 73.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import StickBreakingTransform

from ppl_em.params import Params, ParamSite, ParamSpace


class Grown(NamedTuple):
    """Parameters (p,) with no lower Q, and Q where they come from."""

    x: jax.Array
    start_value: jax.Array


def simplex_sites(space: ParamSpace) -> tuple[ParamSite, ...]:
    """The free parameters that are probability vectors."""
    return tuple(
        site
        for site in space.sites
        if isinstance(biject_to(site.constraint), StickBreakingTransform)
    )


def grow(space: ParamSpace, q_function: Callable[[Params], jax.Array], x: jax.Array) -> Grown:
    """Move all probability vectors to their closed form, if that does not lower Q.

    Parameters
    ----------
    space
        With at least one of `simplex_sites`.
    q_function
        Of the free parameters on their own scale.
    x
        Where to start, shape (p,).
    """
    sites = simplex_sites(space)
    free = space.constrain(x)
    vectors = {site.name: free[site.name] for site in sites}
    value, slopes = jax.value_and_grad(lambda v: q_function({**free, **v}))(vectors)
    unconstrained = space.unravel(x)
    for name, probs in vectors.items():
        moved = jax.tree.map(_closed_form, probs, slopes[name])
        kept = jax.tree.map(_usable, moved, unconstrained[name])
        unconstrained[name] = kept
    new_x = ravel_pytree(unconstrained)[0]
    new_value = q_function(space.constrain(new_x))
    better = new_value >= value - 2 * jnp.finfo(x.dtype).eps * jnp.abs(value)
    return Grown(jnp.where(better, new_x, x), value)


def _closed_form(probs: jax.Array, slope: jax.Array) -> jax.Array:
    """Unconstrained values of p_k dQ/dp_k, normalised; NaN where that is no probability vector."""
    counts = jnp.where(probs > 0, probs * slope, 0.0)
    counts = jnp.where(jnp.all(counts >= 0, -1, keepdims=True), counts, jnp.nan)
    # As the inverse of the transform, but with the small rests of the stick summed from their end.
    counts = jnp.maximum(counts, 1e8 * jnp.finfo(probs.dtype).tiny)
    rests = jnp.flip(jnp.cumsum(jnp.flip(counts, -1), -1), -1)[..., 1:]
    places = jnp.arange(rests.shape[-1], 0, -1)
    return jnp.log(counts[..., :-1]) - jnp.log(rests) + jnp.log(places)


def _usable(moved: jax.Array, before: jax.Array) -> jax.Array:
    return jnp.where(jnp.all(jnp.isfinite(moved), -1, keepdims=True), moved, before)
