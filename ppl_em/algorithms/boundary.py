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

import itertools
import logging
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.algorithms.boundary_profile import (
    DECADE,
    IDLE,
    IN_ROUNDING,
    MAX_DECADES,
    Landscape,
    Settled,
)
from ppl_em.algorithms.history import Run
from ppl_em.algorithms.stopping import Step, Stopping
from ppl_em.e_step import DeterministicEStep
from ppl_em.params import AtBounds, Boundary, ends, place_of
from ppl_em.posterior import OF_PARAMETERS
from ppl_em.problem import Problem

logger = logging.getLogger("ppl_em")

WINDOW = 4
"""Last places of a run, from each of which to the next a parameter must get closer to a bound."""

MOVING = 1e-5
"""Least change of its unconstrained value each time."""

FAR = 3.0
"""Change of its unconstrained value after which a direct method may have run to a bound."""

SLOW = 0.01
"""Gain of a step below which bounds are looked at."""

MEANT = 1e-3
"""Log-likelihood that means something: a bound is looked at if less is lost on the way."""

MAX_ASKED = 100
"""Parameters up to which each is asked whether it is near an end: an E-step or two for each."""

OUT = 6 * DECADE
"""Unconstrained value up to which a parameter on its way to infinity is believed."""

NEARER = 3 * DECADE
"""The same for one that has an end on either side, from where bounds are approached."""

FURTHEST = 1e3
"""The same for all others: none."""

LOST = 1000.0
"""Rounding of a log-likelihood with a parameter k far out, in units of k."""

MAX_ROUNDS = 4
"""Changes of mind about which parameters are at a bound."""


class Jump(NamedTuple):
    """A maximum at a bound.

    `x` (p,) is inside by a distance that does not matter, `state` that of the E-step there and
    `value` its log-likelihood, with `noise`; `at` says which parameters are at one.
    """

    x: jax.Array
    state: Any
    value: float
    noise: float
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
        if len(self.seen) < WINDOW or np.all(np.isnan(self.ends)):
            return np.zeros(len(self.seen[-1]), int)
        moves = np.diff(np.array(self.seen), axis=0)
        down = np.all(moves < -MOVING, axis=0) & ~np.isnan(self.ends[:, 0])
        up = np.all(moves > MOVING, axis=0) & ~np.isnan(self.ends[:, 1])
        return up.astype(int) - down.astype(int)

    def far_towards(self, start: jax.Array, x: jax.Array) -> np.ndarray:
        """Coordinates that went far to an end between `start` and `x` (p,), as in `towards`."""
        moves = np.asarray(x - start)
        if np.all(np.isnan(self.ends)):
            return np.zeros(len(moves), int)
        down = (moves < -FAR) & ~np.isnan(self.ends[:, 0])
        up = (moves > FAR) & ~np.isnan(self.ends[:, 1])
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
    if found.value < history.objective - MEANT:  # that was rounding, far out
        history.objective = found.value
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
    x, state, value = _believed(ground, x, state, towards, limits)
    sides = np.where(~np.isnan(limits[:, 0]), -1, 1)
    sides = np.where(towards != 0, towards, sides)
    target, held = x, np.zeros(len(towards), bool)
    for place in np.flatnonzero(towards):
        step = np.where(np.arange(x.size) == place, towards * DECADE, 0.0)
        found = ground.descend(x, state, value, step)
        if found is not None:
            held[place], target = True, target.at[place].set(found.x[place])
    turned = False
    for _ in range(MAX_ROUNDS):
        if not held.any():
            return None
        arrived = _arrive(ground, target, state, held, sides, limits)
        if arrived is None:
            return None
        if isinstance(arrived, Jump):
            if not arrived.value >= value - max(ground.floor(value), 3 * arrived.noise):
                return None
            # By way of the bound at which a parameter has no influence, nothing has to fall.
            return arrived if turned or _rises(ground, x, arrived, state, value, held) else None
        held, back, sides = arrived.held, arrived.new, arrived.sides
        turned |= arrived.turned
        for place in np.flatnonzero(~held):
            target = target.at[place].set(x[place])
        for place in np.flatnonzero(back):
            inside = 0.0 if arrived.turned else x[place]
            target = target.at[place].set(inside + sides[place] * NEARER)
    return None


