"""Mean-field approximation: independent normals on the unconstrained scale (`AutoNormal`)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.params import Params
from ppl_em.posterior.base import constrain_draws, on_the_line
from ppl_em.posterior.linalg import roots
from ppl_em.posterior.variational import MAX_HESSIAN, GaussianGuide, guide_hessian
from ppl_em.problem import Latents, Problem
from ppl_em.structure import Blocks
from ppl_em.util import cholesky, compiled, solve_lower

SD_SAMPLES = 2000
"""Draws behind standard deviations on the model's own scale."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Factorized(GaussianGuide):
    """q(u) = product of Normal(loc, scale), with the base draws that expectations use.

    `loc` and `scale` are (D,); `base` (n, D) are fixed standard-normal points. `blocks` are those
    of the posterior: q is independent within them, too.
    """

    @staticmethod
    def start(blocks: Blocks, u: jax.Array, scale: float) -> jax.Array:
        """Parameters (G, 2d) of the law around `u` (D,) with this standard deviation."""
        loc = blocks.split(u)
        return jnp.concatenate([loc, jnp.full_like(loc, np.log(scale))], axis=-1)

    @classmethod
    def unpack(cls, phi: jax.Array, base: jax.Array, blocks: Blocks) -> "Factorized":
        """From parameters (G, 2d): locations, then logs of scales."""
        loc, log_scale = jnp.split(phi, 2, axis=-1)
        return cls(blocks.join(loc), jnp.exp(blocks.join(log_scale)), base, blocks)

    def pack(self) -> jax.Array:
        """The parameters, (G, 2d)."""
        parts = [self.blocks.split(self.loc), jnp.log(self.blocks.split(self.scale))]
        return jnp.concatenate(parts, axis=-1)

    def moved(self, noise: jax.Array) -> jax.Array:
        """From standard-normal `noise` (n, D) to draws from q, (n, D)."""
        return self.loc + self.scale * noise

    def log_densities(self, u: jax.Array) -> jax.Array:
        """log q of every coordinate for `u` (n, D), shape (n, D)."""
        z = (u - self.loc) / self.scale
        return -0.5 * z**2 - jnp.log(self.scale) - 0.5 * jnp.log(2 * jnp.pi)

    def entropy(self) -> jax.Array:
        """Entropy of q; a scalar."""
        return jnp.sum(jnp.log(self.scale) + 0.5 * (1 + jnp.log(2 * jnp.pi)))

    def covariance(self, problem: Problem, params: Params) -> jax.Array:
        """Covariance of the latents by linear response, block by block, (G, d, d).

        How far the means of q move if the log-joint is tilted by t'u is the covariance of u, where
        q is good at means, which it is more often than at variances: with H the Hessian of the
        bound in (loc, log scale), it is the corner of -H^-1 that belongs to loc. Exact if the
        posterior is Gaussian. NaN where q is not at a maximum. 2d products of H, and a (2d, 2d)
        inverse for each block.

        References
        ----------
        Giordano, Broderick & Jordan (2018), Covariances, robustness, and variational Bayes,
        JMLR 19.
        """
        size = self.blocks.block_size
        tril = cholesky(-guide_hessian(self, problem, params))
        identity = jnp.broadcast_to(jnp.eye(2 * size)[:, :size], (*tril.shape[:2], size))
        half = solve_lower(tril, identity)
        return jnp.swapaxes(half, -1, -2) @ half

    def block_roots(self) -> jax.Array:
        """Square roots of the covariances of q within the blocks, diagonal, (G, d, d)."""
        return jax.vmap(jnp.diag)(self.blocks.split(self.scale))

    def block_covariances(self, problem: Problem, params: Params) -> jax.Array | None:
        """Those by linear response; None in blocks that are too large for them."""
        if 2 * self.blocks.block_size > MAX_HESSIAN:
            return None
        return self.covariance(problem, params)

    def site_sds(self, problem: Problem, params: Params, rng_key: jax.Array) -> Latents:
        """Of all sites, over normal draws with the covariances of linear response."""
        own, better = self.block_roots(), _linear_response(problem, params, self)
        own = own if better is None else roots(better, own)
        deviations = self.blocks.join(jnp.sqrt(jnp.sum(own**2, axis=-1)))
        exact = problem.unravel(deviations)
        noise = jax.random.normal(rng_key, (SD_SAMPLES, *self.loc.shape), self.loc.dtype)
        away = self.blocks.join(jnp.einsum("gij,ngj->ngi", own, self.blocks.split(noise)))
        draws = constrain_draws(problem, params, self.loc + away)
        sds = {name: jnp.std(value, axis=0) for name, value in draws.items()}
        return sds | {name: exact[name] for name in on_the_line(problem, params, self.loc)}


@compiled
def _linear_response(problem: Problem, params: Params, law: Factorized) -> jax.Array | None:
    return law.block_covariances(problem, params)
