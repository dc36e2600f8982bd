"""Whether a run that has ended may be on its way to infinity: cheap, and asked of every run.

At a maximum the information predicts what is lost on the way back to where the run began. Far out
on a ray the information is next to nothing, and predicts no loss where all is lost.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.algorithms.boundary_profile import Landscape, Settled
from ppl_em.algorithms.boundary_watch import Watch
from ppl_em.algorithms.history import Run
from ppl_em.likelihood import marginal_information
from ppl_em.params import ends
from ppl_em.util import moved_by

MAX_PARAMS = 300
"""Parameters up to which this is asked: it takes the information, which the end needs anyway."""

PREDICTED = 0.01
"""Loss, in nats, that is predicted in directions that are asked about: at most."""

FLAT = 0.01
"""Eigenvalue, in units of the diagonal, below which a direction may be one that costs nothing."""

LOST = 0.1
"""Loss that is found there, from which a run may be on its way to infinity."""

EASED = 5.0
"""Unconstrained value of what is at a bound, for that."""

PART = 0.1
"""Part of the way back on which hardly anything is lost if a run is far out."""

MAX_HALVINGS = 6
"""How often the way back is halved where nothing is finite."""


def eased(run: Run) -> jax.Array:
    """Where a run is, (p,), less close to bounds, for approximations.

    Differences of scores are made of rounding where a latent's standard deviation is next to 0.
    """
    history = run.history
    if history.at is None or run.e_step.noise is None:
        return history.x
    x = jnp.clip(history.x, -EASED, EASED)
    return jnp.where(history.at.held, x, history.x)


def way_back(run: Run, x: jax.Array) -> np.ndarray | None:
    """A way (p,) from `x` (p,), as of `eased`, with more loss than the information predicts.

    `None` if there is none, as at a maximum; and where it cannot be told.
    """
    problem, history = run.problem, run.history
    known = len(Watch(problem, run.e_step, run.limits.stopping).ends)
    on_rays = history.at is not None and history.at.rays is not None
    if not known or on_rays or not 0 < x.size <= MAX_PARAMS:
        return None
    found = history.information
    if found is None or found[0] is not x:
        found = x, marginal_information(run.e_step, problem, x, history.e_state)
        history.information = found
    matrix = found[1].matrix
    ground = Landscape(problem, run.e_step)
    value, state = ground.look(x, history.e_state)
    if not (np.all(np.isfinite(matrix)) and np.isfinite(value)):
        return None
    here = np.asarray(x, float)
    level = np.zeros(x.size, bool)
    begun = np.asarray(history.start, float)
    for origin in (begun, np.zeros(x.size)) if begun.any() else (begun,):
        if run.e_step.noise is not None:  # its information is not known where there is next to none
            level = _is_level(ground, Settled(x, state, value, 0.0), origin - here)
        back = _unnoticed(run, matrix, origin - here, level)
        for _ in range(MAX_HALVINGS if back.any() else 0):
            there, _ = ground.look(moved_by(x, back), state)
            if np.isfinite(there):
                break
            back = back / 2
        if back.any() and np.isfinite(there) and value - there > LOST:
            return back
    return None


def _is_level(ground: Landscape, here: Settled, away: np.ndarray) -> np.ndarray:
    """Free coordinates (p,) in which little is lost over a part of the way `away` (p,).

    But all at last: a tenth of the way costs a hundredth at a maximum.
    """
    found = np.zeros(len(away), bool)
    free = np.isnan(ends(ground.problem.space)).all(axis=1)
    for place in np.flatnonzero(free & (away != 0)).tolist():
        parts = (moved_by(here.x, part * away[place], place) for part in (1.0, PART))
        whole, part = (here.value - ground.look(there, here.state)[0] for there in parts)
        found[place] = whole > LOST and part < PART**3 * whole
    return found


def _unnoticed(run: Run, matrix: np.ndarray, away: np.ndarray, level: np.ndarray) -> np.ndarray:
    """The part of `away` (p,) that the information (p, p) says costs nothing, or is `level` (p,).

    Of coordinates that may go to infinity: not those that are held, or next to a bound.
    """
    problem, at = run.problem, run.history.at
    limits = ends(problem.space)
    outwards = np.where(away > 0, limits[:, 0], limits[:, 1])
    may_go = np.isnan(outwards) | np.isinf(outwards)
    if at is not None:
        may_go &= ~at.held
    alone = level | (0.5 * np.abs(np.diag(matrix)) * away**2 <= PREDICTED)
    found = np.where(may_go & alone, away, 0.0)
    part = np.flatnonzero(may_go & ~alone)
    inside = matrix[np.ix_(part, part)]
    scale = 1 / np.sqrt(np.abs(np.diag(inside)))
    values, vectors = np.linalg.eigh(scale[:, None] * inside * scale)
    lengths = vectors.T @ (away[part] / scale)
    flat = (np.abs(values) < FLAT) & (0.5 * np.abs(values) * lengths**2 <= PREDICTED)
    found[part] = scale * (vectors[:, flat] @ lengths[flat])
    return found
