"""Latents that are exactly Gaussian given data and parameters, in independent blocks."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from ppl_em.params import Params
from ppl_em.posterior.base import constrain_draws
from ppl_em.problem import Latents, Problem
from ppl_em.structure import Blocks


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gaussian:
    """N(mean, covariance) on the unconstrained scale, block by block.

    `mean` is (D,); `scale_tril` (G, d, d) holds a Cholesky factor of each block's covariance.
    """

    mean: jax.Array
    scale_tril: jax.Array
    blocks: Blocks = field(metadata={"static": True})

    def points(self) -> jax.Array:
        """2 d equally weighted points, (2d, D), that integrate every quadratic exactly.

        They lie at the mean plus and minus sqrt(d) times each column of the Cholesky factors,
        all blocks at once: coupling terms between blocks are zero by hypothesis.
        """
        size = self.blocks.block_size
        columns = jnp.moveaxis(self.scale_tril, -1, 0) * jnp.sqrt(size)
        offsets = self.blocks.join(columns)
        return self.mean + jnp.concatenate([offsets, -offsets])

    def expected_log_joint(self, problem: Problem, params: Params) -> jax.Array:
        """Q(params): exact, because the log-joint is quadratic in the latents; a scalar."""

        def density(u: jax.Array) -> jax.Array:
            return problem.log_joint_unconstrained(params, u)

        points = self.points()
        if len(points) <= 16:
            return jnp.mean(jax.vmap(density)(points))
        return jnp.mean(jax.lax.map(jax.checkpoint(density), points, batch_size=16))

    def sample(
        self, problem: Problem, params: Params, rng_key: jax.Array, num_samples: int
    ) -> Latents:
        """Independent exact draws, each of shape (num_samples, *site_shape)."""
        shape = (num_samples, *self.scale_tril.shape[:2])
        noise = jax.random.normal(rng_key, shape, self.mean.dtype)
        offsets = self.blocks.join(jnp.einsum("gij,ngj->ngi", self.scale_tril, noise))
        return constrain_draws(problem, params, self.mean + offsets)
