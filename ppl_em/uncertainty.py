"""Uncertainty: errors of the estimates on their own scale."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
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
        Which parameters have none (NaN), at a boundary or along a flat direction, while the others
        do, or which may be at a boundary for all that draws can tell; empty if there are none.
    """

    covariance: np.ndarray
    mcse: np.ndarray
    se_mcse: np.ndarray
    method: str
    reason: str
    note: str = ""
