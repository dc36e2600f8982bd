"""The best step of a quadratic model within a radius.

References
----------
Nocedal & Wright (2006), Numerical Optimization, section 4.3.
"""

import numpy as np

SMALLEST = 1e-12
"""Smallest curvature that steps are divided by, for matrices with a unit diagonal."""

MAX_BISECTIONS = 60
"""Halvings of an interval of shifts in the search for a step of a given length."""


def step_within(gradient: np.ndarray, matrix: np.ndarray, radius: float) -> np.ndarray:
    """The step s (p,) with |s| <= radius that maximises gradient's - s'(matrix)s / 2.

    `matrix` (p, p) is minus a Hessian and may be indefinite. At a saddle, where the gradient says
    nothing of the way on, s leads along the direction that curves upwards most.
    """
    values, vectors = np.linalg.eigh(matrix)
    slopes = vectors.T @ gradient
    least = max(0.0, -float(np.min(values, initial=np.inf)))

    def step(shift: float) -> np.ndarray:
        return slopes / np.maximum(values + shift, SMALLEST)

    low, high = least, least + float(np.linalg.norm(slopes)) / radius + SMALLEST
    if np.linalg.norm(step(low)) > radius:
        for _ in range(MAX_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if np.linalg.norm(step(middle)) > radius else (low, middle)
        return vectors @ step(high)
    found = step(low)
    if least > 0:
        found[np.argmin(values)] += np.sqrt(max(radius**2 - found @ found, 0.0))
    return vectors @ found