def _believed(
    ground: Landscape, x: jax.Array, state: Any, towards: np.ndarray, limits: np.ndarray
) -> tuple[jax.Array, Any, float]:
    """`x` (p,), the state and the log-likelihood; nearer where that has lost its digits far out."""
    value, new = ground.look(x, state)
    bounds = np.where(towards < 0, limits[:, 0], limits[:, 1])
    size, endless = towards * np.asarray(x, float), np.isinf(bounds)
    furthest = np.where(endless, OUT, np.where(_like_correlation(limits), NEARER, FURTHEST))
    out = (towards != 0) & (size > furthest)
    if not out.any():
        return x, new, value
    lost = np.max(np.exp(np.where(endless, size, 2 * size))[out])
    noise = MEANT + LOST * lost * float(np.finfo(x.dtype).eps)
    nearer = jnp.where(out, jnp.asarray(towards * furthest, x.dtype), x)
    there, found = ground.look(nearer, state)
    if abs(there - value) < noise or not np.isfinite(value):
        return nearer, found, there
    return x, new, value


def _two_sided(limits: np.ndarray) -> np.ndarray:
    """Which coordinates have an end on either side, (p,), like that of a correlation."""
    return np.isfinite(limits).all(axis=1)


def _like_correlation(limits: np.ndarray) -> np.ndarray:
    """Which coordinates end where a matrix is singular, in effect, (p,)."""
    return np.all(limits == [-1, 1], axis=1)


class _Otherwise(NamedTuple):
    """What to hold instead (p,), which of it is new, and at which sides.

    `turned` says that a parameter was idle where others were at their bounds.
    """

    held: np.ndarray
    new: np.ndarray
    sides: np.ndarray
    turned: bool = False


def _arrive(
    ground: Landscape,
    x: jax.Array,
    state: Any,
    held: np.ndarray,
    sides: np.ndarray,
    limits: np.ndarray,
) -> Jump | _Otherwise | None:
    """The maximum with `held` (p,) at their bounds; or what to hold instead."""
    value, state = ground.look(x, state)
    if not np.isfinite(value):
        return None
    path, converged = ground.maximize(x, state, value, held)
    x, state, value, _ = path[-1]
    if not converged:
        moves = np.asarray(x - path[max(len(path) - 3, 0)].x)
        runs = (sides * moves > 0.1) & ~held
        runs &= ~np.isnan(np.where(sides < 0, limits[:, 0], limits[:, 1]))
        return _Otherwise(held | runs, runs, sides) if runs.any() else None
    settled = ground.descend(x, state, value, np.where(held, sides * DECADE, 0.0), level=True)
    if settled is None:
        return None
    found = _falls(ground, settled, held, sides, limits)
    if isinstance(found, _Otherwise):
        return found
    logger.info("At a boundary, after %d Newton steps in the others", len(path) - 1)
    bounds = np.where(held, np.where(sides < 0, limits[:, 0], limits[:, 1]), np.nan)
    at = AtBounds(ground.problem.space, bounds, found, settled.x)
    return Jump(settled.x, settled.state, settled.value, settled.noise, at)


def _falls(
    ground: Landscape, there: Settled, held: np.ndarray, sides: np.ndarray, limits: np.ndarray
) -> dict[str, Boundary] | _Otherwise:
    """How the log-likelihood falls from each bound, by name; or what to hold where it rises.

    A parameter without influence there, like a correlation without a variance, is tried at both
    its ends: away from the bound it has some.
    """
    x, state, value, _ = there
    space, alone = ground.problem.space, np.arange(len(held))
    both = np.flatnonzero(_two_sided(limits) & ~held).tolist()
    idle = [place for place in both if ground.is_idle(x, state, value, place)]
    found = {}
    # What may be idle comes last: where another is not at its bound, it has some influence.
    for place in sorted(np.flatnonzero(held).tolist(), key=lambda i: _two_sided(limits)[i]):
        named = place_of(space, x, place, int(sides[place]))
        slope = ground.slope(x, state, value, named)
        if slope is None:
            logger.info("`%s` is not at its boundary %g", named.label, named.bound)
            return _Otherwise(held & (alone != place), np.zeros_like(held), sides)
        for other, side in itertools.product(idle, (-1, 1)):
            tried = x.at[other].set(side * NEARER)
            if ground.slope(tried, state, ground.look(tried, state)[0], named) is None:
                logger.info("`%s` is not at its boundary for another end of what is idle", named.label)
                new = alone == other
                turn = np.where(new, side, sides)
                return _Otherwise((held & (alone != place)) | new, new, turn, True)
        found[named.label] = slope
    return found


