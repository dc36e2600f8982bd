"""The tail index of importance weights."""

import numpy as np

EVEN = 10.0
"""Largest weight, in units of the mean, up to which no draw matters much by itself."""


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
