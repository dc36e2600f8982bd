"""Log-likelihoods of one-dimensional chains on a dense grid, in plain NumPy."""

from collections.abc import Callable

import numpy as np
from scipy.special import gammaln


def normal(x, mean, sd):
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)


def student_t(x, df, mean, sd):
    z = (x - mean) / sd
    scale = gammaln((df + 1) / 2) - gammaln(df / 2) - 0.5 * np.log(df * np.pi) - np.log(sd)
    return scale - 0.5 * (df + 1) * np.log1p(z**2 / df)


def poisson(y, log_rate):
    return y * log_rate - np.exp(log_rate) - gammaln(y + 1)


def filtered(
    weights: np.ndarray,
    first: np.ndarray,
    move: Callable[[int], np.ndarray],
    seen: np.ndarray,
) -> float:
    """The log-likelihood by a forward pass on nodes (G,) that stay the same.

    `first` (G,) and `move(t)` (G, G), from row to column, are log-densities of states, `seen`
    (T, G) those of what is observed.
    """
    log_weights, total = np.log(weights), 0.0
    state = first + log_weights + seen[0]
    constant = None
    for t in range(len(seen)):
        if t:
            step = move(t)
            if constant is None or constant[0] is not step:
                constant = step, np.exp(step)
            state = np.log(np.maximum(np.exp(state) @ constant[1], 1e-300)) + log_weights + seen[t]
        most = np.max(state)
        total += most
        state = state - most
    return total + np.log(np.sum(np.exp(state)))
