"""Information where constraints are active: what can still be estimated, and at what price.

On the surface of the active constraints the curvature is that of the Lagrangian,
−∇²ℓ + Σ ν_i ∇²c_i, and the covariance is its inverse in the null space of their Jacobian.

References
----------
Aitchison & Silvey (1958), Maximum-likelihood estimation of parameters subject to restraints,
Annals of Mathematical Statistics 29.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ppl_em.likelihood.delta_method import flat_and_jacobian
from ppl_em.likelihood.information import Information, holding
from ppl_em.optimize import kkt
from ppl_em.params import ActiveConstraint, flat_labels
from ppl_em.problem import Problem, all_conditions, curvature, nearest_feasible
from ppl_em.util import zeros

SIDES = {-1: "lower", 1: "upper", 2: "equal"}


def active_constraints(
    problem: Problem, x: jax.Array, information: Information
) -> tuple[ActiveConstraint, ...]:
    """The constraints that `x` (p,) is on the bound of, with the price of each."""
    if not problem.spec.restrictions:
        return ()
    found = all_conditions(problem)
    values, side, prices = _priced(problem, x, information)
    labels = [label for row in problem.spec.restrictions for label in row.labels]
    return tuple(
        ActiveConstraint(
            labels[i],
            float(values[i]),
            float(found.lower[i] if side[i] == -1 else found.upper[i]),
            SIDES[int(side[i])],
            float(prices[i] if side[i] == 2 else abs(prices[i])),
        )
        for i in np.flatnonzero(side)
    )


def _priced(
    problem: Problem, x: jax.Array, information: Information
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values of all constraints, sides of the active ones, and dl/d(bound), each (m,)."""
    found, point = all_conditions(problem), np.asarray(x, dtype=float)
    values = found.values(point)
    side = kkt.sides(values, found)
    prices = np.zeros(len(values))
    if side.any():
        held = kkt.multipliers(information.gradient, found.jacobian(point), side)
        prices[held.rows] = held.values
    return values, side, prices


def hold(problem: Problem, x: jax.Array, information: Information) -> Information:
    """The information at `x` (p,) along active constraints that cost something, and equations.

    Parameters without a gradient are held too.
    """
    rough = rough_coordinates(problem, information)
    if rough.any():
        information = holding(problem, x, information, np.eye(len(rough))[:, rough])
    if not problem.spec.restrictions or not np.all(np.isfinite(information.gradient)):
        return information
    _, side, prices = _priced(problem, x, information)
    rows = np.flatnonzero((side == 2) | (prices != 0))
    if not len(rows):
        return information
    bend = curvature(problem, x, problem.spec.restrictions, jnp.asarray(prices, x.dtype))
    jacobian = all_conditions(problem).jacobian(np.asarray(x, dtype=float))[rows]
    information = replace(information, matrix=information.matrix + np.asarray(bend))
    return holding(problem, x, information, jacobian.T)


def moved(
    problem: Problem, x: jax.Array, step: np.ndarray, information: Information
) -> jax.Array | None:
    """`x` (p,) after a step (p,) along the constraints that `hold` holds there; None if outside."""
    new_x = jax.device_put(np.asarray(x) + step.astype(x.dtype))
    if not problem.spec.restrictions:
        return new_x
    _, side, prices = _priced(problem, x, information)
    return nearest_feasible(problem, new_x, np.where((side == 2) | (prices != 0), side, 0))


def rough_coordinates(problem: Problem, information: Information) -> np.ndarray:
    """Coordinates of `x` (p,) of parameters to which the log-likelihood has no gradient, (p,)."""
    size = problem.space.size
    if not problem.spec.rough:
        return np.zeros(size, bool)
    numbers = problem.space.unravel(np.arange(size))
    leaves = [leaf for name in problem.spec.rough for leaf in jax.tree.leaves(numbers[name])]
    named = np.isin(np.arange(size), np.concatenate([np.ravel(leaf) for leaf in leaves]))
    return named & np.all(information.matrix == 0, axis=0) & (information.gradient == 0)


def explain(
    problem: Problem, x: jax.Array, information: Information
) -> tuple[np.ndarray, list[str]]:
    """Flattened parameters that `hold` leaves without a standard error, and sentences why."""
    labels = flat_labels(problem.constrain(x))
    rough = rough_coordinates(problem, information)
    missing, notes = np.zeros(len(labels), bool), []
    if rough.any():
        missing |= moved_only_by(problem, x, rough)
        names = ", ".join(labels[i] for i in np.flatnonzero(missing))
        notes.append(
            f"the likelihood has no gradient in {names}: no standard errors there; the others are "
            f"given with these held"
        )
    active = active_constraints(problem, x, information)
    if active:
        known = hold(problem, x, information).held
        if known is not None:
            jacobian = np.asarray(flat_and_jacobian(problem, x)[1])
            size = np.linalg.norm(jacobian, axis=1)
            basis = np.linalg.qr(known)[0]
            along = np.linalg.norm(jacobian - (jacobian @ basis) @ basis.T, axis=1)
            missing |= (size > 0) & (along < 1e-8 * size)
        names = ", ".join(constraint.name for constraint in active)
        verb = "is" if len(active) == 1 else "are"
        notes.append(
            f"{names} {verb} active: standard errors are given with that held, none in directions "
            f"across it, where they would be one-sided"
        )
    return np.flatnonzero(missing), notes


def moved_only_by(problem: Problem, x: jax.Array, held: np.ndarray) -> np.ndarray:
    """Flattened parameters that only coordinates in `held` (p,) move, shape (P,)."""
    jacobian, params = np.asarray(flat_and_jacobian(problem, x)[1]), problem.constrain(x)
    elsewhere = np.asarray(flat_and_jacobian(problem, zeros(x.shape, x.dtype))[1])
    sizes = jax.tree.map(lambda leaf: np.full(leaf.shape, np.max(np.abs(leaf))), params)
    dust = 1e-12 * np.minimum(1.0, ravel_pytree(sizes)[0])[:, None]  # in the site's own unit
    still = np.all(np.abs(jacobian[:, ~held]) <= dust, axis=1)
    return still & np.any(elsewhere[:, held] != 0, axis=1)
