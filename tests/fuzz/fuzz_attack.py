"""An independent optimiser that tries to improve a fit, near the fit alone."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from fuzz_scenarios import KINDS
from scipy.optimize import minimize

Params = dict[str, np.ndarray]

REACH = 3.0
"""Half the width of the box that a round may search, in about standard errors."""

BARRIER = 0.05
"""Nats lost on the straight way: what lies behind is another maximum, and no fault of the fit."""

LOW = -1e300


class Attack(NamedTuple):
    """The log-likelihood of the fit, the best found beside it, and where that is."""

    fitted: float
    best: float
    where: Params

    @property
    def gain(self) -> float:
        """Nats that the fit missed."""
        return self.best - self.fitted


class Coordinates:
    """Free coordinates that reach the boundaries: absolute values, sines and their squares."""

    def __init__(self, params: Params) -> None:
        self.shapes = {name: np.shape(value) for name, value in params.items()}
        parts = [self._free(name, np.asarray(value, float)) for name, value in params.items()]
        self.sizes = [part.size for part in parts]
        self.start = np.concatenate([part.ravel() for part in parts])

    def _free(self, name: str, value: np.ndarray) -> np.ndarray:
        kind = KINDS.get(name, "positive")
        if kind == "correlation":
            return np.arcsin(np.clip(value, -1, 1))
        if kind == "simplex":  # of two
            return np.arctan2(np.sqrt(value[..., 0]), np.sqrt(value[..., 1]))
        return value

    def params(self, free: np.ndarray) -> Params:
        """Parameters at free coordinates."""
        found, parts = {}, np.split(free, np.cumsum(self.sizes)[:-1])
        for (name, shape), part in zip(self.shapes.items(), parts, strict=True):
            kind = KINDS.get(name, "positive")
            if kind == "simplex":
                value = np.stack([np.sin(part) ** 2, np.cos(part) ** 2], axis=-1)
            else:
                value = {"correlation": np.sin, "positive": np.abs, "real": np.asarray}[kind](part)
            found[name] = value.reshape(shape)
        return found


def widths(value: Callable[[np.ndarray], float], start: np.ndarray) -> np.ndarray:
    """Steps that lose about half a nat, coordinate by coordinate."""
    here, found = value(start), np.empty(len(start))
    for j in range(len(start)):
        step = 0.1 * abs(start[j]) or 0.1
        for _ in range(80):
            moved = start.copy()
            moved[j] += step
            lost = here - value(moved)
            if 0.1 < abs(lost) < 2:
                break
            step *= 2.0 if abs(lost) <= 0.1 else 0.5
        found[j] = min(step, 1e3 * max(abs(start[j]), 1.0))
    return found


def whitened(value: Callable[[np.ndarray], float], start: np.ndarray) -> np.ndarray:
    """Columns that lose about half a nat each, without correlation: (p, p)."""
    scale = widths(value, start)
    p, h = len(start), 0.1
    eye = np.eye(p) * h

    def at(step: np.ndarray) -> float:
        return value(start + scale * step)

    here, bend = at(np.zeros(p)), np.empty((p, p))
    for i in range(p):
        bend[i, i] = (2 * here - at(eye[i]) - at(-eye[i])) / h**2
        for j in range(i):
            cross = at(eye[i] + eye[j]) - at(eye[i] - eye[j])
            cross -= at(eye[j] - eye[i]) - at(-eye[i] - eye[j])
            bend[i, j] = bend[j, i] = -cross / (4 * h**2)
    if not np.isfinite(bend).all():
        return np.diag(scale)
    size, axes = np.linalg.eigh(bend)
    return scale[:, None] * axes / np.sqrt(np.clip(np.abs(size), 1e-6, None))


def attacked(log_likelihood: Callable[[Params], float], params: Params, seed: int) -> Attack:
    """Climb from the fit and from points up to a standard error away from it."""
    coordinates, rng = Coordinates(params), np.random.default_rng(seed)

    def value(free: np.ndarray) -> float:
        with np.errstate(all="ignore"):
            try:
                found = log_likelihood(coordinates.params(free))
            except (ArithmeticError, ValueError, np.linalg.LinAlgError):
                return LOW
        return found if np.isfinite(found) else LOW

    with np.errstate(all="ignore"):
        fitted = log_likelihood(params)
    at, best = coordinates.start, value(coordinates.start)
    for _ in range(3):  # rounds: a climb may start anew where the last one ended
        columns, before = whitened(value, at), best
        at, best = _round(value, at, best, columns, rng)
        if best < before + 1e-5:
            break
    return Attack(fitted, best, coordinates.params(at))


def _round(
    value: Callable[[np.ndarray], float],
    centre: np.ndarray,
    height: float,
    columns: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, float]:
    """The highest point found in a box around `centre` that a straight climb leads to."""
    p, best, at = len(centre), height, centre

    def loss(step: np.ndarray) -> float:
        return height - value(centre + columns @ step)

    def slope(step: np.ndarray) -> np.ndarray:
        h = 1e-4
        moves = h * np.eye(p)
        return np.array([loss(step + m) - loss(step - m) for m in moves]) / (2 * h)

    def reached(step: np.ndarray) -> bool:
        return all(loss(t * step) < BARRIER for t in np.linspace(0.1, 0.9, 9))

    starts = [np.zeros(p), *(rng.normal(size=(2, p)) * [[0.1], [0.5]])]
    box = [(-REACH, REACH)] * p
    ends = [
        minimize(loss, s, jac=slope, method="L-BFGS-B", bounds=box, options={"maxiter": 30}).x
        for s in starts
    ]
    simplex = np.vstack([np.zeros(p), 0.3 * np.eye(p)])
    options = {"maxfev": 30 * p, "initial_simplex": simplex}
    ends.append(minimize(loss, np.zeros(p), method="Nelder-Mead", options=options).x)
    for step in ends:
        found = height - loss(step)
        if found > best and (found < height + 1e-5 or reached(step)):
            at, best = centre + columns @ step, found
    return at, best
