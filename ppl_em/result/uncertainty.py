"""Uncertainty: errors of the estimates on their own scale."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from ppl_em.params import ActiveConstraint


class Unconstrained(NamedTuple):
    """The free parameters on the unconstrained scale, where their law is about normal.

    `labels` (p,) name the coordinates, `x` (p,) are the estimates. `covariance` (p, p) is 0 where
    they are held (at a boundary, across an active constraint, along a flat direction), NaN if it
    is not available. `information` (p, p) is minus the Hessian of the log-likelihood, `score` (p,)
    its gradient.
    """

    labels: tuple[str, ...]
    x: np.ndarray
    covariance: np.ndarray
    information: np.ndarray
    score: np.ndarray


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Errors of all P flattened parameters, in the order of `params.flat_labels`.

    Attributes
    ----------
    covariance
        Statistical covariance, (P, P); zeros for fixed parameters, NaN if not available.
    mcse
        Monte Carlo standard errors of the estimates, (P,).
    se_mcse
        Monte Carlo standard errors of their standard errors, (P,).
    method
        How the covariance was computed.
    reason
        Why it is not available; empty if it is.
    note
        Which parameters have none (NaN), at a boundary, an active constraint, or along a flat
        direction, while the others do; which constraints were held; or which parameters may be at a
        boundary for all that draws can tell. Empty if there are none.
    active
        Constraints that are active.
    bounds
        Lower and upper bounds of the parameters' supports, (P, 2); None if they are not known.
    free
        The same on the unconstrained scale; None in files of older versions.
    repeated
        Entries that others tell: above the diagonal of a matrix, or constants, (P,).
    """

    covariance: np.ndarray
    mcse: np.ndarray
    se_mcse: np.ndarray
    method: str
    reason: str
    note: str = ""
    active: tuple[ActiveConstraint, ...] = ()
    bounds: np.ndarray | None = None
    free: Unconstrained | None = None
    repeated: np.ndarray | None = None

    def shown(self, count: int) -> np.ndarray:
        """Positions, among `count` flattened parameters, of those that a table shows."""
        return np.arange(count) if self.repeated is None else np.flatnonzero(~self.repeated)

    def table(self, estimate: np.ndarray, level: float) -> dict[str, np.ndarray]:
        """The columns of `EMResult.summary` for estimates (P,), each (P,)."""
        se = np.sqrt(np.diag(self.covariance))
        total = np.hypot(se, self.mcse)
        lower, upper = interval(estimate, ndtri(0.5 + level / 2) * total, self.bounds)
        columns = {"estimate": estimate, "se": se, "lower": lower, "upper": upper}
        columns["mcse"] = self.mcse
        if np.any(self.mcse != 0):
            columns |= {"total": total, "se_mcse": self.se_mcse}
        return columns


def interval(
    estimate: np.ndarray, half: np.ndarray, bounds: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Wald intervals, lower and upper ends (P,), that stay within bounds.

    Parameters
    ----------
    estimate
        Shape (P,).
    half
        Half their widths on the parameters' own scale, (P,).
    bounds
        Lower and upper ones, (P, 2), infinite for none; None if no parameter has any. With one
        bound the interval is symmetric on the log scale, with two on the logit scale.
    """
    if bounds is None:
        return estimate - half, estimate + half
    low, high = bounds.T
    with np.errstate(all="ignore"):
        above, below = estimate - low, high - estimate
        ends = []
        for sign in (-1.0, 1.0):
            move = sign * half
            odds = above / below * np.exp(move * (1 / above + 1 / below))
            within = np.where(np.isinf(odds), high, low + (high - low) * odds / (1 + odds))
            by_low = low + above * np.exp(move / above)
            by_high = high - below * np.exp(-move / below)
            one = np.where(np.isfinite(low), by_low, by_high)
            bounded = np.where(np.isfinite(low) & np.isfinite(high), within, one)
            free = (np.isinf(low) & np.isinf(high)) | (half == 0)
            ends.append(np.where(free, estimate + move, bounded))
    return ends[0], ends[1]
