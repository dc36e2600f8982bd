"""Free parameters that run to infinity: outcomes that a predictor separates.

A slope whose treated rows are all successes has no estimate, but the log-likelihood has a limit,
and the other parameters have estimates there. The slope is put so far out that nothing changes any
more, and Newton's method maximizes over the others.

References
----------
Albert & Anderson (1984), Biometrika 71, for maximum likelihood under separation.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.algorithms.boundary_profile import MEANT, SETTLED, VISIBLE, Landscape
from ppl_em.algorithms.boundary_watch import FAR, MAX_ASKED, Watch
from ppl_em.algorithms.history import Run
from ppl_em.algorithms.stopping import Step
from ppl_em.params import AtBounds, Boundary, flat_labels, has_end
from ppl_em.problem import Problem

DOUBLINGS = 12
"""How often a parameter is doubled without any loss before it is said to go to infinity."""


def to_limit(run: Run) -> bool:
    """Whether some free parameters go to infinity; the run is then at the maximum of the rest."""
    problem, history, start = run.problem, run.history, time.monotonic()
    far = _far(run)
    if not far.any():
        return False
    ground = Landscape(problem, run.e_step)
    value, state = ground.look(history.x, history.e_state)
    if not np.isfinite(value):
        return False
    x, falls = history.x, {}
    for place in np.flatnonzero(far).tolist():
        found = _without_end(ground, x, state, place)
        if found is not None:
            x, falls[place] = found
    if not falls:
        return False
    before = history.at
    bounds = np.full(x.size, np.nan) if before is None else before.bounds.copy()
    for place in falls:
        bounds[place] = far[place] * np.inf
    there, state = ground.look(x, state)
    path, converged = ground.maximize(x, state, there, ~np.isnan(bounds))
    x, state, there, _ = path[-1]
    if not converged or not there >= value - ground.floor(value):
        return False
    named = {} if before is None else dict(before.found)
    for place, fall in falls.items():
        named[_label(problem, x, place)] = Boundary(float(bounds[place]), -fall, 0)
    history.at = AtBounds(problem.space, bounds, named, x)
    length = float(jnp.linalg.norm(x - history.x))
    step = Step(there, there - history.objective, 0.0, length)
    history.record(step, x, "boundary", time.monotonic() - start)
    history.x, history.e_state = x, state
    run.bar.update(1)
    return True


def _far(run: Run) -> np.ndarray:
    """Signs of the free coordinates that are far out, and not known to have a limit, (p,)."""
    problem, at = run.problem, run.history.at
    x = np.asarray(run.history.x, float)
    known = len(Watch(problem, run.e_step, run.limits.stopping).ends)
    if not known or x.size > MAX_ASKED:
        return np.zeros(x.size)
    free = ~has_end(problem.space) & (np.abs(x) > FAR)
    if at is not None:
        free &= ~at.held
    return np.where(free, np.sign(x), 0.0)


def _without_end(
    ground: Landscape, x: jax.Array, state: object, place: int
) -> tuple[jax.Array, float] | None:
    """`x` (p,) with coordinate `place` where its limit is reached, and the fall from there.

    None if the log-likelihood has a maximum in it, or does not depend on it: the fall is that to
    half the value and back to 0, whichever is seen first.
    """
    value, state = ground.look(x, state)
    best, settled = value, None
    for count in range(1, DOUBLINGS + 1):
        there = x.at[place].multiply(2.0**count)
        new, _ = ground.look(there, state)
        if not new >= best - max(SETTLED, ground.floor(best)):
            return None
        if settled is None and new - best <= max(SETTLED, ground.floor(best)):
            settled = x.at[place].multiply(2.0 ** (count - 1))
        best = max(best, new)
    if settled is None or best - value > MEANT:
        return None
    for share in (0.5, 0.25, 0.0):
        fall = best - ground.look(x.at[place].multiply(share), state)[0]
        if fall > VISIBLE:
            return settled, float(fall)
    return None


def _label(problem: Problem, x: jax.Array, place: int) -> str:
    """The name of a free parameter: coordinate `place` of `x` (p,)."""
    return flat_labels(problem.space.unravel(x))[place]
