"""A look at the log-joint near a point: values, gradients, products with its Hessian, and slopes.

One compiled program serves the checks of a model, the search for zeros in its Hessian, and that for
independent terms; compiling one is cheaper than compiling three that differ little.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.params import Params
from ppl_em.problem.problem import Problem
from ppl_em.problem.terms import terms
from ppl_em.util import compiled, depth_of, has_operation

logger = logging.getLogger("ppl_em")

AT_ONCE = 4
"""Points that are looked at side by side; more would be idle when one or two are asked for."""

WIDE = 10_000
"""Number of latents above which points are looked at one by one, and for no more than is asked:
another small program costs less there."""


class Look(NamedTuple):
    """The log-joint at n points, each with a direction.

    `density` (n,) is the log-joint without the Jacobian of the latents, `by_param` (n, p) and
    `by_latent` (n, D) are its gradients. `products` (n, D) are those of the Hessian of
    `log_joint_unconstrained` with the directions, `slopes` (n, E) the derivatives of `terms` along
    them; both (n, 0) where they were not asked for.
    """

    density: jax.Array
    by_param: jax.Array
    by_latent: jax.Array
    products: jax.Array
    slopes: jax.Array


def density_and_gradients(problem: Problem, x: jax.Array, u: jax.Array) -> tuple:
    """The log-joint at `x` (p,) and `u` (D,), without Jacobian, and its gradients in both."""
    return jax.value_and_grad(log_joint_at, argnums=(1, 2))(problem, x, u)


def log_joint_at(problem: Problem, x: jax.Array, u: jax.Array) -> jax.Array:
    """The log-joint at `x` (p,) and `u` (D,), without Jacobian; a scalar."""
    params = problem.constrain(x)
    return problem.log_joint(params, problem.constrain_latents(params, u))


def with_derivatives(problem: Problem, values: Params, program: Any) -> Problem:
    """The problem, with a way to its second derivatives if the model has rules for gradients only.

    `program` is that of the model's terms, with all of its operations.
    """
    if not has_operation(program.jaxpr, "custom_vjp"):
        return problem
    x = problem.unconstrain(values)
    depth = depth_of(lambda at, own: log_joint_at(own, *at), (x, problem.start), problem)
    how = "differences of gradients" if depth == 1 else "gradients of gradients"
    logger.info("the model has rules for gradients only: second derivatives are %s", how)
    return problem.with_spec(gradients=depth)


def look(
    problem: Problem, x: jax.Array, points: np.ndarray, directions: np.ndarray | None = None
) -> Look:
    """The log-joint and its derivatives at `x` (p,) and at `points` (n, D), along `directions`.

    Parameters
    ----------
    problem, x
        The problem and its unconstrained parameters, shape (p,).
    points
        Unconstrained latents, shape (n, D).
    directions
        One for each point, shape (n, D). Without them there are neither products nor slopes;
        slopes also need the problem's flag `term_slopes`, and supports that do not move.
    """
    # Idle coordinates are treated here, so that finding them compiles nothing again.
    idle = np.zeros(points.shape[1], bool) if problem.spec.idle is None else problem.spec.idle.value
    plain = problem.bare()
    active = [np.where(idle, 0, a) for a in (points, directions) if a is not None]
    size, side = len(points), AT_ONCE if points.shape[1] <= WIDE else 1
    rows = np.minimum(np.arange(-(-size // side) * side), size - 1).reshape(-1, side)
    chunks = [jax.device_get(_look(plain, x, *(a[some] for a in active))) for some in rows]
    found: Look = jax.tree.map(lambda *parts: np.concatenate(parts)[:size], *chunks)
    if directions is not None and idle.any():
        found.products[:, idle] = -directions[:, idle]
        if found.slopes.size:  # those of the idle coordinates come first
            found.slopes[:, np.flatnonzero(idle)] = (-points * directions)[:, idle]
    return found


@compiled
def _look(
    problem: Problem, x: jax.Array, points: jax.Array, directions: jax.Array | None = None
) -> Look:
    """At a few points of a problem that does not know its idle coordinates."""
    if directions is None:
        value, (by_param, by_latent) = jax.vmap(partial(density_and_gradients, problem, x))(points)
        none = jnp.zeros((len(points), 0))
        return Look(value, by_param, by_latent, none, none)
    return jax.vmap(partial(_look_along, problem, x))(points, directions)


def _look_along(problem: Problem, x: jax.Array, u: jax.Array, direction: jax.Array) -> Look:
    def along(function: Callable) -> tuple:
        return jax.jvp(function, (u,), (direction,))

    params, slopes = problem.constrain(x), jnp.zeros(0)
    if problem.spec.has_moving_supports:
        value, (by_param, by_latent) = density_and_gradients(problem, x, u)
        whole = problem.density(params)
        return Look(value, by_param, by_latent, along(jax.grad(whole))[1], slopes)
    first, second = along(partial(density_and_gradients, problem, x))
    (value, (by_param, by_latent)), (_, (_, product)) = first, second
    product += along(jax.grad(lambda u: sum(map(jnp.sum, problem.transformed(u)[1]))))[1]
    if problem.spec.term_slopes:
        slopes = along(partial(terms, problem, params))[1]
    return Look(value, by_param, by_latent, product, slopes)
