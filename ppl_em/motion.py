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

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.posterior import WeightedDraws
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


@jax.jit
def find_motion(problem: Problem, x: jax.Array, posterior: WeightedDraws) -> Motion:
    """Follow the posterior from `x` (p,), as far as draws there tell.

    The shift is that of the mode of the quadratic model about the mean of the draws. Stretchings
    are found by regression of the scores that remain. Whatever does not lower the variance of the
    scores over the draws is left out; the scores' means are right for any motion.
    """
    draws = posterior.draws.reshape(-1, posterior.draws.shape[-1])
    center = jnp.mean(draws, axis=0)
    still = Motion(x, center, *[jnp.zeros((center.size, x.size), x.dtype)] * 2)

    def gradient(x: jax.Array, u: jax.Array) -> jax.Array:
        return jax.grad(lambda u: problem.log_joint_unconstrained(problem.constrain(x), u))(u)

    def minus_hessian(v: jax.Array) -> jax.Array:
        return -jax.jvp(lambda u: gradient(x, u), (center,), (v,))[1]

    def follow(column: jax.Array) -> jax.Array:
        return jax.scipy.sparse.linalg.cg(
            minus_hessian, column, tol=TOLERANCE, maxiter=MAX_ITERATIONS
        )[0]

    shift = jax.vmap(follow, in_axes=1, out_axes=1)(jax.jacfwd(gradient)(x, center))
    slopes = jax.lax.map(lambda u: gradient(x, u), draws, batch_size=64)
    scores = jax.lax.map(
        lambda u: jax.grad(log_joint, argnums=2)(problem, still, x, u), draws, batch_size=64
    )
    shift = jnp.where(_lowers(scores, slopes @ shift), shift, 0.0)
    scores = scores + slopes @ shift

    sites = np.concatenate(
        [np.full(int(np.prod(site.shape_u)), i) for i, site in enumerate(problem.spec.latents)]
    )
    stretching = 1 + (draws - center) * slopes  # mean zero, by parts
    by_site = jax.ops.segment_sum(stretching.T, sites, num_segments=len(problem.spec.latents)).T
    coefficients = -jnp.linalg.lstsq(by_site - by_site.mean(axis=0), scores)[0]
    coefficients = jnp.where(_lowers(scores, by_site @ coefficients), coefficients, 0.0)
    return still._replace(shift=shift, stretch=coefficients[sites])


def _lowers(scores: jax.Array, added: jax.Array) -> jax.Array:
    """Which columns (p,) of `scores` (n, p) vary less with `added` (n, p)."""
    return jnp.var(scores + added, axis=0) < jnp.var(scores, axis=0)  # False where NaN
