"""Maximisers of SciPy for functions that are compiled, run on the host."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ppl_em.optimize.kkt import Conditions, box, joined
from ppl_em.optimize.recorded_function import Function, RecordedFunction

DERIVATIVE_FREE = ("Nelder-Mead", "COBYLA")
SECOND_ORDER = ("trust-exact",)
METHODS = ("BFGS", "L-BFGS-B", "SLSQP", "trust-constr", *DERIVATIVE_FREE, *SECOND_ORDER)
"""Names as in `scipy.optimize.minimize`."""

TAKES_BOUNDS = ("L-BFGS-B", "SLSQP", "trust-constr", *DERIVATIVE_FREE)
TAKES_CONDITIONS = ("SLSQP", "trust-constr", "COBYLA")
TAKES = {"bounds": TAKES_BOUNDS, "conditions": TAKES_CONDITIONS, "rough": DERIVATIVE_FREE}
"""By what a problem may need: bounds, conditions, or to do without a gradient."""

CHATTER = ("delta_grad == 0.0", "Values in x were outside bounds", "Singular Jacobian matrix")
"""Warnings of SciPy about points on its way; what matters is the point that is returned."""


class HostMaximum(NamedTuple):
    """The best feasible point that was seen.

    Attributes
    ----------
    x
        The point, shape (p,).
    value, start_value
        The function there, and where the search began.
    gradient_norm
        Of the gradient without what active conditions hold against; NaN if derivative-free.
    promised
        What another step would gain, by the secants of the last ones; if derivative-free, how
        much the last simplex or the last step still differed.
    num_steps, num_evaluations
        Accepted steps, and points at which the function was evaluated.
    multipliers
        df*/d(bound) of every condition and then, where there are bounds, of every coordinate:
        (m,) or (m + p,); negative at a lower bound, positive at an upper one, 0 if not active.
    message
        Why the search ended.
    """

    x: np.ndarray
    value: float
    start_value: float
    gradient_norm: float
    promised: float
    num_steps: int
    num_evaluations: int
    multipliers: np.ndarray
    message: str


class _Enough(Exception):
    """Ends a search that has nothing more to gain."""


@np.errstate(over="ignore", invalid="ignore")  # an unbounded function climbs until it overflows
def maximize(
    function: Function,
    x: np.ndarray,
    method: str,
    *,
    max_steps: int,
    tol: float,
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
    conditions: Conditions | None = None,
    hessian: Callable[[np.ndarray], np.ndarray] | None = None,
    inverse_hessian: np.ndarray | None = None,
    size: float = 0.5,
    unit: np.ndarray | float = 1.0,
    options: dict[str, Any] | None = None,
    callback: Callable[[np.ndarray, float], None] | None = None,
) -> HostMaximum:
    """Maximise a function of a vector by a method of `scipy.optimize.minimize`.

    Parameters
    ----------
    function
        See `Function`; usually compiled. Values that are not finite count as very low.
    x
        Start, shape (p,). From one that is feasible the value never falls.
    method
        One of `METHODS`.
    max_steps
        At most so many iterations.
    tol
        Stop once another step promises to gain less than this, or less than rounding.
    bounds
        Lower and upper bounds on x, each (p,), infinite where there is none.
    conditions
        On functions of x.
    hessian
        Of the function, x to (p, p), for the methods in `SECOND_ORDER` and trust-constr.
    inverse_hessian
        BFGS: what to assume at first of the inverse of minus the Hessian, (p, p).
    size
        Derivative-free: edges of the first simplex, in units.
    unit
        Of each coordinate, (p,), in which the method works.
    options
        For SciPy, over those chosen here.
    callback
        Called with x and value after each accepted step.

    Raises
    ------
    ValueError
        If the method does not take bounds or conditions that are given, or needs a Hessian.
    """
    from scipy.optimize import minimize

    _check(method, bounds, conditions, hessian)
    if bounds is not None:
        x = np.clip(x, *bounds)
    parts = [] if conditions is None else [conditions]
    everything = joined([*parts, *([] if bounds is None else [box(*bounds, x)])])
    recorded = RecordedFunction(function, everything, method not in DERIVATIVE_FREE)
    x = np.array(x, dtype=float)
    start_value = recorded.at(x)[0]
    if not np.isfinite(start_value):
        return _stuck(recorded, x)
    recorded.record(x)

    scale = recorded.scale = np.broadcast_to(unit, x.shape)

    def back(z: np.ndarray) -> np.ndarray:
        return np.asarray(z) * scale

    def after(z: np.ndarray, *_: Any) -> None:
        point = back(z)
        recorded.record(point)
        value = recorded.at(point)[0]
        if not np.isfinite(value):
            return
        if callback is not None:
            callback(np.array(point), value)
        floor = max(tol, np.finfo(float).eps * abs(value))
        ends = method not in DERIVATIVE_FREE and recorded.is_allowed(point)
        if ends and recorded.promised(point) <= floor:
            raise _Enough

    arguments = _arguments(method, bounds, conditions, hessian, scale)
    if method not in DERIVATIVE_FREE:
        arguments["jac"] = lambda z: recorded.slope(back(z)) * scale
    if inverse_hessian is not None:
        inverse_hessian = inverse_hessian / np.outer(scale, scale)
    settings = _settings(method, x / scale, max_steps, tol, size, start_value, inverse_hessian)
    spread = np.nan
    try:
        with warnings.catch_warnings():
            for text in CHATTER:
                warnings.filterwarnings("ignore", text)
            found = minimize(
                lambda z: recorded.loss(back(z)),
                x / scale,
                callback=after,
                options={**settings, **(options or {})},
                **arguments,
            )
        last, message = back(found.x), str(found.message)
        if "final_simplex" in found:
            spread = float(np.ptp(np.asarray(found.final_simplex[1])))
    except _Enough:
        last, message = recorded.points[-1][0], "another step would gain less than the tolerance"
    recorded.repair(last)
    return _summary(recorded, x, start_value, spread, message)


def _check(method: str, bounds: Any, conditions: Any, hessian: Any) -> None:
    for given, takers, what in (
        (bounds, TAKES_BOUNDS, "bounds"),
        (conditions, TAKES_CONDITIONS, "conditions"),
    ):
        if given is not None and method not in takers:
            raise ValueError(f"{method} does not take {what}; these do: {', '.join(takers)}")
    if method not in METHODS:
        raise ValueError(f"found method {method!r}; valid are {', '.join(METHODS)}")
    if method in SECOND_ORDER and hessian is None:
        raise ValueError(f"{method} needs a Hessian")


def _arguments(
    method: str, bounds: Any, conditions: Conditions | None, hessian: Any, scale: np.ndarray
) -> dict:
    from scipy.optimize import Bounds, NonlinearConstraint

    arguments: dict[str, Any] = {"method": method}
    if hessian is not None and method in (*SECOND_ORDER, "trust-constr"):
        both = np.outer(scale, scale)
        arguments["hess"] = lambda z: -np.asarray(hessian(z * scale), dtype=float) * both
    if bounds is not None:
        within = [bound / scale for bound in bounds]
        arguments["bounds"] = Bounds(*within, keep_feasible=method == "trust-constr")
    if conditions is not None:
        unit = np.broadcast_to(conditions.unit, np.shape(conditions.lower))
        arguments["constraints"] = NonlinearConstraint(
            lambda z: conditions.values(z * scale) / conditions.unit,
            conditions.lower / conditions.unit,
            conditions.upper / conditions.unit,
            jac=lambda z: conditions.jacobian(z * scale) * scale / np.c_[unit],
        )
    return arguments


def _settings(
    method: str,
    x: np.ndarray,
    max_steps: int,
    tol: float,
    size: float,
    value: float,
    inverse_hessian: np.ndarray | None,
) -> dict[str, Any]:
    """Options under which SciPy's own rules stop at rounding only: `tol` is looked at here."""
    floor = max(tol, np.finfo(float).eps * abs(value))
    if method == "Nelder-Mead":
        simplex = np.vstack([x, x + size * np.eye(len(x))])
        return {
            "maxiter": max_steps,
            "maxfev": np.inf,
            "xatol": 1e-9,
            "fatol": floor,
            "initial_simplex": simplex,
            "adaptive": len(x) > 4,
        }
    if method == "COBYLA":
        return {"maxiter": max_steps, "rhobeg": size, "tol": 1e-9, "catol": 1e-9}
    settings: dict[str, Any] = {"maxiter": max_steps}
    if method == "SLSQP":
        return settings | {"ftol": 1e-16}
    if method == "L-BFGS-B":
        return settings | {"ftol": 0.0, "gtol": 0.0, "maxcor": 20, "maxfun": 100 * max_steps}
    if method == "trust-constr":
        return settings | {"gtol": 1e-12, "xtol": 1e-14, "barrier_tol": 1e-12}
    settings["gtol"] = 0.0
    if inverse_hessian is not None and method == "BFGS":
        settings["hess_inv0"] = (inverse_hessian + inverse_hessian.T) / 2
    return settings


def _stuck(recorded: RecordedFunction, x: np.ndarray) -> HostMaximum:
    size = 0 if recorded.conditions is None else len(recorded.conditions.lower)
    text = "the function, or its gradient, is not finite at the start"
    return HostMaximum(x, -np.inf, -np.inf, np.nan, np.nan, 0, 1, np.zeros(size), text)


def _summary(
    recorded: RecordedFunction, x: np.ndarray, start_value: float, spread: float, message: str
) -> HostMaximum:
    if recorded.best_x is not None:
        x = recorded.best_x
    value, held = recorded.at(x)[0], recorded.held(x)
    every = np.zeros(0 if recorded.conditions is None else len(recorded.conditions.lower))
    every[held.rows] = held.values
    norm, promised = np.nan, spread
    if recorded.with_gradient:
        norm, promised = float(np.linalg.norm(held.projected)), recorded.promised(x)
    count = len(recorded.seen)
    return HostMaximum(
        x, value, start_value, norm, promised, recorded.num_steps, count, every, message
    )
