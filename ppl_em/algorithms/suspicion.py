"""Whether a run that has ended may be on its way to infinity: cheap, and asked of every run.

At a maximum the information predicts what is lost on the way back to where the run began. Far out
on a ray the information is next to nothing, and predicts no loss where all is lost.
"""

import jax.numpy as jnp
import numpy as np

from ppl_em.algorithms.boundary_profile import Landscape
from ppl_em.algorithms.boundary_watch import Watch
from ppl_em.algorithms.history import Run
from ppl_em.likelihood import marginal_information
from ppl_em.params import ends

MAX_PARAMS = 300
"""Parameters up to which this is asked: it takes the information, which the end needs anyway."""

PREDICTED = 0.01
"""Loss, in nats, that is predicted in directions that are asked about: at most."""

FLAT = 0.01
"""Eigenvalue, in units of the diagonal, below which a direction may be one that costs nothing."""

LOST = 0.1
"""Loss that is found there, from which a run may be on its way to infinity."""

MAX_HALVINGS = 6
"""How often the way back is halved where nothing is finite."""


def way_back(run: Run) -> np.ndarray | None:
    """A way (p,) from where a run has ended on which more is lost than the information predicts.

    `None` if there is none, as at a maximum; and where it cannot be told.
    """
    problem, history = run.problem, run.history
    known = len(Watch(problem, run.e_step, run.limits.stopping).ends)
    on_rays = history.at is not None and history.at.rays is not None
    if not known or on_rays or not 0 < history.x.size <= MAX_PARAMS:
        return None
    found = history.information
    if found is None or found[0] is not history.x:
        found = (
            history.x,
            marginal_information(run.e_step, problem, history.x, history.e_state),
        )
        history.information = found
    matrix = found[1].matrix
    if not np.all(np.isfinite(matrix)):
        return None
    ground = Landscape(problem, run.e_step)
    value, state = ground.look(history.x, history.e_state)
    if not np.isfinite(value):
        return None
    x = np.asarray(history.x, float)
    for origin in (np.asarray(history.start, float), np.zeros(x.size)):
        back = _unnoticed(run, matrix, origin - x)
        for _ in range(MAX_HALVINGS if back.any() else 0):
            there, _ = ground.look(history.x + jnp.asarray(back, history.x.dtype), state)
            if np.isfinite(there):
                break
            back = back / 2
        if back.any() and np.isfinite(there) and value - there > LOST:
            return back
    return None


def _unnoticed(run: Run, matrix: np.ndarray, away: np.ndarray) -> np.ndarray:
    """The part of `away` (p,) that the information (p, p) says costs nothing.

    Of coordinates that may go to infinity: not those that are held, or next to a bound.
    """
    problem, at = run.problem, run.history.at
    limits = ends(problem.space)
    outwards = np.where(away > 0, limits[:, 0], limits[:, 1])
    may_go = np.isnan(outwards) | np.isinf(outwards)
    if at is not None:
        may_go &= ~at.held
    alone = 0.5 * np.abs(np.diag(matrix)) * away**2 <= PREDICTED
    found = np.where(may_go & alone, away, 0.0)
    part = np.flatnonzero(may_go & ~alone)
    inside = matrix[np.ix_(part, part)]
    scale = 1 / np.sqrt(np.abs(np.diag(inside)))
    values, vectors = np.linalg.eigh(scale[:, None] * inside * scale)
    lengths = vectors.T @ (away[part] / scale)
    flat = (np.abs(values) < FLAT) & (0.5 * np.abs(values) * lengths**2 <= PREDICTED)
    found[part] = scale * (vectors[:, flat] @ lengths[flat])
    return found
