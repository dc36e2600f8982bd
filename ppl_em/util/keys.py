"""Random keys: the user's, and NumPy generators from them."""

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.util.errors import ModelError


def as_key(rng_key: jax.Array) -> jax.Array:
    """A new-style key from one of either style, or raise if it is none."""
    if not isinstance(rng_key, jax.Array | np.ndarray):
        raise ModelError(
            f"Argument `rng_key`: found {type(rng_key).__name__}. The random key comes first: "
            f"`run(jax.random.key(0), *args)`."
        )
    if jnp.issubdtype(jnp.asarray(rng_key).dtype, jax.dtypes.prng_key):
        return rng_key
    return jax.random.wrap_key_data(jnp.asarray(rng_key))


def generator(rng_key: jax.Array) -> np.random.Generator:
    """NumPy's random numbers from a JAX key: for what is drawn on the host."""
    return np.random.default_rng(np.asarray(jax.random.key_data(rng_key)).astype(np.uint32))
