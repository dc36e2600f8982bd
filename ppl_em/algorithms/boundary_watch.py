"""Which parameters are on their way to a bound, or next to one where a run has ended."""

import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.algorithms.boundary_profile import (
    DECADE,
    IDLE,
    IN_ROUNDING,
    MAX_DECADES,
    MEANT,
    Landscape,
    Settled,
)
from ppl_em.algorithms.digits import within_digits
from ppl_em.algorithms.history import Run
from ppl_em.algorithms.stopping import Step, Stopping
from ppl_em.params import ends, is_share
from ppl_em.posterior import OF_PARAMETERS
from ppl_em.problem import Problem
from ppl_em.util import moved_by, put

WINDOW = 4
"""Last places of a run, from each of which to the next a parameter must get closer to a bound."""

MOVING = 1e-5
"""Least change of its unconstrained value each time."""

NEARLY_GONE = 7.0
"""Unconstrained value from which a share of a simplex is next to nothing: 1e-3 of the rest."""

FAR = 3.0
"""Change of its unconstrained value after which a direct method may have run to a bound."""

SLOW = 0.01
"""Gain of a step below which bounds are looked at."""

OTHER_END = 3 * DECADE
"""Unconstrained value of what is tried at its other end."""

BEYOND = 40.0
"""Unconstrained value from which a coordinate is brought back: more than 17 decades."""

MAX_ASKED = 100
"""Parameters up to which each is asked whether it is near an end: an E-step or two for each."""


@dataclass(eq=False)
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
        self.least = np.where(is_share(spec.space), NEARLY_GONE, -np.inf)

    def near(self, x: jax.Array, towards: np.ndarray) -> np.ndarray:
        """`towards` (p,) without the shares of a simplex that are not next to nothing at `x` (p,).

        What a component without weight would be has no influence there, so that the bound looks
        like a maximum from wherever components are alike.
        """
        return np.where(towards * np.asarray(x, float) > self.least, towards, 0)

    def towards(self, x: jax.Array) -> np.ndarray:
        """Coordinates that keep moving to an end, (p,): -1, +1, or 0 for those that do not."""
        self.seen.append(np.asarray(x))
        if len(self.seen) < WINDOW or np.all(np.isnan(self.ends)):
            return np.zeros(len(self.seen[-1]), int)
        moves = np.diff(np.array(self.seen), axis=0)
        down = np.all(moves < -MOVING, axis=0) & ~np.isnan(self.ends[:, 0])
        up = np.all(moves > MOVING, axis=0) & ~np.isnan(self.ends[:, 1])
        return self.near(x, up.astype(int) - down.astype(int))

    def far_towards(self, start: jax.Array, x: jax.Array) -> np.ndarray:
        """Coordinates that went far to an end between `start` and `x` (p,), as in `towards`."""
        moves = np.asarray(x) - np.asarray(start)
        if np.all(np.isnan(self.ends)):
            return np.zeros(len(moves), int)
        down = (moves < -FAR) & ~np.isnan(self.ends[:, 0])
        up = (moves > FAR) & ~np.isnan(self.ends[:, 1])
        return self.near(x, up.astype(int) - down.astype(int))

    def is_due(self, steps: list[Step], ending: bool) -> bool:
        """Whether to look at bounds now: gains are small, and this is not too often."""
        if not ending and (len(steps) < self.next_try or not steps[-1].change < SLOW):
            return False
        self.next_try = 2 * len(steps)
        return True


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
    starts = [history.x, *_otherwise(ground, history.x, state, value)]
    for start, place in itertools.product(starts, np.flatnonzero(towards)):
        for count in range(1, 2 * MAX_DECADES):
            x = moved_by(start, -int(towards[place]) * count * DECADE / 2, place)
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


def _otherwise(ground: Landscape, x: jax.Array, state: Any, value: float) -> list[jax.Array]:
    """`x` (p,) with what is idle there at its other end, as a correlation without a variance."""
    both = np.isfinite(ends(ground.problem.space)).all(axis=1)
    ways = [
        put(x, side * OTHER_END, place)
        for place, side in itertools.product(np.flatnonzero(both), (-1, 1))
    ]
    return [way for way in ways if abs(ground.look(way, state)[0] - value) < IDLE]


def near_ends(run: Run) -> np.ndarray:
    """Ends that parameters can go nearer to, by a decade, without any loss to speak of.

    Returns
    -------
    numpy.ndarray
        As of `Watch.towards`, (p,). Where a run has ended, its parameters may be on a slope too
        gentle to be seen in its steps, or at a bound already.
    """
    problem, history = run.problem, run.history
    watch = Watch(problem, run.e_step, run.limits.stopping)
    limits = watch.ends
    if len(limits):
        within_digits(run)
    towards = np.zeros(history.x.size, int)
    if not 0 < len(limits) <= MAX_ASKED or np.all(np.isnan(limits)):
        return towards
    ground = Landscape(problem, run.e_step)
    value, state = ground.look(history.x, history.e_state)
    if history.at is not None:
        known = history.at.held | history.at.on_rays
        limits = np.where(known[:, None], np.nan, limits)
    history.x = x = _nearer(ground, history.x, state, value, limits)
    here = np.asarray(x)
    for place, column in itertools.product(range(x.size), (0, 1)):
        side, bound = 2 * column - 1, limits[place, column]
        if np.isnan(bound) or (np.isfinite(limits[place]).all() and side * here[place] < 1):
            continue
        if np.isinf(bound) and side * here[place] < FAR:
            continue
        change = ground.look(moved_by(x, side * DECADE, place), state)[0] - value
        if change < -MEANT:
            continue
        if abs(change) > IN_ROUNDING or not _has_no_influence(ground, x, state, value, place, side):
            towards[place] = side
    return watch.near(x, towards)


def _nearer(
    ground: Landscape, x: jax.Array, state: Any, value: float, limits: np.ndarray
) -> jax.Array:
    """`x` (p,), with coordinates no further out towards an end than makes a difference.

    An M-step may go so far that nothing near there tells how the log-likelihood got to its end.
    """
    for place in np.flatnonzero(np.abs(np.asarray(x)) > BEYOND).tolist():
        out = float(np.asarray(x)[place])
        while not np.isnan(limits[place, int(out > 0)]) and abs(out) > BEYOND:
            nearer, out = put(x, out / 2, place), out / 2
            if not ground.look(nearer, state)[0] >= value - MEANT:
                break
            x = nearer
    return x


def _has_no_influence(
    ground: Landscape, x: jax.Array, state: Any, value: float, place: int, side: int
) -> bool:
    """Whether nothing changes either as coordinate `place` of `x` (p,) comes back from its end."""
    away = (moved_by(x, -side * count * DECADE, place) for count in (1, 3, 6, 12))
    return all(abs(ground.look(there, state)[0] - value) < IDLE for there in away)
