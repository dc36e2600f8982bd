"""The Hessian of a log-likelihood, by automatic differentiation or differences of gradients."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.e_step import Approximation, DeterministicEStep, Strength, evaluated
from ppl_em.likelihood.information import RESOLUTION, Information, checked, frame
from ppl_em.optimize import hessian_on_host
from ppl_em.problem import Problem
from ppl_em.util import compiled

MAX_HESSIAN = 2e7
"""Parameters times data up to which Hessians are computed by automatic differentiation."""

COLUMNS = 8
"""Columns of a Hessian that are computed side by side."""

BY_DIFFERENCES = 1e-8
"""As `RESOLUTION`, for Hessians by differences of gradients."""

DEPENDENT = 1e-4
"""Eigenvalue, of a matrix scaled to a unit diagonal, from which coordinates are a poor frame."""

WIDTH = 3e-4
"""How far apart gradients are taken in such a frame, in standard errors."""

MAX_FRAMES = 2
"""Frames that are tried after the coordinates."""


@compiled(static_argnums=0)
def _score_and_hessian(
    e_step: DeterministicEStep, problem: Problem, x: jax.Array, state: Any
) -> tuple:
    def objective(x: jax.Array) -> jax.Array:
        return e_step.log_likelihood(problem, problem.constrain(x), state)

    score = jax.grad(objective)

    def column(direction: jax.Array) -> jax.Array:
        return jax.jvp(score, (x,), (direction,))[1]

    # Not all at once: wide batches are no faster, and can lock up a processor with few threads.
    columns = jax.lax.map(column, jnp.eye(x.size, dtype=x.dtype), batch_size=COLUMNS)
    return score(x), columns


def is_large(problem: Problem) -> bool:
    """Whether a Hessian by automatic differentiation would be too large."""
    size = sum(np.size(leaf) for leaf in problem.leaves) + problem.num_latents
    return problem.space.size * size > MAX_HESSIAN


@compiled(static_argnums=0)
def _values_and_scores(
    e_step: DeterministicEStep,
    problem: Problem,
    points: jax.Array,
    count: int | jax.Array,
    state: Any,
) -> tuple[jax.Array, jax.Array]:
    """Values (m,) and gradients (m, p) at the first `count` of some `points` (m, p).

    One program for any count.
    """

    def objective(x: jax.Array) -> jax.Array:
        return e_step.log_likelihood(problem, problem.constrain(x), state)

    def found(i: jax.Array, seen: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        value, gradient = jax.value_and_grad(objective)(points[i])
        gradient = jnp.where(jnp.isfinite(value), gradient, jnp.nan)  # that of no value is 0
        return seen[0].at[i].set(value), seen[1].at[i].set(gradient)

    start = jnp.zeros_like(points[:, 0]), jnp.zeros_like(points)
    return jax.lax.fori_loop(0, count, found, start)


def _evaluated(
    e_step: DeterministicEStep, problem: Problem, points: np.ndarray, count: int, state: Any
) -> tuple[jax.Array, jax.Array]:
    def found(state: Any) -> tuple[jax.Array, jax.Array]:
        return _values_and_scores(e_step, problem, points, count, state)

    return evaluated(e_step, problem, points[0], state, found, lambda found: found[0])


def held_value_and_score(
    e_step: DeterministicEStep, problem: Problem, x: jax.Array, state: Any
) -> tuple[float, np.ndarray]:
    """A deterministic E-step's objective at `x` (p,), and its gradient, (p,), the state held.

    By the program that also takes gradients for differences.
    """
    points = np.broadcast_to(np.asarray(x), (2 * x.size + 1, x.size))
    values, scores = jax.device_get(_evaluated(e_step, problem, points, 1, state))
    return float(values[0]), scores[0]


def _score_and_differences(
    e_step: DeterministicEStep, problem: Problem, x: jax.Array, state: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The gradient, (p,), and the Hessian by differences of gradients, (p, p).

    Where the coordinates of x turn out to be a poor frame, in badly scaled units or nearly
    dependent, the differences are taken anew in one in which the information is about the identity.
    """
    coarse = e_step if e_step.noise is None else cast(Approximation, e_step).for_curvature()
    same = coarse == e_step
    gradient: np.ndarray | None = None

    def scores(points: np.ndarray, more: int) -> np.ndarray:
        points = np.concatenate([points, np.asarray(x)[None]]).astype(x.dtype)
        found = _evaluated(coarse, problem, points, len(points) - 1 + more, state)[1]
        return np.asarray(found, float)

    def around(points: np.ndarray) -> np.ndarray:
        nonlocal gradient
        found = scores(points, int(same and gradient is None))
        gradient = found[-1] if same and gradient is None else gradient
        return found[:-1]

    hessian, width = hessian_on_host(around, np.asarray(x))
    if gradient is None:
        gradient = held_value_and_score(e_step, problem, x, state)[1]
    for _ in range(MAX_FRAMES):
        basis = _whitening(-hessian, width)
        if basis is None:
            break
        moves, here = WIDTH * basis.T, np.asarray(x)
        ahead, behind = np.split(scores(np.concatenate([here + moves, here - moves]), 0)[:-1], 2)
        inside = (ahead - behind) @ basis / (2 * WIDTH)
        if not np.all(np.isfinite(inside)):
            break
        back = np.linalg.inv(basis)
        hessian = back.T @ ((inside + inside.T) / 2) @ back
    return np.asarray(gradient), hessian


