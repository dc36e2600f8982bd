"""Latents that are exactly Gaussian given data and parameters: blocks that share coordinates.

The precision has blocks B_g, a border C_g that couples them with the shared coordinates, and a
corner A. With L_g = chol(B_g) and W_g = L_g^-1 C_g, the shared coordinates have the precision
S = A - sum W_g' W_g by themselves, and u_g = L_g^-T (e_g - W_g u_S) follows them, e_g standard
normal.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.posterior.linalg import inverse_transpose, log_det, normal_terms, standard_normal
from ppl_em.structure import Arrow, ArrowMatrix
from ppl_em.util import cholesky, solve_lower, solve_lower_transposed


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class GaussianArrow:
    """N(mean, covariance) on the unconstrained scale, G blocks of k and s shared coordinates.

    `mean` is (d,). `tril` (G, k, k) holds the L_g, `border` (G, k, s) the W_g and `shared_tril`
    (s, s) the Cholesky factor of S. Dense inverses are for nodes only: values and their
    derivatives do without.
    """

    mean: jax.Array
    tril: jax.Array
    border: jax.Array
    shared_tril: jax.Array
    arrow: Arrow = field(metadata={"static": True})

    @classmethod
    def around(
        cls, arrow: Arrow, precision: ArrowMatrix, here: jax.Array, gradient: jax.Array
    ) -> "GaussianArrow":
        """The law with this precision and a log-density of this gradient at `here` (d,)."""
        tril = cholesky(precision.local)
        border = solve_lower(tril, precision.border)
        shared_tril = cholesky(precision.shared - arrow.gram(border))
        law = cls(jnp.zeros_like(here), tril, border, shared_tril, arrow)
        return cls(here + law.solve(gradient), tril, border, shared_tril, arrow)

    @property
    def center(self) -> jax.Array:
        """The mean, (d,)."""
        return self.mean

    @property
    def center_is_mean(self) -> np.ndarray:
        """Not unless the transform is the identity, (d,)."""
        return np.zeros(self.mean.size, bool)

    def log_densities(self, u: jax.Array) -> jax.Array:
        """Terms of `log_density`, (d,), each at a coordinate."""
        noise, shared = self._noise(u)
        return self.arrow.join(
            normal_terms(noise, self.tril), normal_terms(shared, self.shared_tril)
        )

    def _noise(self, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What is standard normal if `u` (d,) has this law, (G, k) and (s,)."""
        local, shared = self.arrow.split(u - self.mean)
        noise = jnp.einsum("gji,gj->gi", self.tril, local) + self.border @ shared
        return noise, self.shared_tril.T @ shared

    def log_density(self, u: jax.Array) -> jax.Array:
        """log q(u), blocks and shared coordinates together; a scalar."""
        noise, shared_noise = self._noise(u)
        value = standard_normal(noise, noise.size) + log_det(self.tril)
        return value + standard_normal(shared_noise, shared_noise.size) + log_det(self.shared_tril)

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
        root, shared_root = inverse_transpose(self.tril), inverse_transpose(self.shared_tril)
        slope = -root @ (self.border @ shared_root)
        local = jnp.moveaxis(jnp.concatenate([root, slope], axis=-1), -1, 0)
        corner = jnp.pad(shared_root.T, ((self.arrow.block_size, 0), (0, 0)))
        return self.arrow.join(local, corner)

    def solve(self, vector: jax.Array) -> jax.Array:
        """The covariance times a vector, (d,)."""
        local, shared = self.arrow.split(vector)
        half = solve_lower(self.tril, local[..., None])[..., 0]
        rest = (shared - jnp.einsum("gis,gi->s", self.border, half))[:, None]
        rest = solve_lower_transposed(self.shared_tril, solve_lower(self.shared_tril, rest))[:, 0]
        return self.arrow.join(self._following(half, rest), rest)

    def draw(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """Independent draws, (num_samples, d)."""
        key_local, key_shared = jax.random.split(rng_key)
        shape = (num_samples, *self.tril.shape[:2])
        noise = jax.random.normal(key_local, shape, self.mean.dtype)
        shared = jax.random.normal(
            key_shared, (num_samples, self.arrow.num_shared), self.mean.dtype
        )
        shared = solve_lower_transposed(self.shared_tril, shared.T).T
        local = jax.vmap(self._following)(noise, shared)
        return self.mean + self.arrow.join(local, shared)

    def _following(self, noise: jax.Array, shared: jax.Array) -> jax.Array:
        """The blocks (G, k) from their own noise and shared coordinates (s,)."""
        right = noise - self.border @ shared
        return solve_lower_transposed(self.tril, right[..., None])[..., 0]
