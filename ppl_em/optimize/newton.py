"""Numerical maximisers on an unconstrained vector; neither ever returns a lower objective."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.optimize.base import Maximum, Objective
from ppl_em.optimize.differences import hessian

LOST = 0.8
"""Power of the rounding unit, in units of 1 / sqrt(curvature), of a difference without digits."""


class Curvature(NamedTuple):
    """What Newton's method knows about an objective: minus its inverse Hessian, made definite.

    `inverse` is (p, p); `stale` says that it has to be computed anew before the next step.
    """

    inverse: jax.Array
    stale: jax.Array


def no_curvature(x: jax.Array) -> Curvature:
    """Nothing is known yet, for parameters `x` (p,)."""
    return Curvature(*jax.device_put((np.zeros((x.size, x.size), x.dtype), np.ones((), bool))))


def newton(
    objective: Objective, x: jax.Array, curvature: Curvature, max_steps: int, tol: float
) -> tuple[Maximum, Curvature]:
    """Maximise by Newton's method, with the Hessian made definite and the step halved as needed.

    A Hessian, kept up to date by secants (BFGS), serves as long as each step leaves a tenth or less
    of what there is to gain, here and, by `curvature`, for another objective that differs little.
    Where the gain is lost in the rounding of the objective, the gradient decides.

    Parameters
    ----------
    objective
        Twice differentiable.
    x
        Start, shape (p,).
    curvature
        From an earlier call, or `no_curvature`.
    max_steps
        At most so many steps, each of one gradient, or of 1 + 2 p with a new Hessian.
    tol
        Stop once a step promises to gain less than this, in units of the objective.

    References
    ----------
    Nocedal & Wright (2006), Numerical Optimization, section 3.4 (modified Hessians),
    algorithm 3.1 (backtracking) and equation 6.17 (BFGS). Hager & Zhang (2005), A new conjugate
    gradient method with guaranteed descent, SIAM J. Optim. 16, section 4 (line search within
    rounding).
    """
    value_and_grad = jax.value_and_grad(objective)

    def promise(gradient: jax.Array, inverse: jax.Array) -> jax.Array:
        return 0.5 * gradient @ inverse @ gradient

    def body(carry: tuple) -> tuple:
        x, value, gradient, known, _, count, _ = carry
        inverse = jax.lax.cond(
            known.stale,
            lambda: _definite_inverse(*hessian(jax.grad(objective), x)),
            lambda: known.inverse,
        )
        promised = promise(gradient, inverse)
        step = inverse @ gradient
        scale, new_value, new_gradient = _line_search(value_and_grad, x, value, step, promised)
        left = promise(new_gradient, inverse)
        lost = promised < 1e2 * _noise(value)
        even = (new_value >= value - _noise(value)) & (left < promised)
        better = jnp.where(lost, even, new_value > value)
        poor = ~lost & ((scale < 1) | ~better | (left > 0.1 * promised))
        poor |= jnp.any(jnp.diag(inverse) == 0)
        inverse = jnp.where(lost, inverse, secant(inverse, scale * step, gradient - new_gradient))
        x = jnp.where(better, x + scale * step, x)
        value = jnp.where(better, new_value, value)
        gradient = jnp.where(better, new_gradient, gradient)
        left = jnp.where(better, left, promised)
        more = (left > floor(value)) & (better | ~(known.stale | lost))
        return x, value, gradient, Curvature(inverse, poor), left, count + 1, more

    def floor(value: jax.Array) -> jax.Array:
        return jnp.maximum(tol, 1e-6 * _noise(value))

    first, gradient = value_and_grad(x)
    promised = jnp.where(curvature.stale, jnp.inf, promise(gradient, curvature.inverse))
    start = (x, first, gradient, curvature, promised, jnp.zeros((), int), promised > floor(first))
    x, value, gradient, curvature, left, count, _ = jax.lax.while_loop(
        lambda carry: carry[-1] & (carry[-2] < max_steps), body, start
    )
    return Maximum(x, value, first, jnp.linalg.norm(gradient), left, count), curvature


def _noise(value: jax.Array) -> jax.Array:
    """Size of rounding errors in an objective of this value."""
    return 2 * jnp.finfo(value.dtype).eps * jnp.abs(value)


def _line_search(
    value_and_grad: Callable, x: jax.Array, value: jax.Array, step: jax.Array, gain: jax.Array
) -> tuple:
    """Scale, value and gradient at the first of 1, 1/2, 1/4, ... that gains enough of `gain`."""

    def refused(carry: tuple) -> jax.Array:
        scale, new_value, _ = carry
        enough = new_value >= value + 2e-4 * scale * gain - _noise(value)
        return ~(enough & jnp.isfinite(new_value)) & (scale > 2.0**-30)

    def halve(carry: tuple) -> tuple:
        scale = carry[0] / 2
        return scale, *value_and_grad(x + scale * step)

    start = (jnp.full((), 2.0, x.dtype), jnp.full((), -jnp.inf, x.dtype), step)
    return jax.lax.while_loop(refused, halve, start)


@jax.jit
def secant(inverse: jax.Array, step: jax.Array, fall: jax.Array) -> jax.Array:
    """`inverse` (p, p) so changed that it maps `fall`, the gradient's over `step` (p,), to it."""
    product = step @ fall
    usable = product > 1e-8 * jnp.sum(jnp.abs(step * fall))  # in whatever units
    weight = 1 / jnp.where(usable, product, 1.0)
    left = jnp.eye(step.size, dtype=step.dtype) - weight * jnp.outer(step, fall)
    updated = left @ inverse @ left.T + weight * jnp.outer(step, step)
    return jnp.where(usable, updated, inverse)


def _definite_inverse(hessian: jax.Array, width: jax.Array) -> jax.Array:
    """Inverse of minus a symmetric matrix (p, p) with its eigenvalues made positive.

    It is scaled to a unit diagonal first, so that a parameter near its boundary, whose curvature
    is tiny on the unconstrained scale, still gets a full step. One at its boundary stays: the
    differences over `width` (p,) that it was found by are lost in rounding.
    """
    diagonal = jnp.abs(jnp.diag(hessian))
    moves = width * jnp.sqrt(diagonal) > jnp.finfo(hessian.dtype).eps ** LOST
    scale = jnp.where(moves, 1 / jnp.sqrt(jnp.where(moves, diagonal, 1.0)), 0.0)
    values, vectors = jnp.linalg.eigh(-scale[:, None] * hessian * scale)
    root = scale[:, None] * vectors / jnp.sqrt(jnp.maximum(jnp.abs(values), 1e-8))
    return root @ root.T
