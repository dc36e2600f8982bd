"""Maxima at a bound of the parameters: seen from afar, gone to, and proved.

EM only creeps towards a variance of zero: its step is proportional to the variance itself. Here
a parameter that drifts towards a bound is put so close to it that the log-likelihood is that of
the bound, the others are maximised there by Newton's method, and the log-likelihood a little way
inside says whether it falls from the bound: the sign of the score in the variance, say, whether the
model is written with a variance or its root. Where it rises, or where the place is not at least
as high as EM has got, the parameter is not at its bound and EM goes on.

References
----------
Self & Liang (1987), Journal of the American Statistical Association 82, for likelihood ratios at
a boundary.
"""

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ppl_em.e_step import DeterministicEStep, expectation, noise_of
from ppl_em.ends import AtBounds, Boundary, ends
from ppl_em.information import marginal_information
from ppl_em.params import flat_labels
from ppl_em.problem import Problem
from ppl_em.stopping import Step, Stopping, rounding

logger = logging.getLogger("ppl_em")

KINDS = ("exact", "quadrature", "laplace")
"""What is looked at: log-likelihoods, not bounds or estimates."""

WINDOW = 4
"""Steps that must all lead towards a bound."""

MOVING = 1e-4
"""Least change of the unconstrained value in each of them."""

SLOW = 0.01
"""Gain of a step below which bounds are looked at."""

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

ROUGH = 1e-5
"""The same where it does not shrink any more, which is rounding: at a correlation of 1, say."""

NEAR = 1e-8
"""Gain that a Newton step promises from which it is the last one."""

VISIBLE = 1e-5
"""Fall of the log-likelihood that the score at a bound is read from."""

MAX_NEWTON = 20
"""Newton steps in the other parameters."""

MAX_LENGTH = 3.0
"""Longest of them, in standard errors."""

MAX_ROUNDS = 4
"""Changes of mind about which parameters are at a bound."""


class Jump(NamedTuple):
    """A maximum at a bound.

    `x` (p,) is inside by a distance that does not matter, `state` that of the E-step there and
    `value` its log-likelihood; `at` says which parameters are at one.
    """

    x: jax.Array
    state: Any
    value: float
    at: AtBounds


@dataclass
class Watch:
    """Notices parameters on their way to a bound; `x` (p,) is where the run is."""

    problem: Problem
    e_step: Any
    stopping: Stopping
    next_try: int = WINDOW
    seen: deque = field(default_factory=lambda: deque(maxlen=WINDOW))

    def __post_init__(self) -> None:
        known = self.e_step.kind in KINDS and self.stopping.gap_for(False) > 0
        self.ends = ends(self.problem.spec.space) if known else np.zeros((0, 2))

    def towards(self, x: jax.Array) -> np.ndarray:
        """Coordinates that keep moving to an end, (p,): -1, +1, or 0 for those that do not."""
        self.seen.append(np.asarray(x))
        if len(self.seen) < WINDOW or not np.any(np.isfinite(self.ends)):
            return np.zeros(len(self.seen[-1]), int)
        moves = np.diff(np.array(self.seen), axis=0)
        down = np.all(moves < -MOVING, axis=0) & np.isfinite(self.ends[:, 0])
        up = np.all(moves > MOVING, axis=0) & np.isfinite(self.ends[:, 1])
        return up.astype(int) - down.astype(int)

    def is_due(self, steps: list[Step], ending: bool) -> bool:
        """Whether to look at bounds now: gains are small, and this is not too often."""
        if not ending and (len(steps) < self.next_try or not steps[-1].change < SLOW):
            return False
        self.next_try = 2 * len(steps)
        return True


@dataclass(frozen=True)
class _Ground:
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
        return max(noise_of(self.e_step) or 0.0, 10 * rounding(value, dtype))

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
            if last / 2 < change < ROUGH:
                return earlier
            earlier, here, last = here, (x, state, value), change
        return None

    def maximize(
        self, x: jax.Array, state: Any, value: float, held: np.ndarray
    ) -> tuple[list[tuple[jax.Array, Any, float]], bool]:
        """Newton steps with coordinates `held` (p,) as they are, and whether they converged."""
        path = [(x, state, value)]
        for _ in range(MAX_NEWTON):
            here = marginal_information(self.e_step, self.problem, x, state)
            step, promised = _newton_step(here.gradient, here.matrix, held)
            if not np.isfinite(promised):
                return path, False
            floor, last = self.floor(value), promised < NEAR
            for _ in range(12):
                new_x = x + jnp.asarray(step, x.dtype)
                new_value, new_state = self.look(new_x, state)
                if new_value >= value - floor:
                    break
                step = step / 2
            else:
                return path, last
            x, state, value = new_x, new_state, new_value
            path.append((x, state, value))
            if last:
                return path, True
        return path, False

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
            if value - new > max(VISIBLE, 1e3 * noise) or changes:
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
        space = self.problem.spec.space
        values, marks = space.constrain(x), space.unravel(jnp.arange(x.size) == place)
        for name, mark in marks.items():
            if np.any(ravel_pytree(mark)[0]):
                pairs = zip(jax.tree.leaves(values[name]), jax.tree.leaves(mark), strict=True)
                return float(sum(jnp.sum(jnp.where(m, leaf, 0.0)) for leaf, m in pairs))
        raise ValueError(f"no parameter has coordinate {place}")


