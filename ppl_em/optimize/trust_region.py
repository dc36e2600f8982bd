"""The best step of a quadratic model within a radius.

References
----------
Nocedal & Wright (2006), Numerical Optimization, section 4.3.
"""

from dataclasses import dataclass, field

import numpy as np

SMALLEST = 1e-10
"""Curvature that rounding alone can make, for matrices with a unit diagonal."""

MAX_BISECTIONS = 60
"""Halvings of an interval of shifts in the search for a step of a given length."""


@dataclass(eq=False)
class Quadratic:
    """gradient's - s'(matrix)s / 2, a function of a step s (p,).

    `matrix` (p, p), minus a Hessian, may be indefinite.
    """

    gradient: np.ndarray
    matrix: np.ndarray
    values: np.ndarray = field(init=False)
    vectors: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.values, self.vectors = np.linalg.eigh(self.matrix)
        self.slopes = self.vectors.T @ self.gradient

    def gain(self, step: np.ndarray) -> float:
        """Its value at a step (p,)."""
        return float(step @ self.gradient - 0.5 * step @ self.matrix @ step)

    def within(self, radius: float) -> np.ndarray:
        """The step (p,) where it is largest among those not longer than `radius`.

        At a saddle, where the gradient says nothing of the way on, it leads along the direction
        that curves upwards most.
        """
        least = max(0.0, -float(np.min(self.values, initial=np.inf)))
        least = least if least > SMALLEST else 0.0
        low, high = least, least + float(np.linalg.norm(self.slopes)) / radius + SMALLEST
        if np.linalg.norm(self._shifted(low)) > radius:
            for _ in range(MAX_BISECTIONS):
                middle = (low + high) / 2
                too_long = np.linalg.norm(self._shifted(middle)) > radius
                low, high = (middle, high) if too_long else (low, middle)
            return self.vectors @ self._shifted(high)
        found = self._shifted(low)
        if least > 0:
            found[np.argmin(self.values)] += np.sqrt(max(radius**2 - found @ found, 0.0))
        return self.vectors @ found

    def _shifted(self, shift: float) -> np.ndarray:
        return self.slopes / np.maximum(self.values + shift, SMALLEST)
