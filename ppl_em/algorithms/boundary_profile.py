"""The log-likelihood as a landscape: followed to bounds, climbed with some coordinates held."""

from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ppl_em.algorithms.ascent import MAX_LENGTH, Model, Point, ascend
from ppl_em.algorithms.stopping import rounding
from ppl_em.e_step import DeterministicEStep, expectation
from ppl_em.likelihood import holding, marginal_information
from ppl_em.params import Boundary
from ppl_em.problem import Problem

DECADE = float(np.log(10.0))
"""Unconstrained change that divides a distance from a bound by ten."""

MAX_DECADES = 14
"""How much closer to a bound a parameter is put, at most."""

MAX_LOSS = 10.0
"""Log-likelihood that may be lost on the way there, before the other parameters adapt."""

SETTLED = 3e-9
"""Change of the log-likelihood over a decade at which the bound is as good as reached.

No smaller: a latent with a standard deviation of tau has scores with rounding errors of 1 / tau^2.
"""

IN_ROUNDING = 1e-5
"""The same where it does not shrink any more, which is rounding: at a correlation of 1, say."""

NEAR = 1e-8
"""Gain that a Newton step promises from which it is the last one."""

VISIBLE = 1e-5
"""Fall of the log-likelihood that the score at a bound is read from."""

MAX_NEWTON = 20
"""Newton steps in the other parameters."""


@dataclass(frozen=True)
class Landscape:
    """The log-likelihood as a landscape."""

    problem: Problem
    e_step: DeterministicEStep

    def look(self, x: jax.Array, state: Any) -> tuple[float, Any]:
        """Its value at `x` (p,), and the state of an E-step there.

        Twice, because rounding is large where the latents are expanded far from their mean, in
        units of a standard deviation that is nearly zero.
        """
        for _ in range(2):
            _, state, info = expectation(self.e_step, self.problem, x, state)
        return float(info.objective), state

    def floor(self, value: float) -> float:
        """Differences that mean nothing."""
        dtype = self.problem.start.dtype
        return max(self.e_step.noise or 0.0, 10 * rounding(value, dtype))

    def descend(
        self, x: jax.Array, state: Any, value: float, step: np.ndarray
    ) -> tuple[jax.Array, Any, float] | None:
        """Follow `step` (p,), a decade towards bounds, until nothing changes; None if it falls."""
        start, last, here = value, np.inf, (x, state, value)
        earlier = here
        for _ in range(MAX_DECADES):
            x = here[0] + jnp.asarray(step, x.dtype)
            value, state = self.look(x, here[1])
            if not value >= start - MAX_LOSS:
                return None
            change = abs(value - here[2])
            if change <= max(SETTLED, self.floor(value)):
                return here
            if last / 2 < change < IN_ROUNDING:
                return earlier
            earlier, here, last = here, (x, state, value), change
        return None

    def maximize(
        self, x: jax.Array, state: Any, value: float, held: np.ndarray
    ) -> tuple[list[Point], bool]:
        """Newton steps with coordinates `held` (p,) as they are, and whether they converged."""
        terrain = _Inside(self, held)
        path = [Point(x, state, value, terrain.model_at(x, state))]
        for here in islice(ascend(terrain, path[0]), MAX_NEWTON):
            last = path[-1].model
            path.append(here)
            if last is not None and last.promised < NEAR:
                return path, True
        end = path[-1].model
        return path, len(path) <= MAX_NEWTON and end is not None and end.promised < NEAR

    def slope(
        self, x: jax.Array, state: Any, value: float, place: int, side: int, bound: float
    ) -> Boundary | None:
        """How the log-likelihood falls from a bound, inwards; None if it rises, or stays.

        Coordinate `place` of `x` (p,) is at the bound, in effect. It is moved away until there is
        a difference well above rounding, and once more to see to which power it grows.
        """
        nearer, _ = self.look(x.at[place].add(side * DECADE), state)
        noise = max(100 * self.floor(value), 10 * abs(nearer - value))
        start = abs(self._value(x, place) - bound)
        changes: list[tuple[float, float]] = []
        for count in range(1, 4 * MAX_DECADES):
            away = x.at[place].add(-side * count * DECADE / 2)
            new, state = self.look(away, state)
            if not new - value < noise:
                return None
            if value - new > max(VISIBLE, 30 * noise) or changes:
                changes.append((abs(self._value(away, place) - bound), new - value))
            if len(changes) == 2:
                break
        else:
            return None
        (near, first), (far, second) = changes
        if second >= first:
            return None
        power = max(1, round(np.log(second / first) / np.log(far / near)))
        return Boundary(float(bound), float(first / (near**power - start**power)), power)

    def _value(self, x: jax.Array, place: int) -> float:
        """The parameter that coordinate `place` of `x` (p,) alone belongs to, on its own scale."""
        space = self.problem.space
        values, marks = space.constrain(x), space.unravel(np.arange(x.size) == place)
        for name, mark in marks.items():
            if np.any(ravel_pytree(mark)[0]):
                pairs = zip(jax.tree.leaves(values[name]), jax.tree.leaves(mark), strict=True)
                return float(sum(jnp.sum(jnp.where(m, leaf, 0.0)) for leaf, m in pairs))
        raise ValueError(f"no parameter has coordinate {place}")


@dataclass(frozen=True)
class _Inside:
    """The landscape with coordinates `held` (p,) in place."""

    ground: Landscape
    held: np.ndarray

    def at(self, x: jax.Array, state: Any) -> tuple[float, Any]:
        return self.ground.look(x, state)

    def floor(self, value: float) -> float:
        return self.ground.floor(value)

    def move(self, here: Point, step: np.ndarray) -> jax.Array:
        return here.x + jnp.asarray(step, here.x.dtype)

    def model(self, x: jax.Array, state: Any, before: Point, taken: np.ndarray) -> Model | None:
        return self.model_at(x, state)

    def model_at(self, x: jax.Array, state: Any) -> Model | None:
        """By the Hessian. Coordinates to which nothing responds stay as well.

        A correlation, for example, where a variance is zero.
        """
        problem = self.ground.problem
        here = marginal_information(self.ground.e_step, problem, x, state)
        free = np.outer(~self.held, ~self.held)
        here = replace(
            here,
            gradient=np.where(self.held, 0.0, here.gradient),
            matrix=np.where(free, here.matrix, 0.0),
        )
        response = np.abs(np.diag(here.matrix)) + np.abs(here.gradient)
        still = self.held | ~(response > 1e-9 * (1 + np.max(np.abs(np.diag(here.matrix)))))
        if still.any() and np.all(np.isfinite(here.matrix)):
            here = holding(problem, x, here, np.eye(len(still))[:, still])
        step, promised = here.uphill(MAX_LENGTH)
        return Model(step, promised) if np.isfinite(promised) else None