def _whitening(matrix: np.ndarray, width: np.ndarray) -> np.ndarray | None:
    """Directions (p, p) in which information of `matrix` (p, p) is about the identity.

    None where differences of `width` (p,) along coordinates have been good enough: of a length
    that is small next to standard errors, but not too small, and far from dependent.
    """
    if not np.all(np.isfinite(matrix)):
        return None
    scale = np.diag(frame(matrix, None))
    values, vectors = np.linalg.eigh(scale[:, None] * matrix * scale)
    steps = width / scale
    if np.all(np.abs(values) > DEPENDENT) and np.all((steps > 1e-8) & (steps < 1e-2)):
        return None
    return scale[:, None] * vectors / np.sqrt(np.maximum(np.abs(values), BY_DIFFERENCES))


def marginal_information(
    e_step: DeterministicEStep, problem: Problem, x: jax.Array, state: Any
) -> Information:
    """Information of a deterministic E-step's objective.

    By automatic differentiation, or by differences of gradients where that is too large or the
    objective is an approximation that is differentiable once.
    """
    hessian, resolution = np.array(np.nan), RESOLUTION
    if not is_large(problem) and e_step.noise is None:

        def found(state: Any) -> tuple:
            return jax.device_get(_score_and_hessian(e_step, problem, x, state))

        gradient, hessian = evaluated(e_step, problem, x, state, found, lambda found: found[1])
    if not np.all(np.isfinite(hessian)):
        gradient, hessian = _score_and_differences(e_step, problem, x, state)
        resolution = BY_DIFFERENCES
    kind = "exact log-likelihood" if e_step.strength is Strength.EXACT else e_step.kind
    method = f"Hessian of the {kind.replace('_', ' ')}"
    gradient, matrix = np.asarray(gradient, float), -np.asarray(hessian, float)
    return checked(problem, x, gradient, matrix, method, np.zeros_like(matrix), resolution)


def value_and_score(
    e_step: DeterministicEStep, problem: Problem, x: jax.Array, state: Any
) -> tuple:
    """Objective at `x` (p,), its gradient (p,), and the E-step's state.

    By Fisher's identity; approximations have gradients of their own.
    """

    def found(state: Any) -> tuple:
        return _value_and_score(e_step, problem, x, state)

    return evaluated(e_step, problem, x, state, found, lambda found: found[0])


@compiled(static_argnums=0)
def _value_and_score(
    e_step: DeterministicEStep, problem: Problem, x: jax.Array, state: Any
) -> tuple:
    posterior, state, info = e_step.step(problem, problem.constrain(x), state)
    if e_step.noise is not None or not e_step.by_fisher(state):

        def objective(x: jax.Array) -> jax.Array:
            return e_step.log_likelihood(problem, problem.constrain(x), state)

        return *jax.value_and_grad(objective)(x), state
    held = jax.lax.stop_gradient(posterior)

    def q_function(x: jax.Array) -> jax.Array:
        return held.expected_log_joint(problem, problem.constrain(x))

    return info.objective, jax.grad(q_function)(x), state
