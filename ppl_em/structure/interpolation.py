"""Points that determine a quadratic function, and when a fit to them counts as exact."""

import numpy as np

MAX_EVENT = 20
"""Elements of a row up to which quadratic functions are tried: R is 231 for 20."""


def corners(d: int) -> np.ndarray:
    """Points that determine a quadratic function: 0, e_i, -e_i and e_i + e_j, ((d+1)(d+2)/2, d)."""
    unit = np.eye(d)
    row, column = np.tril_indices(d, -1)
    return np.concatenate([np.zeros((1, d)), unit, -unit, unit[row] + unit[column]])


def tolerance(dtype: np.dtype) -> float:
    """Relative error below which a table over points counts as that over rows."""
    return float(np.finfo(dtype).eps) ** 0.5 * 1e-3
