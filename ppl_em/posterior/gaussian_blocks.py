"""Latents that are exactly Gaussian given data and parameters, in independent blocks."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.posterior.linalg import inverse_transpose, log_det, normal_terms, standard_normal
from ppl_em.structure import Blocks
from ppl_em.util import cholesky, solve_lower, solve_lower_transposed


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, covariance) on the unconstrained scale, block by block.

    `mean` is (d,). Of each of the G blocks of k coordinates, `precision_tril` (G, k, k) holds the
    Cholesky factor of the precision and `root` (G, k, k) its inverse transpose, a square root of
    the covariance.
    """

    mean: jax.Array
    precision_tril: jax.Array
    root: jax.Array
    blocks: Blocks = field(metadata={"static": True})

    @classmethod
    def around(
        cls, blocks: Blocks, precision: jax.Array, here: jax.Array, gradient: jax.Array
    ) -> "Gaussian":
        """The law with a precision (G, k, k) and a log-density of this gradient at `here` (d,)."""
        tril = cholesky(precision)
        half = solve_lower(tril, blocks.split(gradient)[..., None])
        shift = solve_lower_transposed(tril, half)[..., 0]
        return cls(here + blocks.join(shift), tril, inverse_transpose(tril), blocks)

    @property
    def center(self) -> jax.Array:
        """The mean, (d,)."""
        return self.mean

    @property
    def center_is_mean(self) -> np.ndarray:
        """Not unless the transform is the identity, (d,)."""
        return np.zeros(self.mean.size, bool)

    def cancellation(self) -> jax.Array:
        """How many times larger the entries of the precision are than what is left of them.

        As `GaussianChain.cancellation`; a scalar.
        """
        pivots = jnp.diagonal(self.precision_tril, axis1=-2, axis2=-1) ** 2
        return jnp.max(jnp.sum(self.precision_tril**2, axis=-1) / pivots)

    def log_density(self, u: jax.Array) -> jax.Array:
        """log q(u), all blocks together; a scalar."""
        away = jnp.einsum("gji,gj->gi", self.precision_tril, self.blocks.split(u - self.mean))
        return standard_normal(away, u.size) + log_det(self.precision_tril)

    def log_densities(self, u: jax.Array) -> jax.Array:
        """Terms of `log_density`, (d,), each at a coordinate of its block."""
        away = jnp.einsum("gji,gj->gi", self.precision_tril, self.blocks.split(u - self.mean))
        return self.blocks.join(normal_terms(away, self.precision_tril))

    def points(self) -> jax.Array:
        """2 k equally weighted points, (2k, d), that integrate every quadratic exactly.

        They lie at the mean plus and minus sqrt(k) times each column of the square roots, all
        blocks at once: coupling terms between blocks are zero by hypothesis.
        """
        offsets = np.sqrt(self.blocks.block_size) * self.columns()
        return self.mean + jnp.concatenate([offsets, -offsets])

    def columns(self) -> jax.Array:
        """k directions, (k, d), whose outer products sum to the covariances within blocks."""
        return self.blocks.join(jnp.moveaxis(self.root, -1, 0))

    def solve(self, vector: jax.Array) -> jax.Array:
        """The covariance times a vector, (d,)."""
        noise = jnp.einsum("gji,gj->gi", self.root, self.blocks.split(vector))
        return self.blocks.join(jnp.einsum("gij,gj->gi", self.root, noise))

    def log_scale(self) -> jax.Array:
        """Log-determinant of the square root of every block's covariance, (G,)."""
        return jnp.sum(jnp.log(jnp.diagonal(self.root, axis1=1, axis2=2)), axis=1)

    def draw(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """Independent draws, (num_samples, d)."""
        shape = (num_samples, *self.root.shape[:2])
        noise = jax.random.normal(rng_key, shape, self.mean.dtype)
        return self.mean + self.blocks.join(jnp.einsum("gij,ngj->ngi", self.root, noise))
