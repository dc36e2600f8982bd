"""Conditions on a vector: which of them hold as equations, their multipliers, and what is left.

At a constrained maximum the gradient is a combination of the gradients of the active conditions,
∇f = Σ ν_i ∇c_i, with ν_i ≤ 0 at a lower bound and ν_i ≥ 0 at an upper one (Karush-Kuhn-Tucker);
ν_i = df*/d(bound i), so |ν_i| is what relaxing the bound by one unit gains.

References
----------
Nocedal & Wright (2006), Numerical Optimization, theorem 12.1 and section 12.3.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

FEASIBLE = 1e-9
"""Violation, relative to unit + |bound|, up to which a point counts as feasible."""

NEAR = 1e-6
"""Slack, relative to unit + |bound|, below which a bound may be active."""

MAX_RESTORING = 5
"""Newton steps onto the violated conditions."""


class Conditions(NamedTuple):
    """lower <= values(x) <= upper, elementwise; equal bounds make an equation.

    `values` maps x (p,) to (m,), `jacobian` to (m, p); `lower` and `upper` are (m,), infinite
    where there is none. `unit` (m,) is what is small next to none of their values; see `unit_of`.
    """

    values: Callable[[np.ndarray], np.ndarray]
    jacobian: Callable[[np.ndarray], np.ndarray]
    lower: np.ndarray
    upper: np.ndarray
    unit: np.ndarray | float = 1.0

    @property
    def scales(self) -> tuple[np.ndarray, np.ndarray]:
        """What tolerances at lower and upper bounds are relative to, each (m,)."""
        return self.unit + np.abs(self.lower), self.unit + np.abs(self.upper)


class Multipliers(NamedTuple):
    """What a gradient leaves at active conditions.

    `rows` are positions of the active conditions, (k,), `values` their multipliers ν (k,),
    `projected` the gradient without them, (p,): zero at a constrained maximum.
    """

    rows: np.ndarray
    values: np.ndarray
    projected: np.ndarray


def unit_of(*seen: np.ndarray) -> np.ndarray:
    """1, or the nearest number within a factor of ten of the largest of what is seen, finite."""
    finite = [np.where(np.isfinite(values), np.abs(values), 0.0) for values in seen]
    size = np.max(np.stack(finite), axis=0)
    return np.where(size > 0, np.clip(1.0, size / 10, 10 * size), 1.0)


def box(lower: np.ndarray, upper: np.ndarray, x: np.ndarray) -> Conditions:
    """Bounds (p,) on x itself, which is `x` (p,) at first."""
    unit = unit_of(lower, upper, x)
    return Conditions(lambda x: x, lambda x: np.eye(len(lower)), lower, upper, unit)


def joined(parts: Sequence[Conditions]) -> Conditions | None:
    """All of several conditions, one after the other; None if there are none."""
    if len(parts) < 2:
        return parts[0] if parts else None
    return Conditions(
        lambda x: np.concatenate([part.values(x) for part in parts]),
        lambda x: np.concatenate([part.jacobian(x) for part in parts]),
        np.concatenate([part.lower for part in parts]),
        np.concatenate([part.upper for part in parts]),
        np.concatenate([part.unit + np.zeros(len(part.lower)) for part in parts]),
    )


def violations(values: np.ndarray, conditions: Conditions) -> np.ndarray:
    """How far values (m,) are outside, next to unit + |bound|; zeros inside, infinite for NaN."""
    lower, upper = conditions.lower, conditions.upper
    low, high = conditions.scales
    with np.errstate(invalid="ignore"):
        below = np.where(np.isfinite(lower), (lower - values) / low, -np.inf)
        above = np.where(np.isfinite(upper), (values - upper) / high, -np.inf)
    return np.where(np.isfinite(values), np.maximum(np.maximum(below, above), 0.0), np.inf)


def is_feasible(x: np.ndarray, conditions: Conditions, tol: float = FEASIBLE) -> bool:
    """Whether all conditions hold at `x` (p,), up to `tol`."""
    return bool(np.all(violations(conditions.values(x), conditions) <= tol))


def sides(values: np.ndarray, conditions: Conditions, near: float = NEAR) -> np.ndarray:
    """-1 near or below a lower bound, 1 near or above an upper one, 2 equations, else 0; (m,)."""
    lower, upper = conditions.lower, conditions.upper
    below, above = conditions.scales
    with np.errstate(invalid="ignore"):
        low = np.isfinite(lower) & (values - lower <= near * below)
        high = np.isfinite(upper) & (upper - values <= near * above)
    found = np.where(low, -1, np.where(high, 1, 0))
    return np.where(lower == upper, 2, found)


def multipliers(gradient: np.ndarray, jacobian: np.ndarray, side: np.ndarray) -> Multipliers:
    """Multipliers of the right sign that leave the least of `gradient` (p,).

    Parameters
    ----------
    gradient
        Of the function that is maximised.
    jacobian
        Of the conditions, (m, p).
    side
        From `sides`, (m,).
    """
    from scipy.optimize import nnls

    rows = np.flatnonzero(side)
    signs = [(row, sign) for row in rows for sign in ((-1, 1) if side[row] == 2 else (side[row],))]
    if not signs or not np.all(np.isfinite(gradient)):
        return Multipliers(rows, np.zeros(len(rows)), gradient)
    matrix = np.stack([sign * jacobian[row] for row, sign in signs], axis=1)
    size = np.linalg.norm(matrix, axis=0)
    size = np.where(size > 0, size, 1.0)
    found = nnls(matrix / size, gradient)[0] / size
    values = np.zeros(len(side))
    for (row, sign), value in zip(signs, found, strict=True):
        values[row] += sign * value
    return Multipliers(rows, values[rows], gradient - matrix @ found)


def restored(x: np.ndarray, conditions: Conditions, onto: np.ndarray | int = 0) -> np.ndarray:
    """The nearest point, to first order, that satisfies violated conditions exactly.

    Parameters
    ----------
    x
        Nearly feasible, shape (p,).
    conditions
        What should hold.
    onto
        Sides (m,) of conditions that should hold as equations, even where there is slack.
    """
    for _ in range(MAX_RESTORING):
        values = conditions.values(x)
        if not np.all(np.isfinite(values)):
            return x
        side = sides(values, conditions, near=0.0)
        side = np.where(side == 0, onto, side)
        target = np.where(side == -1, conditions.lower, conditions.upper)
        rows = np.flatnonzero((side != 0) & (values != target))
        if not len(rows):
            return x
        step = np.linalg.lstsq(
            conditions.jacobian(x)[rows], target[rows] - values[rows], rcond=None
        )[0]
        if not np.all(np.isfinite(step)):
            return x
        x = x + step
    return x
