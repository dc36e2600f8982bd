"""Latents that are exactly Gaussian given data and parameters, in independent blocks."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.structure import Blocks


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
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

    @property
    def center(self) -> jax.Array:
        """The mean, (d,)."""
        return self.mean

    @property
    def center_is_mean(self) -> np.ndarray:
        """Not unless the transform is the identity, (d,)."""
        return np.zeros(self.blocks.index.value.size, bool)

    def log_density(self, u: jax.Array) -> jax.Array:
        """log q(u), all blocks together; a scalar."""
        away = jnp.einsum("gji,gj->gi", self.precision_tril, self.blocks.split(u - self.mean))
        log_det = jnp.sum(jnp.log(jnp.diagonal(self.precision_tril, axis1=-2, axis2=-1)))
        return log_det - 0.5 * jnp.sum(away**2) - 0.5 * u.size * np.log(2 * np.pi)

    def points(self) -> jax.Array:
        """2 k equally weighted points, (2k, d), that integrate every quadratic exactly.

        They lie at the mean plus and minus sqrt(k) times each column of the square roots, all
        blocks at once: coupling terms between blocks are zero by hypothesis.
        """
        columns = jnp.moveaxis(self.root, -1, 0) * jnp.sqrt(self.blocks.block_size)
        offsets = self.blocks.join(columns)
        return self.mean + jnp.concatenate([offsets, -offsets])

    def draw(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """Independent draws, (num_samples, d)."""
        shape = (num_samples, *self.root.shape[:2])
        noise = jax.random.normal(rng_key, shape, self.mean.dtype)
        return self.mean + self.blocks.join(jnp.einsum("gij,ngj->ngi", self.root, noise))
