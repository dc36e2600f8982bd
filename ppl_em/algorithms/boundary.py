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
from typing import Any, NamedTuple

import jax
import numpy as np

from ppl_em.algorithms.boundary_profile import (
    DECADE,
    MAX_DECADES,
    MEANT,
    Landscape,
    Settled,
)
from ppl_em.algorithms.history import Run
from ppl_em.algorithms.stopping import Step
from ppl_em.e_step import DeterministicEStep
from ppl_em.params import AtBounds, Boundary, ends, is_share, place_of
from ppl_em.problem import Problem
from ppl_em.util import moved_by, put

logger = logging.getLogger("ppl_em")

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
    change = found.value - history.objective
    length = float(np.linalg.norm(np.asarray(found.x) - np.asarray(before)))
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
            held[place] = True
            target = put(target, np.asarray(found.x)[place], place)
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
        released = held & ~arrived.held
        held, back, sides = arrived.held, arrived.new, arrived.sides
        turned |= arrived.turned
        for place in np.flatnonzero(~held):
            target = put(target, np.asarray(x)[place], place)
        for place in np.flatnonzero(back):
            inside = 0.0 if arrived.turned else float(x[place])
            target = put(target, inside + sides[place] * NEARER, place)
        if arrived.turned:
            target = _inside(ground, target, state, released, sides)
    return None


def _inside(
    ground: Landscape, x: jax.Array, state: Any, released: np.ndarray, sides: np.ndarray
) -> jax.Array:
    """`x` (p,) with what is no longer held where the log-likelihood is highest on its way inside.

    Next to a standard deviation of 0 Newton's steps would stand still.
    """
    for place in np.flatnonzero(released):
        steps = range(2 * MAX_DECADES)
        ways = [moved_by(x, -int(sides[place]) * count * DECADE / 2, place) for count in steps]
        values = np.array([ground.look(way, state)[0] for way in ways])
        x = ways[int(np.argmax(np.where(np.isfinite(values), values, -np.inf)))]
    return x


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
    lost = np.max(np.exp(np.minimum(np.where(endless, size, 2 * size), FURTHEST / 2))[out])
    noise = MEANT + LOST * lost * float(np.finfo(x.dtype).eps)
    nearer = put(x, (towards * furthest)[out], out)
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
    outwards = np.where(held, sides * DECADE, 0.0)
    rough = ground.roughness(Settled(x, state, value, 0.0), outwards)
    path, converged = ground.maximize(x, state, value, held, rough)
    x, state, value, _ = path[-1]
    if not converged:
        moves = np.asarray(x - path[max(len(path) - 3, 0)].x)
        runs = (sides * moves > 0.1) & ~held
        runs &= ~np.isnan(np.where(sides < 0, limits[:, 0], limits[:, 1]))
        runs &= ~is_share(ground.problem.space)
        return _Otherwise(held | runs, runs, sides) if runs.any() else None
    settled = ground.descend(x, state, value, outwards)
    if settled is None:
        return None
    found = _falls(ground, settled, held, sides, limits)
    if isinstance(found, _Otherwise):
        return found
    rest = 0.0
    for place, where in zip(_in_turn(held, limits), found.values(), strict=True):
        alone = np.where(np.arange(len(held)) == place, outwards, 0.0)
        rest += ground.rest(settled, alone, where.power)
    logger.info("At a boundary, after %d Newton steps in the others", len(path) - 1)
    bounds = np.where(held, np.where(sides < 0, limits[:, 0], limits[:, 1]), np.nan)
    at = AtBounds(ground.problem.space, bounds, found, settled.x, rest=rest)
    return Jump(settled.x, settled.state, settled.value, settled.noise, at)


def _in_turn(held: np.ndarray, limits: np.ndarray) -> list[int]:
    """Coordinates that are `held` (p,), those that may be idle where others are at a bound last."""
    return sorted(np.flatnonzero(held).tolist(), key=lambda place: _two_sided(limits)[place])


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
    # Where another is not at its bound, what may be idle has some influence.
    for place in _in_turn(held, limits):
        named = place_of(space, x, place, int(sides[place]))
        slope = ground.slope(x, state, value, named)
        if slope is None:
            logger.info("`%s` is not at its boundary %g", named.label, named.bound)
            return _Otherwise(held & (alone != place), np.zeros_like(held), sides)
        for other, side in itertools.product(idle, (-1, 1)):
            tried = put(x, side * NEARER, other)
            if ground.slope(tried, state, ground.look(tried, state)[0], named) is None:
                logger.info(
                    "`%s` is not at its boundary for another end of what is idle", named.label
                )
                new = alone == other
                turn = np.where(new, side, sides)
                return _Otherwise((held & (alone != place)) | new, new, turn, True)
        found[named.label] = slope
    return found


def _rises(
    ground: Landscape, x: jax.Array, end: Jump, state: Any, value: float, held: np.ndarray
) -> bool:
    """Whether the log-likelihood never falls on the way from `x` (p,): no other maximum between."""
    for part in (0.3, 0.6, 0.9):
        whole = np.asarray(end.x) - np.asarray(x)
        step = np.where(held, np.sign(whole) * -np.log(1 - part), part * whole)
        new, state = ground.look(moved_by(x, step), state)
        if not new >= value - max(ground.floor(value), end.noise):
            return False
        value = new
    return end.value >= value - max(ground.floor(value), 3 * end.noise)
