"""Parameters that run to infinity together: outcomes that predictors separate, and the like.

Where a combination of predictors separates outcomes, the log-likelihood has no maximum, but a limit
along a ray, and what does not move along it has estimates there. In a scale of its own a ray is
flat; it is known by the information that vanishes along it, next to that further inside, whatever
the units of the predictors are.

References
----------
Albert & Anderson (1984), Biometrika 71, for maximum likelihood under separation; Geyer (2009),
Electronic Journal of Statistics 3, for directions of recession.
"""

import itertools
import time
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import linalg

from ppl_em.algorithms.ascent import Point, ascend
from ppl_em.algorithms.boundary_profile import DECADE, Inside, Landscape, Settled
from ppl_em.algorithms.boundary_watch import SLOW
from ppl_em.algorithms.history import Run
from ppl_em.algorithms.stopping import Step
from ppl_em.algorithms.suspicion import eased, way_back
from ppl_em.likelihood import marginal_information
from ppl_em.params import AtBounds, Boundary, ends, flat_labels
from ppl_em.problem import Problem

INSIDE = ((0.05, 0.5), (0.5, 5.0), (5.0, 50.0))
"""Log-likelihood that is lost, in nats, where the search for a ray begins: least and most.

Further inside if a single row decides, so that the information there says nothing of the others.
"""

MAX_BISECTIONS = 60
"""Steps on the way to such a place."""

MAX_CLIMB = 10
"""Newton steps from there: along a ray each is of about the same length."""

SHRINKS = 0.02
"""Ratio of promised gains from step to step below which the climb is to an ordinary maximum."""

FAR_ENOUGH = 1e-3
"""Ratio of promised gains, from the first step to the last, after which a ray is clear."""

VANISHING = 0.02
"""Share of the information that is left where a direction is on a ray."""

SHARE = 1e-3
"""Share of a coordinate in a ray, in units of the information inside, below which it has none."""


UNIT = (0.5, 2.0)
"""Decades by which a step of one may change what is left, where a tail is exponential."""


TIMES = (30, 60, 120, 240, 480)
"""Steps after which a run is looked at that has not ended."""


class Ray(NamedTuple):
    """A limit: where it is reached, directions (p, r) of recession, and their normals (p, r)."""

    there: Settled
    way: np.ndarray
    directions: np.ndarray
    normals: np.ndarray
    fall: float


def is_time(steps: list[Step]) -> bool:
    """Whether to look now, long before a run ends: at times, as it takes the information."""
    return len(steps) in TIMES and abs(steps[-1].change) < SLOW


def to_limit(run: Run) -> bool:
    """Whether parameters go to infinity along a ray; the run is then at the maximum of the rest."""
    problem, history, start = run.problem, run.history, time.monotonic()
    x = eased(run)
    back = way_back(run, x)
    if back is None:
        return False
    ground, before = Landscape(problem, run.e_step, _gaps(problem)), history.at
    held = np.zeros(x.size, bool) if before is None else before.held
    value, state = ground.look(x, history.e_state)
    found = _ray(ground, Settled(x, state, value, 0.0), back, held)
    if found is None:
        return False
    if x is not history.x:
        x = jnp.where(held, history.x, found.there.x)
        value, state = ground.look(x, found.there.state)
        found = found._replace(there=Settled(x, state, value, found.there.noise))
    value, state = ground.look(history.x, history.e_state)
    there = found.there
    rough = ground.roughness(Settled(history.x, state, value, 0.0), DECADE * found.way)
    if not there.value >= value - max(10 * rough, 10 * there.noise, ground.floor(value)):
        return False
    history.at = _at(problem, before, found, ground.rest(there, DECADE * found.way, 1))
    length = float(jnp.linalg.norm(there.x - history.x))
    step = Step(there.value, there.value - history.objective, 0.0, length)
    history.record(step, there.x, "boundary", time.monotonic() - start)
    history.x, history.e_state, history.information = there.x, there.state, None
    history.inverse = None
    run.bar.update(1)
    return True


def _at(problem: Problem, before: AtBounds | None, found: Ray, rest: float) -> AtBounds:
    """What is at a bound, or goes to infinity, by name."""
    x = found.there.x
    labels = flat_labels(problem.space.unravel(np.asarray(x)))
    bounds = np.full(x.size, np.nan) if before is None else before.bounds
    named = {} if before is None else dict(before.found)
    for place in np.flatnonzero(np.any(found.directions != 0, axis=1)).tolist():
        towards = found.way[place] if found.way[place] != 0 else float(x[place])
        named[labels[place]] = Boundary(float(np.sign(towards) * np.inf), -found.fall, 0)
    rest += 0.0 if before is None else before.rest
    return AtBounds(problem.space, bounds, named, x, rest, found.directions, found.normals)


def _ray(ground: Landscape, end: Settled, back: np.ndarray, held: np.ndarray) -> Ray | None:
    """The limit that a run at `end` is on its way to; `back` (p,) leads to where it was not."""
    gaps, x = _gaps(ground.problem), np.asarray(end.x, float)
    back = np.where(gaps, np.exp(np.where(gaps, x, 0.0)) * np.expm1(np.where(gaps, back, 0)), back)
    starts = (_inside(ground, end, back, *losses) for losses in INSIDE)
    rays = (_ray_from(ground, start, held) for start in starts if start is not None)
    return next((ray for ray in rays if ray is not None), None)


