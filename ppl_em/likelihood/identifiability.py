"""Parameters that the data do not determine: at a boundary, or along a flat direction."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.likelihood.active_constraints import explain, hold, moved_only_by, rough_coordinates
from ppl_em.likelihood.delta_method import flat_and_jacobian
from ppl_em.likelihood.information import Information, frame, holding, not_definite
from ppl_em.params import AtBounds, flat_labels, has_end
from ppl_em.problem import Problem
from ppl_em.util import moved_by

SHARE = 1e-6
"""Share of a parameter, in a direction that is flat, from which it has no standard error."""

WEAK = 1e-6
"""Curvature, times 1 + x^2, below which it is asked whether a parameter has any influence."""

STILL = 1e-3
"""Change of the log-likelihood, in nats, over a distance that was to make one of 1."""

LEVEL = 1e-7
"""Score along a direction up to which that may be flat."""

STATIONARY = 1e-4
"""Largest score near a maximum. This and the one above are for single standard errors."""

CURVED = 1e-3
"""Curvature that all other directions must have, so that there is no doubt."""

BENT = 10.0
"""Curvature of flat curves that bend, in units of the largest score that is left."""

FLAT_END = 1e-3
"""Response of the log-likelihood to a coordinate from which that has not run off to a bound."""

BENDING = 0.05
"""Relative change of slopes, over a step of 1, from which a coordinate is a logarithm."""

OFF = (
    "at the boundary of the parameter space: no standard errors there; the others are given with "
    "these held"
)
IDLE = (
    "without influence on the likelihood: no standard errors there; the others do not depend on it"
)

Look = Callable[[jax.Array], float]
"""The log-likelihood at x (p,)."""


def set_aside(
    problem: Problem,
    x: jax.Array,
    information: Information,
    at: AtBounds | None = None,
    look: Look | None = None,
) -> tuple[Information, np.ndarray, str]:
    """Standard errors of what the data determine, where they do not determine everything.

    Parameters
    ----------
    problem, x
        The fitted parameters, x of shape (p,).
    information
        There.
    at
        Parameters that are known to be at a bound.
    look
        The log-likelihood, if it has no noise: tells parameters without influence from those whose
        units are large.

    Returns
    -------
    tuple
        The information with the rest held or left out, the flattened parameters that then have
        no standard error, ascending positions, and a sentence that names them; nothing is
        changed, and the sentence is empty, where all or none of them are determined.
    """
    labels = flat_labels(problem.constrain(x))
    without, notes = explain(problem, x, information)
    information = hold(problem, x, information)
    size = len(information.gradient)
    known = np.zeros(size, bool) if at is None else at.held
    if at is not None:
        note = f"{at.sentences}: no standard errors there; the others are given with these held"
        if any(where.power for where in at.found.values()):
            note += (
                ". A likelihood ratio for one variance of zero has half the p-value of a "
                "chi-squared with one degree of freedom"
            )
        notes.append(note)
    rays = np.zeros(size, bool) if at is None else at.on_rays
    idle = ~(known | rays) & without_influence(problem, x, information, look)
    off = ~(known | rays | idle) & at_boundary(problem, x, information)
    held = known | idle | off
    if at is not None and at.across is not None:
        without = np.union1d(without, np.flatnonzero(_moved_by(problem, x, at))).astype(int)
        information = holding(problem, x, information, at.across)
    if held.any() and not held.all():
        for some, text in ((off, OFF), (idle, IDLE if at is None else "cannot be told there")):
            places = np.flatnonzero(moved_only_by(problem, x, some)) if some.any() else ()
            if len(places):
                notes.append(f"{', '.join(labels[i] for i in places)} {text}")
        without = np.union1d(without, np.flatnonzero(moved_only_by(problem, x, held)))
        without = without.astype(int)
        information = holding(problem, x, information, np.eye(size)[:, held])
    directions = flat_directions(information, x, look)
    if directions is None:
        return information, without, "; ".join(notes)
    scale = np.diag(frame(information.matrix, None))
    jacobian = np.asarray(flat_and_jacobian(problem, x)[1]) * scale
    length = np.linalg.norm(jacobian, axis=1)
    along = np.linalg.norm(jacobian @ (directions / scale[:, None]), axis=1)
    flat = np.flatnonzero(along > SHARE * length)
    if len(np.union1d(flat, without)) == np.sum(length > 0):  # nothing is determined
        first = directions[:, 0]
        smallest = float(first @ information.matrix @ first)
        matrix = information.matrix
        reason = information.reason or not_definite(problem, x, smallest, first, matrix)
        return replace(information, reason=reason), np.zeros(0, int), ""
    if len(flat):
        notes.append(_flat_note([labels[i] for i in flat], directions.shape[1]))
    information = holding(problem, x, information, directions / scale[:, None] ** 2)
    information = replace(information, flat=directions)
    return information, np.union1d(without, flat).astype(int), "; ".join(notes)


def _moved_by(problem: Problem, x: jax.Array, at: AtBounds) -> np.ndarray:
    """Flattened parameters that move as `x` (p,) goes along the rays to infinity, (P,)."""
    jacobian = np.asarray(flat_and_jacobian(problem, x)[1])
    return np.any(jacobian[:, at.on_rays] != 0, axis=1)


def _flat_note(names: list[str], count: int) -> str:
    what = "a direction" if count == 1 else f"{count} directions"
    return (
        f"the likelihood is flat along {what} (a rotation or a scale, say) that "
        f"{_shortened(names)} take part in: no standard errors there; the others do not depend "
        f"on it"
    )


def flat_directions(
    information: Information, x: jax.Array | None = None, look: Look | None = None
) -> np.ndarray | None:
    """Directions without curvature, (p, r), in units of the matrix's diagonal; None if none.

    Next to a maximum, flat curves that bend (rotations) have a curvature of the size of the score
    that is left. With `look` at hand, a curvature that small is believed where it predicts how the
    log-likelihood falls.
    """
    matrix, basis = information.matrix, information.frame
    if not np.all(np.isfinite(matrix)) or np.any(information.score_error) or not basis.shape[1]:
        return None
    score, inside = information.inside
    values, vectors = np.linalg.eigh(inside)
    limit = information.resolution * max(1.0, values[-1])
    level = np.abs(vectors.T @ score) < LEVEL
    flat = level & (np.abs(values) <= limit)
    left = float(np.max(np.abs(score)))
    if look is not None and x is not None and left < STATIONARY:
        limit = max(limit, BENT * left)
        doubtful = level & ~flat & (np.abs(values) <= limit)
        here = look(x) if doubtful.any() else np.nan
        for i in np.flatnonzero(doubtful):
            move = jnp.asarray(basis @ vectors[:, i] / np.sqrt(abs(values[i])), x.dtype)
            loss = here - (look(x + move) + look(x - move)) / 2
            flat[i] = not (values[i] > 0 and 0.25 < loss < 1.0)
    if not flat.any() or values[0] < -limit or np.any(values[~flat] < CURVED):
        return None
    return basis @ vectors[:, flat]


def without_influence(
    problem: Problem, x: jax.Array, information: Information, look: Look | None
) -> np.ndarray:
    """Coordinates of `x` (p,) on which the log-likelihood does not depend, shape (p,).

    A curvature of next to nothing is that of a parameter in a large unit, or rounding. The first
    predicts a loss of 1 for some distance, which `look` then finds, or does not.
    """
    diagonal, gradient = np.diag(information.matrix), information.gradient
    idle = (diagonal == 0) & (gradient == 0) & ~rough_coordinates(problem, information)
    if look is None:
        return idle
    point = np.asarray(x, float)
    weak = (diagonal * (1 + point**2) < WEAK) & (np.abs(gradient) * (1 + np.abs(point)) < WEAK)
    weak &= np.isfinite(diagonal) & ~rough_coordinates(problem, information)
    here = look(x) if weak.any() else np.nan
    for i in np.flatnonzero(weak).tolist():
        distance = np.sqrt(2 / abs(diagonal[i])) if diagonal[i] != 0 else 1 + abs(point[i])
        changes = [_change(look, x, here, i, side * distance) for side in (-1, 1)]
        idle[i] = max(changes) < STILL
    return idle


def _change(look: Look, x: jax.Array, here: float, place: int, distance: float) -> float:
    """Change of the log-likelihood `here` over a distance, less where that is not finite."""
    for _ in range(60):
        there = look(moved_by(x, distance, place))
        if np.isfinite(there):
            return abs(there - here)
        distance /= 4
    return np.inf


def _shortened(names: list[str], most: int = 6) -> str:
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def at_boundary(problem: Problem, x: jax.Array, information: Information) -> np.ndarray:
    """Coordinates of `x` (p,) that have run off to an end of their support, shape (p,).

    There the log-likelihood does not respond to them: a probability that is 0 has an unconstrained
    value of minus infinity, in theory. Coordinates with an end are logarithms of distances from
    it, so that their responses have no units. Where a step of 1 leaves the parameters' slopes as
    they are, a coordinate has the unit of a parameter instead, and is not near an end: the lowest
    of ordered values, what is below the diagonal of a Cholesky factor, `softplus` far from 0.
    """
    response = np.abs(np.diag(information.matrix)) + np.abs(information.gradient)
    off = has_end(problem.space) & (response < FLAT_END) & ~rough_coordinates(problem, information)
    for i in np.flatnonzero(off).tolist():
        points = x, moved_by(x, 1.0, i)
        here, there = (np.asarray(flat_and_jacobian(problem, point)[1])[:, i] for point in points)
        off[i] = np.all(np.abs(there - here) >= BENDING * np.abs(here))
    return off
