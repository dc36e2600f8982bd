"""Which fits are one optimum."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

APART = 0.1
"""Standard errors up to which two fits are one optimum, beside their Monte Carlo errors."""

GAIN_APART = 0.01
"""Nats up to which they are."""

UNITS_APART = 0.01
"""Relative difference up to which they are, where there is no standard error."""


class Fit(NamedTuple):
    """One finished start, as far as clustering needs it.

    `flat`, `se` and `mcse` are all parameters, aligned and flattened, (P,); `noise` is the Monte
    Carlo error of the `objective`.
    """

    objective: float
    noise: float
    converged: bool
    flat: np.ndarray
    mcse: np.ndarray


def clusters(
    fits: dict[int, Fit],
    errors: Callable[[int], np.ndarray],
    dip: Callable[[int, int], float],
    gap: float,
) -> list[list[int]]:
    """Fits by number, put together where they are the same optimum; the best optimum first.

    Within each, the best fit comes first. Two are the same if objectives and parameters agree:
    parameters within a tenth of a standard error, and both within what convergence and Monte Carlo
    noise leave open. So are two with one objective between which it does not dip, as where some
    parameters do not matter. Fits that did not converge join an optimum but make none.

    Parameters
    ----------
    fits
        Numbers and fits, aligned.
    errors
        Function of the number of a fit: its standard errors, (P,), NaN where it has none.
    dip
        Function of two numbers: how far the objective falls between two fits, in nats.
    gap
        What convergence leaves to gain, in nats.
    """
    order = sorted(fits, key=lambda i: (not fits[i].converged, -fits[i].objective))
    found: list[tuple[np.ndarray, list[int]]] = []
    for i in order:
        for se, members in found:
            one, other = fits[members[0]], fits[i]
            allowed = max(GAIN_APART, 2 * gap) + 4 * np.hypot(one.noise, other.noise)
            if abs(one.objective - other.objective) > allowed:
                continue
            if _same(one, other, se, gap) or dip(members[0], i) < allowed:
                members.append(i)
                break
        else:
            if fits[i].converged:
                found.append((errors(i), [i]))
    return [members for _, members in found]


def _same(one: Fit, other: Fit, se: np.ndarray, gap: float) -> bool:
    """Whether the parameters of two fits are the same, up to what is known of them."""
    away = np.abs(one.flat - other.flat)
    mcse = np.nan_to_num(np.hypot(one.mcse, other.mcse))
    known = np.isfinite(se)
    if not known.any():
        return bool(np.all(away <= UNITS_APART * np.abs(one.flat) + 4 * mcse))
    limit = max(APART, 2 * np.sqrt(2 * gap)) * se + 4 * mcse
    rounding = 1e-6 * np.abs(one.flat)  # for fixed parameters, whose error is 0
    return bool(np.all((away <= limit + rounding)[known]))
