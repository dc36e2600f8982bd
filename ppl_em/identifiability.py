"""Parameters that the data do not determine: at a boundary, or along a flat direction."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.ends import AtBounds
from ppl_em.information import Information, flat_and_jacobian, trouble
from ppl_em.params import flat_labels
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
    held = at_boundary(problem, x, information)
    if held.any() and not held.all():
        places = np.flatnonzero(boundary_labels(problem, x, held))
        note = (
            f"{', '.join(labels[i] for i in places)} at the boundary of the parameter space: no "
            f"standard errors there; the others are given with these held"
        )
        return holding(problem, x, information, held), places, note
    directions = flat_directions(information)
    if directions is None:
        return information, np.zeros(0, int), ""
    jacobian = np.asarray(flat_and_jacobian(problem, x)[1])
    size = np.linalg.norm(jacobian, axis=1)
    along = np.linalg.norm(jacobian @ directions, axis=1)
    places = np.flatnonzero(along > 1e-3 * size)
    if len(places) == np.sum(size > 0):
        return information, np.zeros(0, int), ""
    count = directions.shape[1]
    what = "a direction" if count == 1 else f"{count} directions"
    note = (
        f"the likelihood is flat along {what} (a rotation or a scale, say) that "
        f"{_shortened([labels[i] for i in places])} take part in: no standard errors there; the "
        f"others do not depend on it"
    )
    return replace(information, problem_text="", flat=directions), places, note


def _at_bounds(
    problem: Problem, x: jax.Array, information: Information, at: AtBounds
) -> tuple[Information, np.ndarray, str]:
    """As `set_aside`, for parameters that a run has gone to the bounds of."""
    labels = flat_labels(problem.constrain(x))
    diagonal = np.abs(np.diag(information.matrix)) + np.abs(information.gradient)
    idle = ~at.held & (diagonal < 1e-9 * (1 + np.max(np.where(at.held, 0.0, diagonal))))
    held = at.held | idle | at_boundary(problem, x, information)
    places = np.flatnonzero(boundary_labels(problem, x, held))
    note = (
        f"{at.sentences}: no standard errors there; the others are given with these held. A "
        f"likelihood ratio for one variance of zero has half the p-value of a chi-squared with one "
        f"degree of freedom"
    )
    if idle.any():
        names = ", ".join(labels[i] for i in np.flatnonzero(boundary_labels(problem, x, idle)))
        note += f"; {names} cannot be told there"
    return holding(problem, x, information, held), places, note


def flat_directions(information: Information) -> np.ndarray | None:
    """Orthonormal directions without curvature, (p, r); None if there are none, or in doubt."""
    matrix = information.matrix
    diagonal = np.diag(matrix)
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
    return (response < 1e-3) & (flat_log_likelihood < 1e-3)


def boundary_labels(problem: Problem, x: jax.Array, held: np.ndarray) -> np.ndarray:
    """Flattened parameters that only coordinates in `held` (p,) move, shape (P,)."""
    jacobian = np.asarray(flat_and_jacobian(problem, x)[1])
    elsewhere = np.asarray(flat_and_jacobian(problem, jnp.zeros_like(x))[1])
    still = np.all(np.abs(jacobian[:, ~held]) < 1e-12, axis=1)
    return still & np.any(elsewhere[:, held] != 0, axis=1)


def holding(
    problem: Problem, x: jax.Array, information: Information, held: np.ndarray
) -> Information:
    """The information with coordinates `held` (p,) at their values: they get zero variance."""
    free = ~held
    text = trouble(problem, x, information.matrix[np.ix_(free, free)], np.flatnonzero(free))
    return replace(information, problem_text=text, held=held)