def move_inside(run: Run, towards: np.ndarray) -> bool:
    """Go to where the log-likelihood is higher, away from ends it does not have its maximum at.

    EM's steps are in proportion to a standard deviation: next to 0 it stands still. `towards` (p,)
    as of `near_ends`; whether there is such a place.
    """
    history = run.history
    if not towards.any():
        return False
    ground = Landscape(run.problem, run.e_step)
    value, state = ground.look(history.x, history.e_state)
    best = Settled(history.x, state, value, 0.0)
    for place in np.flatnonzero(towards):
        for count in range(1, 2 * MAX_DECADES):
            x = history.x.at[place].add(-int(towards[place]) * count * DECADE / 2)
            new, state = ground.look(x, history.e_state)
            if new > best.value:
                best = Settled(x, state, new, 0.0)
            if not new > value - MEANT:
                break
    if not best.value > value + MEANT:
        return False
    history.decide("the log-likelihood rises from the bound that was approached: on from inside")
    length = float(jnp.linalg.norm(best.x - history.x))
    step = Step(best.value, best.value - history.objective, 0.0, length)
    history.record(step, best.x, "boundary", 0.0)
    history.x, history.e_state = best.x, best.state
    history.inverse, history.at = None, None
    return True


def near_ends(run: Run) -> np.ndarray:
    """Ends that parameters can go nearer to, by a decade, without any loss to speak of.

    Returns
    -------
    numpy.ndarray
        As of `Watch.towards`, (p,). Where a run has ended, its parameters may be on a slope too
        gentle to be seen in its steps, or at a bound already.
    """
    problem, x, state = run.problem, run.history.x, run.history.e_state
    limits = Watch(problem, run.e_step, run.limits.stopping).ends
    towards = np.zeros(x.size, int)
    if not 0 < len(limits) <= MAX_ASKED or np.all(np.isnan(limits)):
        return towards
    ground = Landscape(problem, run.e_step)
    value, state = ground.look(x, state)
    for place, column in itertools.product(range(x.size), (0, 1)):
        side, bound = 2 * column - 1, limits[place, column]
        if np.isnan(bound) or (_two_sided(limits)[place] and side * float(x[place]) < 1):
            continue
        if np.isinf(bound) and side * float(x[place]) < FAR:
            continue
        change = ground.look(x.at[place].add(side * DECADE), state)[0] - value
        if change < -MEANT:
            continue
        if abs(change) > IN_ROUNDING or not _has_no_influence(ground, x, state, value, place, side):
            towards[place] = side
    return towards


def _has_no_influence(
    ground: Landscape, x: jax.Array, state: Any, value: float, place: int, side: int
) -> bool:
    """Whether nothing changes either as coordinate `place` of `x` (p,) comes back from its end."""
    away = (x.at[place].add(-side * count * DECADE) for count in (1, 3, 6, 12))
    return all(abs(ground.look(there, state)[0] - value) < IDLE for there in away)


def _rises(
    ground: Landscape, x: jax.Array, end: Jump, state: Any, value: float, held: np.ndarray
) -> bool:
    """Whether the log-likelihood never falls on the way from `x` (p,): no other maximum between."""
    for part in (0.3, 0.6, 0.9):
        straight = x + part * (end.x - x)
        near = x + jnp.asarray(np.sign(np.asarray(end.x - x)) * -np.log(1 - part), x.dtype)
        new, state = ground.look(jnp.where(held, near, straight), state)
        if not new >= value - max(ground.floor(value), end.noise):
            return False
        value = new
    return end.value >= value - max(ground.floor(value), 3 * end.noise)