def jump(
    problem: Problem,
    e_step: DeterministicEStep,
    x: jax.Array,
    state: Any,
    towards: np.ndarray,
) -> Jump | None:
    """Go to the bounds that coordinates of `x` (p,) approach, if the maximum is there.

    Parameters
    ----------
    problem, e_step
        What is fitted.
    x, state
        Where EM is, (p,), and the state of the E-step there.
    towards
        The bounds that are approached, (p,): -1 and +1 for the lower and the upper end of x.

    Returns
    -------
    Jump or None
        None if the maximum is not at these bounds, as far as can be told.
    """
    ground, limits = _Ground(problem, e_step), ends(problem.spec.space)
    value, state = ground.look(x, state)
    sides = np.where(np.isfinite(limits[:, 0]), -1, 1)
    sides = np.where(towards != 0, towards, sides)
    target, held = x, np.zeros(len(towards), bool)
    for place in np.flatnonzero(towards):
        step = np.where(np.arange(x.size) == place, towards * DECADE, 0.0)
        found = ground.descend(x, state, value, step)
        if found is not None:
            held[place], target = True, target.at[place].set(found[0][place])
    for _ in range(MAX_ROUNDS):
        if not held.any():
            return None
        arrived = _arrive(ground, target, state, held, sides, limits)
        if arrived is None:
            return None
        if isinstance(arrived, Jump):
            if arrived.value >= value - ground.floor(value) and _rises(
                ground, x, arrived, state, value, held
            ):
                return arrived
            return None
        held, back = arrived
        for place in np.flatnonzero(~held):
            target = target.at[place].set(x[place])
        for place in np.flatnonzero(back):
            target = target.at[place].set(x[place] + sides[place] * 6 * DECADE)
    return None


def _arrive(
    ground: _Ground,
    x: jax.Array,
    state: Any,
    held: np.ndarray,
    sides: np.ndarray,
    limits: np.ndarray,
) -> Jump | tuple[np.ndarray, np.ndarray] | None:
    """The maximum with `held` (p,) at their bounds; or what to hold instead, and what is new."""
    value, state = ground.look(x, state)
    if not np.isfinite(value):
        return None
    path, converged = ground.maximize(x, state, value, held)
    x, state, value = path[-1]
    if not converged:
        moves = np.asarray(x - path[max(len(path) - 3, 0)][0])
        runs = (sides * moves > 0.1) & ~held
        runs &= np.isfinite(np.where(sides < 0, limits[:, 0], limits[:, 1]))
        return (held | runs, runs) if runs.any() else None
    settled = ground.descend(x, state, value, np.where(held, sides * DECADE, 0.0))
    if settled is None:
        return None
    x, state, value = settled
    bounds = np.where(held, np.where(sides < 0, limits[:, 0], limits[:, 1]), np.nan)
    labels = flat_labels(ground.problem.spec.space.unravel(x))
    found = {}
    for place in np.flatnonzero(held).tolist():
        side = int(sides[place])
        slope = ground.slope(x, state, value, place, side, bounds[place])
        if slope is None:
            logger.info("`%s` is not at its boundary %g", labels[place], bounds[place])
            return held & (np.arange(len(held)) != place), np.zeros_like(held)
        found[labels[place]] = slope
    logger.info("At a boundary, after %d Newton steps in the others", len(path) - 1)
    return Jump(x, state, value, AtBounds(ground.problem.spec.space, bounds, found))


def _rises(
    ground: _Ground, x: jax.Array, end: Jump, state: Any, value: float, held: np.ndarray
) -> bool:
    """Whether the log-likelihood never falls on the way from `x` (p,): no other maximum between."""
    for part in (0.3, 0.6, 0.9):
        straight = x + part * (end.x - x)
        near = x + jnp.asarray(np.sign(np.asarray(end.x - x)) * -np.log(1 - part), x.dtype)
        new, state = ground.look(jnp.where(held, near, straight), state)
        if not new >= value - ground.floor(value):
            return False
        value = new
    return end.value >= value - ground.floor(value)


def _newton_step(
    gradient: np.ndarray, matrix: np.ndarray, held: np.ndarray
) -> tuple[np.ndarray, float]:
    """The step (p,) uphill with coordinates `held` (p,) in place, and the gain it promises.

    Coordinates to which nothing responds stay as well: a correlation, where a variance is zero.
    """
    diagonal = np.abs(np.diag(matrix))
    free = ~held & (diagonal + np.abs(gradient) > 1e-9 * (1 + np.max(diagonal * ~held)))
    step = np.zeros_like(gradient)
    if not free.any():
        return step, 0.0
    if not np.all(np.isfinite(matrix[np.ix_(free, free)])):
        return step, np.nan
    scale = 1 / np.sqrt(np.maximum(diagonal[free], np.abs(gradient[free]) + 1e-12))
    scaled = scale[:, None] * matrix[np.ix_(free, free)] * scale
    values, vectors = np.linalg.eigh(scaled)
    along = vectors.T @ (scale * gradient[free])
    sizes = np.maximum(np.abs(values), 1e-8)
    step[free] = scale * (vectors @ (along / sizes))
    promised = 0.5 * np.sum(along**2 / sizes)
    length = np.sqrt(2 * promised)
    return step * min(1.0, MAX_LENGTH / max(length, 1e-300)), float(promised)
