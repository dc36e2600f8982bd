"""Random keys: the user's, and NumPy generators from them."""

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.util.compilation import compiled
from ppl_em.util.errors import ModelError


def as_key(rng_key: jax.Array) -> jax.Array:
    """A new-style key from one of either style, or raise if it is none."""
    if not isinstance(rng_key, jax.Array | np.ndarray):
        raise _no_key(type(rng_key).__name__)
    if not jnp.issubdtype(jnp.asarray(rng_key).dtype, jax.dtypes.prng_key):
        words = f"{rng_key.dtype} of shape {rng_key.shape}"
        try:
            rng_key = jax.random.wrap_key_data(jnp.asarray(rng_key))
        except (TypeError, ValueError):
            raise _no_key(words) from None
    if rng_key.ndim:
        raise ModelError(f"Argument `rng_key`: found keys of shape {rng_key.shape}. Pass one.")
    return rng_key


def _no_key(found: str) -> ModelError:
    return ModelError(
        f"Argument `rng_key`: found {found}. The random key comes first: "
        f"`run(jax.random.key(0), *args)`."
    )


def generator(rng_key: jax.Array) -> np.random.Generator:
    """NumPy's random numbers from a JAX key: for what is drawn on the host."""
    return np.random.default_rng(np.asarray(jax.random.key_data(rng_key)).astype(np.uint32))


@compiled(static_argnums=1)
def split(rng_key: jax.Array, count: int = 2) -> tuple[jax.Array, ...]:
    """Keys as of `jax.random.split`, one by one, from one program."""
    return tuple(jax.random.split(rng_key, count))
