"""L-BFGS with a zoom line search."""

import jax
import jax.numpy as jnp

from ppl_em.optimize.base import Maximum, Objective


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
