"""Triangular matrices, their log-determinants, and the density of standard normal noise."""

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.util import cholesky, inverse_lower


def inverse_transpose(tril: jax.Array) -> jax.Array:
    """Of triangular matrices (..., k, k)."""
    return jnp.swapaxes(inverse_lower(tril), -1, -2)


def log_det(tril: jax.Array) -> jax.Array:
    """Log-determinant of all triangular matrices (..., k, k) together; a scalar."""
    return jnp.sum(jnp.log(jnp.diagonal(tril, axis1=-2, axis2=-1)))


def standard_normal(noise: jax.Array, size: int) -> jax.Array:
    """Log-density of standard normal `noise` with `size` entries that count; a scalar."""
    return -0.5 * jnp.sum(noise**2) - 0.5 * size * np.log(2 * np.pi)


def normal_terms(noise: jax.Array, tril: jax.Array) -> jax.Array:
    """Terms of a normal log-density, (..., k): of `noise` (..., k), made by `tril` (..., k, k)."""
    slope = jnp.log(jnp.diagonal(tril, axis1=-2, axis2=-1))
    return slope - 0.5 * noise**2 - 0.5 * np.log(2 * np.pi)


def roots(covariance: jax.Array, fallback: jax.Array) -> jax.Array:
    """Square roots of covariances (G, d, d), or `fallback` where they are not positive definite."""
    tril = cholesky(covariance)
    good = jnp.all(jnp.isfinite(tril), axis=(-2, -1), keepdims=True)
    return jnp.where(good, tril, fallback)
