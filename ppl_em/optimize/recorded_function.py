"""A function on the host with what has been seen of it: the best feasible point, and secants."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ppl_em.optimize import kkt
from ppl_em.optimize.kkt import Conditions

Function = Callable[[np.ndarray], Any]
"""x (p,) to value and gradient (p,); for the derivative-free methods a value alone will do."""

MEMORY = 20
"""Last accepted points whose secants say what another step would promise."""

REACH = 1e-3
"""Relative slack up to which a bound is tried that the gradient pushes against."""


class RecordedFunction:
    """A function (see `Function`) under conditions, or None; each point is evaluated once.

    Attributes
    ----------
    best, best_x
        The largest value at a feasible point, -inf before there is one, and that point, (p,).
    num_steps
        Accepted points that were recorded, without the first.
    scale
        Units of the coordinates, (p,), in which steps have a length.
    """

    scale: np.ndarray | float = 1.0

    def __init__(self, function: Function, conditions: Conditions | None, with_gradient: bool):
        self.function, self.conditions, self.with_gradient = function, conditions, with_gradient
        self.seen: dict[bytes, tuple[float, np.ndarray]] = {}
        self.points: list[tuple[np.ndarray, np.ndarray]] = []
        self.best_x: np.ndarray | None = None
        self.best, self.worst, self.num_steps = -np.inf, np.inf, -1

    def at(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Value and gradient; -inf and zeros where one is not finite."""
        x = np.array(x, dtype=float)
        key = x.tobytes()
        if key not in self.seen:
            found = self.function(x)
            value, gradient = found if isinstance(found, tuple) else (found, None)
            value = float(value)
            used = self.with_gradient and gradient is not None
            slope = np.asarray(gradient, dtype=float) if used else np.zeros_like(x)
            if not (np.isfinite(value) and np.all(np.isfinite(slope))):
                value, slope = -np.inf, np.zeros_like(x)
            self.seen[key] = value, slope
            if np.isfinite(value):
                self.worst = min(self.worst, value)
            if value > self.best and self.is_allowed(x):
                self.best, self.best_x = value, x
        return self.seen[key]

    def is_allowed(self, x: np.ndarray) -> bool:
        """Whether `x` (p,) is feasible."""
        return self.conditions is None or kkt.is_feasible(x, self.conditions)

    def loss(self, x: np.ndarray) -> float:
        """What SciPy minimises; a large number, for line searches that interpolate, not inf."""
        value = self.at(x)[0]
        if np.isfinite(value):
            return -value
        best = max(value for value, _ in self.seen.values())
        return -self.worst + 10 * (1 + best - self.worst)

    def slope(self, x: np.ndarray) -> np.ndarray:
        """Its gradient, (p,)."""
        return -self.at(x)[1]

    def record(self, x: np.ndarray) -> None:
        """Remember an accepted point (p,) for its secants, if its value is finite."""
        if not np.isfinite(self.at(x)[0]):
            return
        if not self.points or np.any(self.points[-1][0] != x):
            self.num_steps += 1
            self.points = [*self.points[-MEMORY:], (np.array(x), self.at(x)[1])]

    def held(self, x: np.ndarray) -> kkt.Multipliers:
        """Multipliers at `x` (p,) of the active conditions, and what is left of the gradient."""
        gradient = self.at(x)[1]
        if self.conditions is None:
            return kkt.Multipliers(np.zeros(0, int), np.zeros(0), gradient)
        side = kkt.sides(self.conditions.values(x), self.conditions)
        return kkt.multipliers(gradient, self.conditions.jacobian(x), side)

    def promised(self, x: np.ndarray) -> float:
        """Half the projected gradient times the quasi-Newton step, what another step would gain.

        By the two-loop recursion of L-BFGS over the last accepted points: Nocedal & Wright
        (2006), algorithm 7.4. Infinite before there is a secant.
        """
        direction = projected = self.held(x).projected * self.scale
        pairs = []
        for (a, slope_a), (b, slope_b) in zip(self.points, self.points[1:], strict=False):
            step, fall = (b - a) / self.scale, (slope_a - slope_b) * self.scale
            if step @ fall > 1e-10 * np.linalg.norm(step) * np.linalg.norm(fall):
                pairs.append((step, fall))
        if not pairs:
            return np.inf if np.any(projected) else 0.0
        weights = []
        for step, fall in reversed(pairs):
            weights.append(step @ direction / (step @ fall))
            direction = direction - weights[-1] * fall
        step, fall = pairs[-1]
        direction = direction * (step @ fall) / (fall @ fall)
        for (step, fall), weight in zip(pairs, reversed(weights), strict=True):
            direction = direction + (weight - fall @ direction / (step @ fall)) * step
        return float(max(0.5 * projected @ direction, 0.0))

    def repair(self, x: np.ndarray) -> None:
        """Try the points next to `x` (p,) that satisfy its active conditions exactly."""
        if self.conditions is None:
            return
        near = kkt.sides(self.conditions.values(x), self.conditions, REACH)
        held = kkt.multipliers(self.at(x)[1], self.conditions.jacobian(x), near)
        onto = np.zeros_like(near)
        onto[held.rows[held.values != 0]] = near[held.rows[held.values != 0]]
        self.at(kkt.restored(x, self.conditions, onto))
        self.at(kkt.restored(x, self.conditions))