def _ray_from(ground: Landscape, inside: Settled, held: np.ndarray) -> Ray | None:
    """The limit that Newton steps from a place `inside` lead to."""
    path = _climb(ground, inside, held)
    if len(path) < 3:
        return None
    begun, last = path[1], path[-1]
    step = np.asarray(last.x - path[-2].x, float)
    metric = _information(ground, begun, held)
    lost = _vanishing(metric, _information(ground, last, held), VANISHING)
    if metric is None or lost is None:
        return None
    way = _clean(lost @ (lost.T @ (metric @ step)), metric)
    if not way.any() or not _may_go(ground, way):
        return None
    gaps = _gaps(ground.problem)
    way = np.where(gaps, np.exp(np.where(gaps, np.asarray(last.x, float), 0.0)), 1.0) * way
    way = _by_decades(ground, last, way)
    settled = ground.descend(last.x, last.state, last.value, DECADE * way)
    if settled is None:
        return None
    return _at_its_best(ground, settled, way, metric, held, inside.value)


def _climb(ground: Landscape, inside: Settled, held: np.ndarray) -> list[Point]:
    """Newton steps from a place `inside`, until a ray is clear or they are at a maximum."""
    terrain = Inside(ground, held)
    path = [Point(inside.x, inside.state, inside.value, terrain.model_at(inside.x, inside.state))]
    promised = [np.inf if path[0].model is None else path[0].model.promised]
    for here in itertools.islice(ascend(terrain, path[0]), MAX_CLIMB):
        path.append(here)
        promised.append(np.inf if here.model is None else here.model.promised)
        least = max(SHRINKS * promised[-2], FAR_ENOUGH * promised[1])
        if len(path) > 3 and promised[-1] < least:
            break
    return path


def _at_its_best(
    ground: Landscape,
    there: Settled,
    way: np.ndarray,
    metric: np.ndarray,
    held: np.ndarray,
    before: float,
) -> Ray | None:
    """The limit with all that is not on the ray at its maximum."""
    rough = ground.roughness(there, DECADE * way)
    limit = _information(ground, Point(there.x, there.state, there.value, None), held)
    lost = _vanishing(metric, limit, VANISHING)
    if lost is None:
        return None
    lost = np.stack([_clean(column, metric) for column in lost.T], axis=1)
    normals = np.diag(metric)[:, None] * lost
    path, converged = ground.maximize(there.x, there.state, there.value, held, rough, normals)
    if not converged:
        return None
    x, state, value, _ = path[-1]
    settled = ground.descend(x, state, value, DECADE * way)
    if settled is None or not settled.value - before > INSIDE[0][0] / 2:
        return None
    return Ray(settled, way, lost, normals, float(settled.value - before))


def _inside(
    ground: Landscape, end: Settled, back: np.ndarray, least: float, most: float
) -> Settled | None:
    """A place on the way `back` (p,) where a little is lost, in nats."""
    low, high = 0.0, 1.0
    for _ in range(MAX_BISECTIONS):
        part = (low + high) / 2 if high < 1 else high
        x = ground.go(end.x, part * back)
        value, state = ground.look(x, end.state)
        loss = end.value - value
        if least <= loss <= most:
            return Settled(x, state, value, 0.0)
        if high == 1 and part == 1:
            high = 1 - 1e-9
        elif loss < least:
            low = part
        else:
            high = part
    return None


def _information(ground: Landscape, there: Point, held: np.ndarray) -> np.ndarray | None:
    """The information (p, p) at a place, 1 on the diagonal for what is `held` (p,)."""
    found = marginal_information(ground.e_step, ground.problem, there.x, there.state).matrix
    if not np.all(np.isfinite(found)):
        return None
    return np.where(np.outer(~held, ~held), found, np.diag(held.astype(float)))


def _vanishing(
    inside: np.ndarray | None, outside: np.ndarray | None, share: float
) -> np.ndarray | None:
    """Directions (p, r) in which the information vanishes, of length 1 in that inside."""
    if inside is None or outside is None:
        return None
    scale = 1 / np.sqrt(np.maximum(np.abs(np.diag(inside)), np.finfo(float).tiny))
    within, without = (scale[:, None] * matrix * scale for matrix in (inside, outside))
    try:
        values, vectors = linalg.eigh(without, within)
    except (linalg.LinAlgError, ValueError):
        return None  # no maximum is near, so that there is nothing to compare with
    lost = scale[:, None] * vectors[:, np.abs(values) < share]
    return lost if lost.shape[1] else None


def _by_decades(ground: Landscape, there: Point, way: np.ndarray) -> np.ndarray:
    """`way` (p,) in the unit in which what is left to gain falls by a factor of e."""
    steps = (ground.go(there.x, -count * DECADE * way) for count in (1, 2))
    near, far = (ground.look(x, there.state)[0] for x in steps)
    ratio = (near - far) / max(there.value - near, np.finfo(float).tiny)
    believed = np.isfinite(ratio) and UNIT[0] < np.log(max(ratio, 1.0)) / DECADE < UNIT[1]
    return way * DECADE / np.log(ratio) if believed else way


def _clean(direction: np.ndarray, metric: np.ndarray) -> np.ndarray:
    """`direction` (p,) without what rounding makes of coordinates that are not on it."""
    share = np.abs(direction) * np.sqrt(np.abs(np.diag(metric)))
    return np.where(share > SHARE * np.max(share, initial=0.0), direction, 0.0)


def _gaps(problem: Problem) -> np.ndarray:
    """Coordinates (p,) that are logarithms of what has an edge at 0 and no other end."""
    limits = ends(problem.space)
    return (limits[:, 0] == -1) & np.isnan(limits[:, 1])


def _may_go(ground: Landscape, way: np.ndarray) -> bool:
    """Whether all coordinates that move along `way` (p,) may go to infinity."""
    limits = ends(ground.problem.space)
    bounds = np.where(way < 0, limits[:, 0], limits[:, 1])
    return bool(np.all(np.isnan(bounds) | np.isinf(bounds) | (way == 0)))
