"""Latents that move along with the parameters, so that scores have little noise.

The log-likelihood does not change when the latents are transformed by an invertible map that
depends on the parameters. If that map follows the posterior as the parameters change, less
information is missing in the new coordinates: complete-data scores vary less about their mean, the
score of the log-likelihood, and Louis's difference of two matrices loses fewer digits. The map
taken here is affine: a shift of every latent, and a stretching of every site.

References
----------
Mira, Solgi & Imparato (2013), Zero variance Markov chain Monte Carlo for Bayesian estimators,
Statistics and Computing 23: to the first order, this adds their control variates to the scores.
Meng & van Dyk (1997), The EM algorithm, an old folk-song sung to a fast new tune, JRSS B 59, for
the choice among missing data.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.problem import Problem

MAX_ITERATIONS = 30
"""Of conjugate gradients, for the shift; it need not be exact."""

TOLERANCE = 1e-2
"""Relative residual at which they stop."""


class Motion(NamedTuple):
    """With parameters `start` (p,) + d: u to center + exp(stretch d) (u - center) + shift d.

    `center` (D,), `shift` and `stretch` (D, p).
    """

    start: jax.Array
    center: jax.Array
    shift: jax.Array
    stretch: jax.Array

    def at(self, x: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Where `u` (D,) goes when the parameters go to `x` (p,), and the log-Jacobian, (D,)."""
        step = x - self.start
        log_scale = self.stretch @ step
        return self.center + jnp.exp(log_scale) * (u - self.center) + self.shift @ step, log_scale


def log_joint(problem: Problem, motion: Motion, x: jax.Array, u: jax.Array) -> jax.Array:
    """The log-joint of `x` (p,) and the moved latents, as a density of `u` (D,); a scalar."""
    moved, log_scale = motion.at(x, u)
    return problem.log_joint_unconstrained(problem.constrain(x), moved) + jnp.sum(log_scale)


def shift(problem: Problem, x: jax.Array, center: jax.Array) -> jax.Array:
    """How the mode of the quadratic model about `center` (D,) follows `x` (p,): (D, p)."""

    def density(x: jax.Array, u: jax.Array) -> jax.Array:
        return problem.log_joint_unconstrained(problem.constrain(x), u)

    _, push = jax.linearize(jax.grad(density, argnums=1), x, center)
    mixed = jax.vmap(lambda v: push(v, jnp.zeros_like(center)))(jnp.eye(x.size, dtype=x.dtype)).T
    return _solve(jax.vmap(lambda v: -push(jnp.zeros_like(x), v), 1, 1), mixed)


def still(x: jax.Array, center: jax.Array | np.ndarray) -> Motion:
    """Latents that do not move from where they are, for parameters `x` (p,); `center` (D,)."""
    zeros = np.zeros((center.size, x.size), x.dtype)
    return Motion(x, *jax.device_put((center.astype(x.dtype), zeros, zeros)))


def _solve(multiply: Callable[[jax.Array], jax.Array], columns: jax.Array) -> jax.Array:
    """Solutions (D, p), by conjugate gradients, of equations with right-hand sides `columns`."""

    def going(residual: jax.Array) -> jax.Array:
        return jnp.sum(residual**2, axis=0) > TOLERANCE**2 * jnp.sum(columns**2, axis=0)

    def body(carry: tuple) -> tuple:
        solution, residual, direction, count = carry
        square, image = jnp.sum(residual**2, axis=0), multiply(direction)
        length = jnp.where(going(residual), square / jnp.sum(direction * image, axis=0), 0.0)
        solution, residual = solution + length * direction, residual - length * image
        growth = jnp.where(length == 0, 0.0, jnp.sum(residual**2, axis=0) / square)
        return solution, residual, residual + growth * direction, count + 1

    start = (jnp.zeros_like(columns), columns, columns, jnp.zeros((), int))
    return jax.lax.while_loop(
        lambda carry: jnp.any(going(carry[1])) & (carry[-1] < MAX_ITERATIONS), body, start
    )[0]
