"""Latents that are exactly Gaussian given data and parameters: blocks that share coordinates.

The precision has blocks B_g, a border C_g that couples them with the shared coordinates, and a
corner A. With L_g = chol(B_g) and W_g = L_g^-1 C_g, the shared coordinates have the precision
S = A - sum W_g' W_g by themselves.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.posterior.linalg import inverse_transpose, log_det, standard_normal
from ppl_em.structure import Arrow, ArrowMatrix
from ppl_em.util import cholesky, solve_lower


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GaussianArrow:
    """N(mean, covariance) on the unconstrained scale, G blocks of k and s shared coordinates.

    `mean` is (d,). `tril` (G, k, k) holds the L_g and `root` their inverse transposes;
    `shared_tril` (s, s) is the Cholesky factor of S and `shared_root` its inverse transpose.
    `slope` (G, k, s) is how the blocks follow the standard noise of the shared coordinates:
    u_g = root_g e_g + slope_g e_S, u_S = shared_root e_S around the mean.
    """

    mean: jax.Array
    tril: jax.Array
    root: jax.Array
    slope: jax.Array
    shared_tril: jax.Array
    shared_root: jax.Array
    arrow: Arrow = field(metadata={"static": True})

    @classmethod
    def around(
        cls, arrow: Arrow, precision: ArrowMatrix, here: jax.Array, gradient: jax.Array
    ) -> "GaussianArrow":
        """The law with this precision and a log-density of this gradient at `here` (d,)."""
        tril = cholesky(precision.local)
        border = solve_lower(tril, precision.border)
        flat = border.reshape(-1, arrow.num_shared)
        shared_tril = cholesky(precision.shared - flat.T @ flat)
        root, shared_root = inverse_transpose(tril), inverse_transpose(shared_tril)
        slope = -root @ (border @ shared_root)

        score, shared_score = arrow.split(gradient)
        half = solve_lower(tril, score[..., None])[..., 0]
        noise = shared_root.T @ (shared_score - flat.T @ half.ravel())
        shift = jnp.einsum("gij,gj->gi", root, half) + slope @ noise
        mean = here + arrow.join(shift, shared_root @ noise)
        return cls(mean, tril, root, slope, shared_tril, shared_root, arrow)

    @property
    def center(self) -> jax.Array:
        """The mean, (d,)."""
        return self.mean

    @property
    def center_is_mean(self) -> np.ndarray:
        """Not unless the transform is the identity, (d,)."""
        return np.zeros(self.mean.size, bool)

    def log_density(self, u: jax.Array) -> jax.Array:
        """log q(u), blocks and shared coordinates together; a scalar."""
        local, shared = self.arrow.split(u - self.mean)
        shared_noise = self.shared_tril.T @ shared
        noise = jnp.einsum("gji,gj->gi", self.tril, local - self.slope @ shared_noise)
        value = standard_normal(noise, noise.size) + log_det(self.tril)
        return value + standard_normal(shared_noise, shared.size) + log_det(self.shared_tril)

    @property
    def groups(self) -> np.ndarray:
        """All coordinates hang together, (d,)."""
        return np.zeros(self.mean.size, int)

    def log_density_by_group(self) -> jax.Array:
        """log q at the center, (1,)."""
        return self.log_density(self.mean)[None]

    def points(self) -> jax.Array:
        """2 (k + s) equally weighted points, (2 (k + s), d), for the exact mean of the log-joint.

        They lie at the mean plus and minus sqrt(k + s) times each column of a square root whose
        first k columns move all blocks at once: blocks are not coupled with one another.
        """
        columns = self.columns()
        offsets = np.sqrt(len(columns)) * columns
        return self.mean + jnp.concatenate([offsets, -offsets])

    def columns(self) -> jax.Array:
        """k + s directions, (k + s, d), whose outer products sum to the covariances that count."""
        local = jnp.moveaxis(jnp.concatenate([self.root, self.slope], axis=-1), -1, 0)
        corner = jnp.pad(self.shared_root.T, ((self.arrow.block_size, 0), (0, 0)))
        return self.arrow.join(local, corner)

    def solve(self, vector: jax.Array) -> jax.Array:
        """The covariance times a vector, (d,)."""
        local, shared = self.arrow.split(vector)
        noise = jnp.einsum("gji,gj->gi", self.root, local)
        shared_noise = jnp.einsum("gis,gi->s", self.slope, local) + self.shared_root.T @ shared
        moved = jnp.einsum("gij,gj->gi", self.root, noise) + self.slope @ shared_noise
        return self.arrow.join(moved, self.shared_root @ shared_noise)

    def draw(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """Independent draws, (num_samples, d)."""
        key_local, key_shared = jax.random.split(rng_key)
        shape = (num_samples, *self.root.shape[:2])
        noise = jax.random.normal(key_local, shape, self.mean.dtype)
        shared = jax.random.normal(
            key_shared, (num_samples, self.arrow.num_shared), self.mean.dtype
        )
        local = jnp.einsum("gij,ngj->ngi", self.root, noise)
        local += jnp.einsum("gis,ns->ngi", self.slope, shared)
        return self.mean + self.arrow.join(local, shared @ self.shared_root.T)
