"""Numerical maximisers on an unconstrained vector; neither ever returns a lower objective."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Objective = Callable[[jax.Array], jax.Array]
"""Unconstrained vector (p,) to the scalar to maximise."""


class Maximum(NamedTuple):
    """Where a maximiser stopped.

    `value` is the objective at `x`, `start_value` that at the starting point, `gradient_norm`
    the Euclidean norm of the gradient at `x`, `promised` the gain that the next step would
    promise there, `num_steps` the accepted and refused steps.
    """

    x: jax.Array
    value: jax.Array
    start_value: jax.Array
    gradient_norm: jax.Array
    promised: jax.Array
    num_steps: jax.Array


def hessian(gradient: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Hessian at `x` (p,) by central differences of a gradient, symmetric, (p, p).

    About nine digits in double precision. Next to second derivatives by automatic
    differentiation it compiles in half the time, and stays finite where they do not: at
    structural zeros, such as the density of a detection at an unoccupied site.
    """
    width = jnp.finfo(x.dtype).eps ** (1 / 3) * (1 + jnp.abs(x))
    points = jnp.concatenate([x + jnp.diag(width), x - jnp.diag(width)])
    upper, lower = jnp.split(jax.lax.map(gradient, points), 2)
    matrix = (upper - lower) / (2 * width[:, None])
    return (matrix + matrix.T) / 2


def newton(objective: Objective, x: jax.Array, max_steps: int, tol: float) -> Maximum:
    """Maximise by Newton's method, with the Hessian made definite and the step halved as needed.

    Parameters
    ----------
    objective
        Twice differentiable.
    x
        Start, shape (p,).
    max_steps
        At most so many Hessians, each of 2 p gradients.
    tol
        Stop once a step promises to gain less than this, in units of the objective.

    References
    ----------
    Nocedal & Wright (2006), Numerical Optimization, section 3.4 (modified Hessians) and
    algorithm 3.1 (backtracking).
    """
    value_and_grad = jax.value_and_grad(objective)

    def direction(x: jax.Array, gradient: jax.Array) -> jax.Array:
        # Scaled to a unit diagonal, so that a parameter near its boundary, whose curvature is
        # tiny on the unconstrained scale, still gets a full step; one at its boundary stays.
        curvature = -hessian(jax.grad(objective), x)
        diagonal = jnp.abs(jnp.diag(curvature))
        moves = diagonal > jnp.finfo(x.dtype).eps * jnp.max(diagonal)
        scale = jnp.where(moves, 1 / jnp.sqrt(jnp.where(moves, diagonal, 1.0)), 0.0)
        values, vectors = jnp.linalg.eigh(scale[:, None] * curvature * scale)
        inverse = 1 / jnp.maximum(jnp.abs(values), 1e-8)
        return scale * (vectors @ (inverse * (vectors.T @ (scale * gradient))))

    def backtrack(x, value, gradient, step):
        slope = gradient @ step

        def refused(carry: tuple) -> jax.Array:
            scale, new_value, halvings = carry
            gained = new_value >= value + 1e-4 * scale * slope
            return ~(gained & jnp.isfinite(new_value)) & (halvings < 30)

        def halve(carry: tuple) -> tuple:
            scale, _, halvings = carry
            scale = scale / 2
            return scale, objective(x + scale * step), halvings + 1

        one = jnp.ones((), x.dtype)
        scale, new_value, _ = jax.lax.while_loop(
            refused, halve, (one, objective(x + step), jnp.zeros((), int))
        )
        return x + scale * step, new_value

    def body(carry: tuple) -> tuple:
        x, value, gradient, step, count, _ = carry
        new_x, new_value = backtrack(x, value, gradient, step)
        better = new_value > value
        x = jnp.where(better, new_x, x)
        value, gradient = value_and_grad(x)
        step = direction(x, gradient)
        return x, value, gradient, step, count + 1, better & (0.5 * gradient @ step > tol)

    value, gradient = value_and_grad(x)
    step = direction(x, gradient)
    start = (x, value, gradient, step, jnp.zeros((), int), 0.5 * gradient @ step > tol)
    x, last, gradient, step, count, _ = jax.lax.while_loop(
        lambda carry: carry[-1] & (carry[-2] < max_steps), body, start
    )
    return Maximum(x, last, value, jnp.linalg.norm(gradient), 0.5 * gradient @ step, count)


def lbfgs(
    objective: Objective, x: jax.Array, max_steps: int, tol: float, memory: int = 10
) -> Maximum:
    """Maximise by L-BFGS with a zoom line search (optax).

    Parameters
    ----------
    objective
        Differentiable.
    x
        Start, shape (p,).
    max_steps
        At most so many line searches.
    tol
        Stop once the predicted gain, half the gradient times the step, is below this or below
        rounding.
    memory
        Number of stored curvature pairs.

    References
    ----------
    Nocedal & Wright (2006), algorithms 7.5, 3.5 and 3.6; `optax.lbfgs`.
    """

    import optax  # takes a sixth of the time of importing NumPyro: only when used

    def loss(x: jax.Array) -> jax.Array:
        return -objective(x)

    optimizer = optax.lbfgs(memory_size=memory)
    value_and_grad = optax.value_and_grad_from_state(loss)

    def body(carry: tuple) -> tuple:
        x, state, best_x, best, count, _ = carry
        value, gradient = value_and_grad(x, state=state)
        updates, state = optimizer.update(
            gradient, state, x, value=value, grad=gradient, value_fn=loss
        )
        new_x = optax.apply_updates(x, updates)
        new_value = optax.tree_utils.tree_get(state, "value")
        promised = -0.5 * gradient @ updates
        better = new_value < best
        best_x = jnp.where(better, new_x, best_x)
        best = jnp.where(better, new_value, best)
        floor = jnp.maximum(tol, jnp.finfo(x.dtype).eps * jnp.abs(best))
        return new_x, state, best_x, best, count + 1, better & (promised > floor)

    first = loss(x)
    start = (x, optimizer.init(x), x, first, jnp.zeros((), int), jnp.isfinite(first))
    _, state, x, value, count, _ = jax.lax.while_loop(
        lambda carry: carry[-1] & (carry[-2] < max_steps), body, start
    )
    gradient = jax.grad(loss)(x)
    direction, _ = optax.scale_by_lbfgs(memory).update(gradient, state[0], x)
    promised = 0.5 * gradient @ direction
    return Maximum(x, -value, -first, jnp.linalg.norm(gradient), promised, count)
