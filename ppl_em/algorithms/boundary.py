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
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.algorithms.boundary_profile import DECADE, Landscape
from ppl_em.algorithms.history import Run
from ppl_em.algorithms.stopping import Step, Stopping
from ppl_em.e_step import DeterministicEStep
from ppl_em.params import AtBounds, ends, flat_labels
from ppl_em.posterior import OF_PARAMETERS
from ppl_em.problem import Problem

logger = logging.getLogger("ppl_em")

WINDOW = 4
"""Last places of a run, from each of which to the next a parameter must get closer to a bound."""

MOVING = 1e-4
"""Least change of its unconstrained value each time."""

FAR = 3.0
"""Change of its unconstrained value after which a direct method may have run to a bound."""

SLOW = 0.01
"""Gain of a step below which bounds are looked at."""

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
        known = self.e_step.kind in OF_PARAMETERS and self.stopping.gap_for(False) > 0
        spec = self.problem.spec
        known &= not (spec.restrictions or spec.rough)
        self.ends = ends(spec.space) if known else np.zeros((0, 2))

    def towards(self, x: jax.Array) -> np.ndarray:
        """Coordinates that keep moving to an end, (p,): -1, +1, or 0 for those that do not."""
        self.seen.append(np.asarray(x))
        if len(self.seen) < WINDOW or not np.any(np.isfinite(self.ends)):
            return np.zeros(len(self.seen[-1]), int)
        moves = np.diff(np.array(self.seen), axis=0)
        down = np.all(moves < -MOVING, axis=0) & np.isfinite(self.ends[:, 0])
        up = np.all(moves > MOVING, axis=0) & np.isfinite(self.ends[:, 1])
        return up.astype(int) - down.astype(int)

    def far_towards(self, start: jax.Array, x: jax.Array) -> np.ndarray:
        """Coordinates that went far to an end between `start` and `x` (p,), as in `towards`."""
        moves = np.asarray(x - start)
        if not np.any(np.isfinite(self.ends)):
            return np.zeros(len(moves), int)
        down = (moves < -FAR) & np.isfinite(self.ends[:, 0])
        up = (moves > FAR) & np.isfinite(self.ends[:, 1])
        return up.astype(int) - down.astype(int)

    def is_due(self, steps: list[Step], ending: bool) -> bool:
        """Whether to look at bounds now: gains are small, and this is not too often."""
        if not ending and (len(steps) < self.next_try or not steps[-1].change < SLOW):
            return False
        self.next_try = 2 * len(steps)
        return True


def to_boundary(run: Run, towards: np.ndarray) -> bool:
    """Whether the maximum is at a bound, where the run then ends: if not, it goes on.

    `towards` (p,) as in `jump`.
    """
    if not towards.any():
        return False
    history = run.history
    start, before = time.monotonic(), history.x
    found = jump(run.problem, run.e_step, before, history.e_state, towards)
    if found is None:
        return False
    history.at = found.at
    change, length = found.value - history.objective, float(jnp.linalg.norm(found.x - before))
    step = Step(found.value, change, 0.0, length)
    history.record(step, found.x, "boundary", time.monotonic() - start)
    history.x, history.e_state = found.x, found.state
    run.bar.update(1)
    return True


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
    ground, limits = Landscape(problem, e_step), ends(problem.space)
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
    ground: Landscape,
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
    x, state, value, _ = path[-1]
    if not converged:
        moves = np.asarray(x - path[max(len(path) - 3, 0)].x)
        runs = (sides * moves > 0.1) & ~held
        runs &= np.isfinite(np.where(sides < 0, limits[:, 0], limits[:, 1]))
        return (held | runs, runs) if runs.any() else None
    settled = ground.descend(x, state, value, np.where(held, sides * DECADE, 0.0))
    if settled is None:
        return None
    x, state, value = settled
    bounds = np.where(held, np.where(sides < 0, limits[:, 0], limits[:, 1]), np.nan)
    labels = flat_labels(ground.problem.space.unravel(np.asarray(x)))
    found = {}
    for place in np.flatnonzero(held).tolist():
        side = int(sides[place])
        slope = ground.slope(x, state, value, place, side, bounds[place])
        if slope is None:
            logger.info("`%s` is not at its boundary %g", labels[place], bounds[place])
            return held & (np.arange(len(held)) != place), np.zeros_like(held)
        found[labels[place]] = slope
    logger.info("At a boundary, after %d Newton steps in the others", len(path) - 1)
    return Jump(x, state, value, AtBounds(ground.problem.space, bounds, found))


def _rises(
    ground: Landscape, x: jax.Array, end: Jump, state: Any, value: float, held: np.ndarray
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
