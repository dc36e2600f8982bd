"""Diagnostics of chains and of means over draws."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.diagnostics import split_gelman_rubin
from scipy.special import ndtri


def ebfmi(energy: Any) -> Any:
    """Energy's Bayesian fraction of missing information by chain, (chain,), from (chain, draw).

    Takes arrays of JAX or NumPy.

    References
    ----------
    Betancourt (2016), Diagnosing suboptimal cotangent disintegrations, arXiv:1604.00695.
    """
    return ((energy[:, 1:] - energy[:, :-1]) ** 2).mean(axis=1) / energy.var(axis=1)


def relative_error(variances: np.ndarray) -> np.ndarray:
    """Jackknife error of standard errors relative to them, (P,), from their squares (R, P)."""
    errors = np.sqrt(variances)
    spread = np.sqrt((len(errors) - 1) * np.var(errors, axis=0))
    return spread / np.maximum(errors.mean(axis=0), np.finfo(float).tiny)


def rank_rhat(values: np.ndarray) -> float:
    """Largest split R-hat of the ranks of `values` (chain, draw, p) on the normal scale.

    As ArviZ has it, whose import would take a second of every run on the command line.
    """
    if values.shape[-1] == 0 or values.shape[1] < 4:
        return 1.0
    flat = values.reshape(-1, values.shape[-1])
    ranks = 1 + np.argsort(np.argsort(flat, axis=0), axis=0)
    normal = ndtri((ranks - 0.375) / (len(flat) + 0.25))
    return float(np.max(split_gelman_rubin(normal.reshape(values.shape))))


def mean_and_error(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted mean of `values` (chain, draw), standard error by batch means; shape (2,)."""
    chains, draws = values.shape
    batches = min(max(2, min(5, draws // 5)), draws)
    length = draws // batches
    mean = jnp.sum(weights * values)

    def by_batch(terms: jax.Array) -> jax.Array:
        return terms[:, : batches * length].reshape(chains * batches, length).sum(axis=1)

    count = chains * batches
    error = jnp.sqrt(jnp.sum(by_batch(weights * (values - mean)) ** 2) * count / (count - 1))
    return jnp.stack([mean, error])
