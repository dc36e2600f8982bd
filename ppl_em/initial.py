"""Where unobserved sites start: at prior means, since samplers are slow to compile."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import biject_to


def init_near_mean(spread: Iterable[str] = ()) -> Callable[[dict[str, Any]], Any]:
    """Start continuous latent sites at their prior means, or at 0 on the unconstrained scale.

    The mean is taken where the distribution knows it, and it is finite and inside the support.
    Sites named in `spread` (those to be maximised) start half a prior standard deviation around
    it if they have several elements: equal ones could be a saddle point, as in a mixture. Returns
    a function for NumPyro's `substitute(substitute_fn=...)`, which works within `scan` too.
    """
    names = frozenset(spread)

    def substitute_fn(site: dict[str, Any]) -> Any:
        if site["type"] != "sample" or site["is_observed"] or site["fn"].support.is_discrete:
            return None
        fn = site["fn"]
        shape = (*site["kwargs"].get("sample_shape", ()), *fn.shape())
        transform = biject_to(fn.support)
        unconstrained = jnp.zeros(transform.inverse_shape(shape))
        if site["name"] not in names or unconstrained.size < 2:
            return _inside(fn, _moment(fn, "mean", shape), transform(unconstrained))
        noise = jax.random.normal(site["kwargs"]["rng_key"], shape)
        around = _moment(fn, "mean", shape) + 0.5 * noise * _moment(fn, "variance", shape) ** 0.5
        wobble = 0.5 * noise.ravel()[: unconstrained.size].reshape(unconstrained.shape)
        return _inside(fn, around, transform(unconstrained + wobble))

    return substitute_fn


def _moment(fn: Any, name: str, shape: tuple[int, ...]) -> jax.Array:
    """The mean or variance of a distribution, NaN where it does not say."""
    try:
        return jnp.broadcast_to(jnp.asarray(getattr(fn, name), jnp.result_type(float)), shape)
    except (NotImplementedError, AttributeError, TypeError, ValueError):
        return jnp.full(shape, jnp.nan)


def _inside(fn: Any, value: jax.Array, otherwise: jax.Array) -> jax.Array:
    """`value` if every element is finite and in the support of `fn`, else `otherwise`."""
    good = jnp.all(jnp.isfinite(value)) & jnp.all(fn.support(value))
    return jnp.where(good, value, otherwise)
