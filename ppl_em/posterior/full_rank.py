"""Full-rank approximation: a normal law with all covariances (`AutoMultivariateNormal`)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.posterior.linalg import log_det
from ppl_em.posterior.variational import GaussianGuide
from ppl_em.structure import Blocks
from ppl_em.util import solve_lower


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class FullRank(GaussianGuide):
    """q(u) = N(loc, scale scale'), block by block, with the base draws that expectations use.

    `loc` is (D,), `scale` (G, d, d) lower triangular with a positive diagonal. Covariances between
    blocks that are independent a posteriori are zero in the best q too.
    """

    correlated: ClassVar[bool] = True

    @staticmethod
    def start(blocks: Blocks, u: jax.Array, scale: float) -> jax.Array:
        """Parameters (G, d + d (d + 1) / 2) of the law around `u` (D,) with this deviation."""
        size = blocks.block_size
        rows, columns = np.tril_indices(size)
        packed = jnp.where(jnp.asarray(rows == columns), np.log(scale), 0.0).astype(u.dtype)
        packed = jnp.broadcast_to(packed, (blocks.num_blocks, len(rows)))
        return jnp.concatenate([blocks.split(u), packed], axis=-1)

    @classmethod
    def unpack(cls, phi: jax.Array, base: jax.Array, blocks: Blocks) -> "FullRank":
        """From parameters (G, P): locations, then the triangle with logs on its diagonal."""
        size = blocks.block_size
        rows, columns = np.tril_indices(size)
        packed = phi[:, size:]
        packed = jnp.where(jnp.asarray(rows == columns), jnp.exp(packed), packed)
        tril = jnp.zeros((len(phi), size, size), phi.dtype).at[:, rows, columns].set(packed)
        return cls(blocks.join(phi[:, :size]), tril, base, blocks)

    def pack(self) -> jax.Array:
        """The parameters, (G, P)."""
        rows, columns = np.tril_indices(self.blocks.block_size)
        packed = self.scale[:, rows, columns]
        diagonal = jnp.asarray(rows == columns)
        packed = jnp.where(diagonal, jnp.log(jnp.where(diagonal, packed, 1.0)), packed)
        return jnp.concatenate([self.blocks.split(self.loc), packed], axis=-1)

    def moved(self, noise: jax.Array) -> jax.Array:
        """From standard-normal `noise` (n, D) to draws from q, (n, D)."""
        away = jnp.einsum("gij,ngj->ngi", self.scale, self.blocks.split(noise))
        return self.loc + self.blocks.join(away)

    def log_densities(self, u: jax.Array) -> jax.Array:
        """Terms of log q(u) for `u` (n, D), shape (n, D); each block's sum is its log-density."""
        away = jnp.moveaxis(self.blocks.split(u - self.loc), 0, -1)
        noise = self.blocks.join(jnp.moveaxis(solve_lower(self.scale, away), -1, 0))
        diagonal = self.blocks.join(jnp.diagonal(self.scale, axis1=-2, axis2=-1))
        return -0.5 * noise**2 - jnp.log(diagonal) - 0.5 * np.log(2 * np.pi)

    @property
    def block_labels(self) -> np.ndarray:
        """The block within which q has covariances, for every latent, (D,)."""
        size = self.blocks.block_size
        return np.argsort(self.blocks.index.value.ravel()) // size

    def entropy(self) -> jax.Array:
        """Entropy of q; a scalar."""
        return log_det(self.scale) + 0.5 * self.loc.size * (1 + np.log(2 * np.pi))

    def block_roots(self) -> jax.Array:
        """Square roots of the covariances within the blocks, (G, d, d)."""
        return self.scale
