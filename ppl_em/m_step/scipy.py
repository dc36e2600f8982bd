"""M-steps by the maximisers of SciPy."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from ppl_em.m_step.base import MStepInfo, Region
from ppl_em.optimize import (
    DERIVATIVE_FREE,
    METHODS,
    SECOND_ORDER,
    TAKES_BOUNDS,
    TAKES_CONDITIONS,
    HostMaximum,
    hessian_on_host,
    is_feasible,
    maximize,
    units,
)
from ppl_em.util import check_choice, check_options, mapping, number, optional, whole

WIDE, FINE = 1.0, 1e-3
"""Largest and smallest edges of a first simplex, in units of each parameter."""

LEAST, MOST = 1e-3, 1e6
"""Changes of Q over the unit of a parameter: 1 on the unconstrained scale, or powers of ten."""

MAX_MEASURED = 300
"""Parameters up to which the curvature of Q along each says what its unit is."""

MAX_POWER = 12
"""Largest power."""

PROBES = WIDE * 2.0 ** -np.arange(10)
"""Distances at which better values are looked for around what a simplex found."""

MAX_RESTARTS = 10
"""Of a simplex from a better value that was found so."""


class Scales(NamedTuple):
    """Edges of the next simplex, a scalar, in the `unit` of each parameter, (p,); 0 if unknown."""

    edges: jax.Array | np.ndarray
    unit: jax.Array | np.ndarray


@dataclass(frozen=True)
class Scipy:
    """A method of `scipy.optimize.minimize`, run on the host.

    SLSQP, trust-constr and COBYLA keep constraints on functions of the parameters; those,
    L-BFGS-B and Nelder-Mead bounds. Nelder-Mead and COBYLA need no gradient: a parameter may be a
    change-point, say. Their first simplex has edges of four times the last step of EM, at most 1;
    what they find is compared with points at distances of 1, 1/2, 1/4, ... along each parameter.
    These are on the unconstrained scale, or in powers of ten of it where a parameter's unit is far
    from 1.

    Attributes
    ----------
    method
        `"L-BFGS-B"`, `"SLSQP"`, `"trust-constr"`, `"BFGS"`, `"Nelder-Mead"` or `"COBYLA"`.
    max_steps
        Iterations per M-step; None for 500, or 500 per parameter if derivative-free.
    tol
        Stop once a step promises to raise Q by less than this.
    options
        Passed on to SciPy, over those that are chosen here.

    Examples
    --------
    >>> from ppl_em.m_step import Scipy
    >>> Scipy("Nelder-Mead", max_steps=200).honours
    ('bounds', 'rough')
    """

    method: str = "L-BFGS-B"
    max_steps: int | None = field(default=None, kw_only=True)
    tol: float = field(default=1e-13, kw_only=True)
    options: Mapping[str, Any] | None = field(default=None, kw_only=True, hash=False)

    stand_alone: ClassVar[tuple[str, ...]] = tuple(m for m in METHODS if m not in SECOND_ORDER)

    def __post_init__(self) -> None:
        check_choice("Scipy(method=...)", self.method, self.stand_alone)
        check_options(
            self,
            "Scipy",
            max_steps=optional(whole()),
            tol=number(),
            options=optional(mapping("a dictionary of SciPy's options")),
        )

    @property
    def honours(self) -> tuple[str, ...]:
        """Bounds and conditions by the method; parameters without gradient if derivative-free."""
        return tuple(
            need
            for need, methods in (
                ("bounds", TAKES_BOUNDS),
                ("conditions", TAKES_CONDITIONS),
                ("rough", DERIVATIVE_FREE),
            )
            if self.method in methods
        )

    @property
    def with_gradient(self) -> bool:
        """Whether gradients are used."""
        return self.method not in DERIVATIVE_FREE

    def resolve(self, size: int, needs: tuple[str, ...] = ()) -> "Scipy":
        """Works for any number of parameters."""
        return self

    def init(self, x: jax.Array) -> Scales:
        """A wide simplex, in units that are not known yet."""
        return jax.device_put(Scales(np.asarray(WIDE, x.dtype), np.zeros(x.size, x.dtype)))

    def search(
        self, function: Callable[[np.ndarray], Any], x: np.ndarray, state: Scales, limits: Region
    ) -> tuple[np.ndarray, Scales, MStepInfo]:
        """Raise the function from `x` (p,) within limits."""
        dtype = state.edges.dtype
        if self.with_gradient:
            unit = np.asarray(state.unit, float)
            unit = unit if np.all(unit) else _curvature_units(function, x)
            found = self._maximum(function, x, limits, 500, unit=unit)
            state = jax.device_put(state._replace(unit=np.asarray(unit, dtype)))
            promised, steps = found.promised, found.num_steps
        else:
            unit = np.asarray(state.unit, float)
            unit = unit if np.all(unit) else _units(function, x)
            found = self._from_simplices(function, x, float(state.edges), unit, limits)
            promised, steps = found.promised, found.num_evaluations
            edges = np.clip(4 * np.max(np.abs(found.x - x) / unit, initial=0.0), FINE, WIDE)
            state = jax.device_put(Scales(*(np.asarray(a, dtype) for a in (edges, unit))))
        values = (found.start_value, found.value, found.gradient_norm, promised, steps)
        info = MStepInfo(*map(jax.device_put, np.array(values, dtype)))
        return found.x, state, info

    def _maximum(
        self,
        function: Callable,
        x: np.ndarray,
        limits: Region,
        steps: int,
        size: float = WIDE,
        unit: np.ndarray | float = 1.0,
    ) -> HostMaximum:
        return maximize(
            function,
            x,
            self.method,
            max_steps=self.max_steps or steps,
            tol=self.tol,
            bounds=limits.bounds,
            conditions=limits.conditions,
            size=size,
            unit=unit,
            options=dict(self.options or {}),
        )

    def _from_simplices(
        self, function: Callable, x: np.ndarray, size: float, unit: np.ndarray, limits: Region
    ) -> HostMaximum:
        """A search, and another from each better value that is seen around the last one."""
        steps = 500 * x.size
        first = found = self._maximum(function, x, limits, steps, size, unit)
        count = found.num_evaluations
        for _ in range(MAX_RESTARTS if self.max_steps is None else 0):
            better = _better_around(function, found, self.tol, unit, limits)
            if better is None:
                break
            found = self._maximum(function, better, limits, steps, unit=unit)
            count += found.num_evaluations
        promised = 0.0 if math.isnan(found.promised) else found.promised
        return found._replace(
            start_value=first.start_value, promised=promised, num_evaluations=count
        )


@np.errstate(over="ignore")
def _better_around(
    function: Callable, found: HostMaximum, tol: float, unit: np.ndarray, limits: Region
) -> np.ndarray | None:
    """The best point along single coordinates, (p,), if it is better beyond rounding."""
    best, best_x = found.value + max(1e3 * np.finfo(float).eps * abs(found.value), tol), None
    for distance in PROBES:
        for step in distance * np.concatenate([np.diag(unit), -np.diag(unit)]):
            x = found.x + step
            if limits.bounds is not None:
                x = np.clip(x, *limits.bounds)
            if limits.conditions is not None and not is_feasible(x, limits.conditions):
                continue
            value = float(function(x))
            if np.isfinite(value) and value > best:
                best, best_x = value, x
    return best_x


def _curvature_units(function: Callable, x: np.ndarray) -> np.ndarray:
    """Lengths (p,) over which the slope of the function changes by one over them."""
    if x.size > MAX_MEASURED:
        return np.ones(x.size)

    def gradients(points: np.ndarray) -> np.ndarray:
        return np.array([np.asarray(function(point)[1], float) for point in points])

    return units(np.diag(hessian_on_host(gradients, x)[0]), x)


@np.errstate(over="ignore")
def _units(function: Callable, x: np.ndarray) -> np.ndarray:
    """Lengths (p,) over which the function changes by something, but not by very much."""
    here, unit = float(function(x)), np.ones(x.size)

    def change(place: int, length: float) -> float:
        step = np.where(np.arange(x.size) == place, length, 0.0)
        found = [abs(float(function(x + sign * step)) - here) for sign in (-1, 1)]
        return max(found) if np.all(np.isfinite(found)) else np.inf

    for place in range(x.size):
        first = change(place, 1.0)
        towards = -1 if first > MOST else 1
        for power in range(MAX_POWER + 1) if not LEAST <= first <= MOST else ():
            length = 10.0 ** (towards * power)
            if LEAST <= change(place, length) <= MOST:
                unit[place] = length
                break
    return unit
