"""Where unobserved sites start: at prior means, since samplers are slow to compile."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to

from ppl_em.discrete import is_delta
from ppl_em.util import site_error


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
        if is_delta(site["fn"]):
            return None
        fn = site["fn"]
        shape = (*site["kwargs"].get("sample_shape", ()), *fn.shape())
        try:
            transform = biject_to(fn.support)
        except NotImplementedError:
            raise site_error(
                site["name"],
                f"it is a latent {type(fn).__name__}, on {fn.support}, where no plain numbers lead",
                "Put a `numpyro.handlers.reparam` around it, `ProjectedNormalReparam` for "
                "directions, say",
            ) from None
        unconstrained = np.zeros(transform.inverse_shape(shape))
        if site["name"] not in names or unconstrained.size < 2:
            return _inside(fn, _moment(fn, "mean", shape), transform(unconstrained))
        noise = jax.random.normal(site["kwargs"]["rng_key"], shape)
        around = _moment(fn, "mean", shape) + 0.5 * noise * _moment(fn, "variance", shape) ** 0.5
        wobble = 0.5 * noise.ravel()[: unconstrained.size].reshape(unconstrained.shape)
        return _inside(fn, around, transform(unconstrained + wobble))

    return substitute_fn


def _moment(fn: Any, name: str, shape: tuple[int, ...]) -> Any:
    """The mean or variance of a distribution, NaN where it does not say."""
    try:
        moment = getattr(fn, name)
        xp = jnp if isinstance(moment, jax.core.Tracer) else np
        return xp.broadcast_to(xp.asarray(moment, jnp.result_type(float)), shape)
    except (NotImplementedError, AttributeError, TypeError, ValueError):
        return np.full(shape, np.nan)


def _inside(fn: Any, value: Any, otherwise: Any) -> jax.Array:
    """`value` if every element is finite and in the support of `fn`, else `otherwise`."""
    inside = fn.support(value)
    if any(isinstance(array, jax.core.Tracer) for array in (value, otherwise, inside)):
        good = jnp.all(jnp.isfinite(value)) & jnp.all(inside)
        return jnp.where(good, value, otherwise)
    # On the host, as outside of compiled code each operation is a program.
    usable = np.all(np.isfinite(value)) and np.all(inside)
    return jax.device_put(np.asarray(value if usable else otherwise, jnp.result_type(float)))
