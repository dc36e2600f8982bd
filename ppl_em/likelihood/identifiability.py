"""Parameters that the data do not determine: at a boundary, or along a flat direction."""

from dataclasses import replace

import jax
import numpy as np

from ppl_em.likelihood.active_constraints import explain, hold, moved_only_by, rough_coordinates
from ppl_em.likelihood.delta_method import flat_and_jacobian
from ppl_em.likelihood.information import Information, holding, not_definite
from ppl_em.params import AtBounds, flat_labels
from ppl_em.problem import Problem

FLAT = 1e-5
"""Curvature, relative to that of single parameters, below which a direction counts as flat."""

CURVED = 1e-3
"""Relative curvature that all other directions must have, so that there is no doubt."""


def set_aside(
    problem: Problem, x: jax.Array, information: Information, at: AtBounds | None = None
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

    Returns
    -------
    tuple
        The information with the rest held or left out, the flattened parameters that then have
        no standard error, ascending positions, and a sentence that names them; nothing is
        changed, and the sentence is empty, where all or none of them are determined.
    """
    labels = flat_labels(problem.constrain(x))
    if at is not None:
        return _at_bounds(problem, x, information, at)
    without, notes = explain(problem, x, information)
    information = hold(problem, x, information)
    held = at_boundary(problem, x, information)
    if held.any() and not held.all():
        places = np.flatnonzero(moved_only_by(problem, x, held))
        notes.append(
            f"{', '.join(labels[i] for i in places)} at the boundary of the parameter space: no "
            f"standard errors there; the others are given with these held"
        )
        everywhere = np.union1d(without, places).astype(int)
        information = holding(problem, x, information, np.eye(len(held))[:, held])
        return information, everywhere, "; ".join(notes)
    directions = flat_directions(information)
    if directions is None:
        return information, without, "; ".join(notes)
    jacobian = np.asarray(flat_and_jacobian(problem, x)[1])
    size = np.linalg.norm(jacobian, axis=1)
    along = np.linalg.norm(jacobian @ directions, axis=1)
    places = np.flatnonzero(along > 1e-3 * size)
    if len(places) == np.sum(size > 0):  # nothing is determined, however small its curvature is
        first = directions[:, 0]
        smallest = float(first @ information.matrix @ first)
        reason = information.reason or not_definite(problem, x, smallest, first)
        return replace(information, reason=reason), np.zeros(0, int), ""
    count = directions.shape[1]
    what = "a direction" if count == 1 else f"{count} directions"
    note = (
        f"the likelihood is flat along {what} (a rotation or a scale, say) that "
        f"{_shortened([labels[i] for i in places])} take part in: no standard errors there; the "
        f"others do not depend on it"
    )
    return replace(information, reason="", held=directions), places, note


def _at_bounds(
    problem: Problem, x: jax.Array, information: Information, at: AtBounds
) -> tuple[Information, np.ndarray, str]:
    """As `set_aside`, for parameters that a run has gone to the bounds of."""
    labels = flat_labels(problem.constrain(x))
    diagonal = np.abs(np.diag(information.matrix)) + np.abs(information.gradient)
    idle = ~at.held & (diagonal < 1e-9 * (1 + np.max(np.where(at.held, 0.0, diagonal))))
    held = at.held | idle | at_boundary(problem, x, information)
    places = np.flatnonzero(moved_only_by(problem, x, held))
    note = (
        f"{at.sentences}: no standard errors there; the others are given with these held. A "
        f"likelihood ratio for one variance of zero has half the p-value of a chi-squared with one "
        f"degree of freedom"
    )
    if idle.any():
        names = ", ".join(labels[i] for i in np.flatnonzero(moved_only_by(problem, x, idle)))
        note += f"; {names} cannot be told there"
    return holding(problem, x, information, np.eye(len(held))[:, held]), places, note


def flat_directions(information: Information) -> np.ndarray | None:
    """Orthonormal directions without curvature, (p, r); None if there are none, or in doubt."""
    matrix = information.matrix
    diagonal = np.diag(matrix)
    if information.held is not None:
        return None
    if not np.all(np.isfinite(matrix)) or np.any(information.score_error) or diagonal.min() <= 0:
        return None
    scale = 1 / np.sqrt(diagonal)
    values, vectors = np.linalg.eigh(scale[:, None] * matrix * scale)
    flat = np.abs(values) < FLAT
    if not flat.any() or np.any(values[~flat] < CURVED):
        return None
    return np.linalg.qr(scale[:, None] * vectors[:, flat])[0]


def _shortened(names: list[str], most: int = 6) -> str:
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def at_boundary(problem: Problem, x: jax.Array, information: Information) -> np.ndarray:
    """Coordinates of `x` (p,) that have run off to a boundary, shape (p,).

    There neither the parameters on their own scale nor the log-likelihood respond to them: a
    probability that is 0 has an unconstrained value of minus infinity, in theory.
    """
    flat, jacobian = jax.device_get(flat_and_jacobian(problem, x))
    response = np.max(np.abs(jacobian) / np.maximum(1, np.abs(flat))[:, None], axis=0)
    flat_log_likelihood = np.abs(np.diag(information.matrix)) + np.abs(information.gradient)
    return (
        (response < 1e-3) & (flat_log_likelihood < 1e-3) & ~rough_coordinates(problem, information)
    )
