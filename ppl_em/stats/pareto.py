"""Tails of importance weights: their index, k-hat, and smoothing."""

import jax
import jax.numpy as jnp
import numpy as np

MAX_KHAT = 0.7
"""Tail index from which weights, and what is averaged with them, are not to be relied on.

Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling, JMLR 25.
"""

EVEN = 10.0
"""Largest weight, in units of the mean, up to which no draw matters much by itself."""


PRIOR = 10.0
"""Draws that the prior k = 1/2 of the tail index is worth."""


def pareto_khat(log_ratios: np.ndarray, even: float = EVEN) -> float:
    """Tail index of importance weights, from their logs, shape (n,); below 0.7 is usable.

    The likelihood estimate (ArviZ) can return anything for tails with an end point, k below -1/2,
    and calls a small bump at the end of nearly equal weights very heavy. Where no draw weighs much
    more than `even` times the mean of all, the moments of the tail decide.

    References
    ----------
    Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling, JMLR 25.
    Smith (1985), Biometrika 72, for the break-down; Hosking & Wallis (1987), Technometrics 29,
    for the moment estimate.
    """
    log_ratios = np.asarray(log_ratios, dtype=float)
    weights = np.sort(np.exp(log_ratios - log_ratios.max()))
    size = len(weights)
    tail = weights[-int(min(size / 5, 3 * size**0.5)) - 1 :]
    excess = tail[1:] - tail[0]
    by_moments = 0.5 * (1 - np.mean(excess) ** 2 / np.var(excess))
    if by_moments < -0.5 or weights[-1] < even * np.mean(weights):
        return float(by_moments)
    from arviz_stats.base import array_stats  # costs a second

    return float(array_stats.psislw(-log_ratios)[1])


def smooth(log_ratios: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What Pareto smoothing adds to log importance ratios (n,), shape (n,), and k-hat.

    The largest min(n / 5, 3 sqrt(n)) weights are replaced by quantiles of the generalised Pareto
    law fitted to them, none above the largest. Where no draw weighs much more than the mean of
    all, nothing is smoothed and k-hat is the moment estimate, as in `pareto_khat`.

    References
    ----------
    Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling, JMLR 25.
    Zhang & Stephens (2009), A new and efficient estimation method for the generalized Pareto
    distribution, Technometrics 51. Hosking & Wallis (1987), Technometrics 29, for the moments.
    """
    size = len(log_ratios)
    count = int(min(size / 5, 3 * size**0.5))
    order = jnp.argsort(log_ratios)
    weights = jnp.exp(log_ratios - log_ratios[order[-1]])[order]
    cutoff, tail = weights[-count - 1], weights[-count:]
    excess = tail - cutoff
    variance = jnp.maximum(jnp.var(excess), jnp.finfo(excess.dtype).tiny)
    by_moments = 0.5 * (1 - jnp.mean(excess) ** 2 / variance)
    even = (by_moments < -0.5) | (weights[-1] < EVEN * jnp.mean(weights))
    # Ties would divide by zero; where they abound, the weights are even.
    safe = jnp.where(even, 1.0 + jnp.arange(count), jnp.maximum(excess, 1e-300))
    khat, scale = _fit(safe)
    quantiles = (jnp.arange(count) + 0.5) / count
    smoothed = cutoff + scale * jnp.expm1(-khat * jnp.log1p(-quantiles)) / khat
    smoothed = jnp.minimum(smoothed, weights[-1])
    change = jnp.where(even, 0.0, jnp.log(smoothed) - jnp.log(tail))
    change = jnp.zeros_like(log_ratios).at[order[-count:]].set(change)
    return change, jnp.where(even, jnp.maximum(by_moments, -1e3), khat)


def _fit(excess: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Shape and scale of a generalised Pareto law from sorted excesses over its start, (m,)."""
    size = len(excess)
    num_grid = 30 + int(size**0.5)
    grid = 1 - np.sqrt(num_grid / (np.arange(1, num_grid + 1) - 0.5))
    slopes = grid / (3 * excess[int(size / 4 + 0.5) - 1]) + 1 / excess[-1]
    shapes = jnp.mean(jnp.log1p(-slopes[:, None] * excess), axis=1)
    log_weights = size * (jnp.log(-slopes / shapes) - shapes - 1)
    slope = jnp.sum(slopes * jax.nn.softmax(log_weights))
    shape = jnp.mean(jnp.log1p(-slope * excess))
    return (size * shape + PRIOR * 0.5) / (size + PRIOR), -shape / slope
