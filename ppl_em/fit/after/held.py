"""The log-likelihood with one scalar parameter held, all others at their best."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ppl_em.e_step import DeterministicEStep, expectation
from ppl_em.likelihood import complement, flat_and_jacobian, frame, marginal_information
from ppl_em.params import has_end
from ppl_em.problem import Problem

MAX_STEPS = 60
"""Newton steps to the best values of the others."""

LONGEST = 3.0
"""Their length, at most, in units in which the information has a unit diagonal."""

WIDEST = 2.0
"""How far a coordinate with an end may go at once: towards its end it is flat."""

SMALL = 1e-8
"""Gain, in nats, below which the others are at their best."""

ON = 1e-10
"""Relative distance of the parameter from where it is held, below which it is there."""

DIGITS = 30.0
"""Rounding units that such distances, and changes of the log-likelihood, may be made of."""

SHORTEST = 1e-6
"""Share of a step below which it is given up."""


class Scale(NamedTuple):
    """A parameter on a scale without bounds: as it is, the log or the logit."""

    low: float
    high: float

    def to(self, value: float) -> float:
        """From the model's own scale."""
        with np.errstate(divide="ignore"):
            below, above = np.log(value - self.low), np.log(self.high - value)
        if np.isfinite(self.low):
            return float(below - above if np.isfinite(self.high) else below)
        return float(-above) if np.isfinite(self.high) else value

    def back(self, t: float) -> float:
        """To the model's own scale."""
        if np.isfinite(self.low) and np.isfinite(self.high):
            return float(self.low + (self.high - self.low) / (1 + np.exp(-t)))
        if np.isfinite(self.low):
            return float(self.low + np.exp(t))
        return float(self.high - np.exp(-t)) if np.isfinite(self.high) else t

    def slope(self, value: float) -> float:
        """Derivative of `to` at a value."""
        if np.isinf(self.low) and np.isinf(self.high):
            return 1.0
        return 1 / (value - self.low) + 1 / (self.high - value)


class Place(NamedTuple):
    """The parameter at `t` on its scale, the others at their best: `x` (p,) and the value."""

    t: float
    x: np.ndarray
    value: float


@dataclass(frozen=True, eq=False)
class Held:
    """One scalar among all flattened parameters, to be held.

    Attributes
    ----------
    problem, e_step, state
        What the log-likelihood is of.
    index, label
        Which one.
    scale
        Its scale without bounds.
    normals
        (p, r), across which nothing moves; None for none.
    """

    problem: Problem
    e_step: DeterministicEStep
    state: Any
    index: int
    label: str
    scale: Scale
    normals: np.ndarray | None

    def best(self, start: np.ndarray, t: float) -> Place | None:
        """The best place with the parameter at `t`, from near it; None if none is found.

        Newton steps in the null space of the parameter's gradient, after one to where it is `t`.
        """
        x, value = np.asarray(start, float), -np.inf
        for _ in range(MAX_STEPS):
            found = self._step(x, t)
            if found is None:
                return None
            step, gap, promised = found
            on = abs(gap) < max(ON, DIGITS * self.eps) * (1 + abs(t))
            if on and promised < max(SMALL, self.rounding(value)):
                return Place(t, x, self.value(x))
            share = 1.0
            there, new = x + step, self.value(x + step)
            lowest = value - self.rounding(value) if on else -np.inf
            while not (np.isfinite(new) and new >= lowest):
                share /= 4
                if share < SHORTEST:
                    return Place(t, x, value) if on and np.isfinite(value) else None
                there = x + share * step
                new = self.value(there)
            x, value = there, new
        return None

    @property
    def eps(self) -> float:
        """The rounding unit."""
        return float(np.finfo(self.problem.start.dtype).eps)

    def rounding(self, value: float) -> float:
        """Changes of log-likelihoods of this size that mean nothing."""
        return DIGITS * self.eps * (1 + abs(value)) if np.isfinite(value) else 0.0

    def value(self, x: np.ndarray) -> float:
        """The log-likelihood at `x` (p,)."""
        here = jnp.asarray(x, self.problem.start.dtype)
        return float(expectation(self.e_step, self.problem, here, self.state)[2].objective)

    def _step(self, x: np.ndarray, t: float) -> tuple[np.ndarray, float, float] | None:
        """The next step (p,), how far the parameter is from `t`, and the gain along the surface."""
        here = jnp.asarray(x, self.problem.start.dtype)
        flat, jacobian = (np.asarray(part, float) for part in flat_and_jacobian(self.problem, here))
        own = float(flat[self.index])
        gap = t - self.scale.to(own)
        found = marginal_information(self.e_step, self.problem, here, self.state)
        if not (np.all(np.isfinite(found.matrix)) and np.all(np.isfinite(found.gradient))):
            return None
        basis = frame(found.matrix, self.normals)
        slope = basis.T @ (jacobian[self.index] * self.scale.slope(own))
        size = float(slope @ slope)
        if not (np.isfinite(size) and size > 0):
            return None
        matrix, gradient = basis.T @ found.matrix @ basis, basis.T @ found.gradient
        across = slope * gap / size
        rest = complement((slope / np.sqrt(size))[:, None])
        values, vectors = np.linalg.eigh(rest.T @ matrix @ rest)
        wanted = vectors.T @ (rest.T @ (gradient - matrix @ across))
        along = wanted / np.maximum(np.abs(values), 1e-8)
        promised = 0.5 * float(wanted @ along)
        along *= min(1.0, LONGEST / max(float(np.linalg.norm(along)), 1e-300))
        step = basis @ (rest @ (vectors @ along))
        bounded = has_end(self.problem.space)
        step *= min(1.0, WIDEST / max(float(np.max(np.abs(step[bounded]), initial=0.0)), 1e-300))
        return basis @ across + step, gap, promised
