"""What Gaussian variational families share: expectations over fixed base draws, and the bound."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.params import Params
from ppl_em.posterior.base import Posterior, constrain_draws
from ppl_em.posterior.evidence import bounds_by_group, lower_bound
from ppl_em.posterior.log_likelihood import LogLikelihood
from ppl_em.problem import Latents, Problem
from ppl_em.structure import Blocks, compressed_hessian
from ppl_em.util import Static

MAX_HESSIAN = 600
"""Parameters of a block up to which its Hessian is computed."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class GaussianGuide(Posterior):
    """q(u), Gaussian on the unconstrained scale and independent between blocks.

    `loc` is (D,); `base` (n, D) are fixed standard-normal points; the G blocks of d coordinates
    are those of the family. Subclasses say what the scale is.
    """

    correlated: ClassVar[bool] = False
    """Whether q has covariances within its blocks."""

    loc: jax.Array
    scale: jax.Array
    base: jax.Array
    blocks: Blocks = field(metadata={"static": True})

    @staticmethod
    def start(blocks: Blocks, u: jax.Array, scale: float) -> jax.Array:
        """Parameters (G, P) of the law around `u` (D,) with this standard deviation."""
        raise NotImplementedError

    @classmethod
    def unpack(cls, phi: jax.Array, base: jax.Array, blocks: Blocks) -> "GaussianGuide":
        """The law with parameters `phi`, (G, P)."""
        raise NotImplementedError

    def pack(self) -> jax.Array:
        """The parameters, (G, P)."""
        raise NotImplementedError

    def moved(self, noise: jax.Array) -> jax.Array:
        """From standard-normal `noise` (n, D) to draws from q, (n, D)."""
        raise NotImplementedError

    def log_densities(self, u: jax.Array) -> jax.Array:
        """Terms of log q(u) for `u` (n, D), shape (n, D); each block's sum is its log-density."""
        raise NotImplementedError

    def entropy(self) -> jax.Array:
        """Entropy of q; a scalar."""
        raise NotImplementedError

    @property
    def block_labels(self) -> np.ndarray:
        """The block within which q has covariances, for every latent, (D,)."""
        return np.arange(self.loc.size)

    def points(self) -> jax.Array:
        """The n points, (n, D), at which expectations under q are averaged."""
        return self.moved(self.base)

    def expected_log_joint(self, problem: Problem, params: Params) -> jax.Array:
        """Q(params) under q, the average over the fixed points; a scalar."""
        density = problem.density(params)
        return jnp.mean(jax.vmap(density)(self.points()))

    def bound(self, problem: Problem, params: Params) -> jax.Array:
        """The evidence lower bound, Q plus entropy; a scalar."""
        return self.expected_log_joint(problem, params) + self.entropy()

    def log_density(self, u: jax.Array) -> jax.Array:
        """log q(u) for `u` of shape (n, D), (n,)."""
        return jnp.sum(self.log_densities(u), axis=-1)

    def draws(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """Fresh unconstrained draws from q, shape (num_samples, D)."""
        noise = jax.random.normal(rng_key, (num_samples, *self.loc.shape), self.loc.dtype)
        return self.moved(noise)

    def sample(
        self, problem: Problem, params: Params, rng_key: jax.Array, num_samples: int
    ) -> Latents:
        """Independent draws from q, each of shape (num_samples, *site_shape)."""
        return constrain_draws(problem, params, self.draws(rng_key, num_samples))

    def log_likelihood(self, rng_key: jax.Array, problem: Problem, x: jax.Array) -> LogLikelihood:
        """The bound on fresh draws, with the worst k-hat over blocks."""
        return lower_bound(rng_key, problem, x, self)

    def integrals(
        self, rng_key: jax.Array, problem: Problem, x: jax.Array, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Bounds on them, on fresh draws from q."""
        return bounds_by_group(rng_key, problem, x, self, labels)

    def block_covariances(self, problem: Problem, params: Params) -> jax.Array | None:
        """Covariances of the latents within the blocks (G, d, d) where they are better than q's.

        None where q's own are the best.
        """
        return None

    def block_roots(self) -> jax.Array:
        """Square roots of the covariances of q within the blocks, (G, d, d)."""
        raise NotImplementedError


def flat_blocks(shape: tuple[int, ...]) -> Blocks:
    """Parameters (G, P) of a family whose blocks do not interact, as blocks of a flat vector."""
    return Blocks(Static(np.arange(shape[0] * shape[1]).reshape(shape)))


def guide_hessian(guide: GaussianGuide, problem: Problem, params: Params) -> jax.Array:
    """Hessian of the bound in the parameters of the family, block by block, (G, P, P)."""
    phi = guide.pack()
    rows = flat_blocks(phi.shape)

    def bound(flat: jax.Array) -> jax.Array:
        moved = type(guide).unpack(flat.reshape(phi.shape), guide.base, guide.blocks)
        return moved.bound(problem, params)

    return rows.unpack(compressed_hessian(rows, bound, phi.ravel()))
