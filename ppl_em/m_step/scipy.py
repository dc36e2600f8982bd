"""M-steps by the maximisers of SciPy."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

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
    is_feasible,
    maximize,
)
from ppl_em.util import check_choice, check_options, mapping, number, optional, whole

WIDE, FINE = 1.0, 1e-3
"""Largest and smallest edges of a first simplex, on the unconstrained scale."""

PROBES = WIDE * 2.0 ** -np.arange(10)
"""Distances at which better values are looked for around what a simplex found."""

MAX_RESTARTS = 10
"""Of a simplex from a better value that was found so."""


@dataclass(frozen=True)
class Scipy:
    """A method of `scipy.optimize.minimize`, run on the host.

    SLSQP, trust-constr and COBYLA keep constraints on functions of the parameters; those,
    L-BFGS-B and Nelder-Mead bounds. Nelder-Mead and COBYLA need no gradient: a parameter may be a
    change-point, say. Their first simplex has edges of four times the last step of EM, at most 1;
    what they find is compared with points at distances of 1, 1/2, 1/4, ... along each parameter.

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

    def init(self, x: jax.Array) -> jax.Array:
        """Edges of the next simplex, a scalar."""
        return jax.device_put(np.asarray(WIDE, x.dtype))

    def search(
        self, function: Callable[[np.ndarray], Any], x: np.ndarray, state: jax.Array, limits: Region
    ) -> tuple[np.ndarray, jax.Array, MStepInfo]:
        """Raise the function from `x` (p,) within limits."""
        if self.with_gradient:
            found = self._maximum(function, x, limits, 500)
            promised, steps = found.promised, found.num_steps
        else:
            found = self._from_simplices(function, x, float(state), limits)
            promised, steps = found.promised, found.num_evaluations
            edges = np.clip(4 * np.max(np.abs(found.x - x), initial=0.0), FINE, WIDE)
            state = jax.device_put(np.asarray(edges, state.dtype))
        values = (found.start_value, found.value, found.gradient_norm, promised, steps)
        info = MStepInfo(*map(jax.device_put, np.array(values, state.dtype)))
        return found.x, state, info

    def _maximum(
        self, function: Callable, x: np.ndarray, limits: Region, steps: int, size: float = WIDE
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
            options=dict(self.options or {}),
        )

    def _from_simplices(
        self, function: Callable, x: np.ndarray, size: float, limits: Region
    ) -> HostMaximum:
        """A search, and another from each better value that is seen around the last one."""
        steps = 500 * x.size
        first = found = self._maximum(function, x, limits, steps, size)
        count = found.num_evaluations
        for _ in range(MAX_RESTARTS if self.max_steps is None else 0):
            better = _better_around(function, found, self.tol, limits)
            if better is None:
                break
            found = self._maximum(function, better, limits, steps)
            count += found.num_evaluations
        promised = 0.0 if math.isnan(found.promised) else found.promised
        return found._replace(
            start_value=first.start_value, promised=promised, num_evaluations=count
        )


@np.errstate(over="ignore")
def _better_around(
    function: Callable, found: HostMaximum, tol: float, limits: Region
) -> np.ndarray | None:
    """The best point along single coordinates, (p,), if it is better beyond rounding."""
    best, best_x = found.value + max(1e3 * np.finfo(float).eps * abs(found.value), tol), None
    for distance in PROBES:
        for step in distance * np.concatenate([np.eye(found.x.size), -np.eye(found.x.size)]):
            x = found.x + step
            if limits.bounds is not None:
                x = np.clip(x, *limits.bounds)
            if limits.conditions is not None and not is_feasible(x, limits.conditions):
                continue
            value = float(function(x))
            if np.isfinite(value) and value > best:
                best, best_x = value, x
    return best_x
