"""Mean-field approximation: independent normals on the unconstrained scale (`AutoNormal`)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ppl_em.params import Params
from ppl_em.posterior.base import constrain_draws
from ppl_em.problem import Latents, Problem


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factorized:
    """q(u) = product of Normal(loc, scale), with the base draws that expectations use.

    `loc` and `scale` are (D,); `base` (n, D) are fixed standard-normal points.
    """

    loc: jax.Array
    scale: jax.Array
    base: jax.Array

    def points(self) -> jax.Array:
        """The n points, (n, D), at which expectations under q are averaged."""
        return self.loc + self.scale * self.base

    def expected_log_joint(self, problem: Problem, params: Params) -> jax.Array:
        """Q(params) under q, the average over the fixed points; a scalar."""

        def density(u: jax.Array) -> jax.Array:
            return problem.log_joint_unconstrained(params, u)

        return jnp.mean(jax.vmap(density)(self.points()))

    def entropy(self) -> jax.Array:
        """Entropy of q; a scalar."""
        return jnp.sum(jnp.log(self.scale) + 0.5 * (1 + jnp.log(2 * jnp.pi)))

    def bound(self, problem: Problem, params: Params) -> jax.Array:
        """The evidence lower bound, Q plus entropy; a scalar."""
        return self.expected_log_joint(problem, params) + self.entropy()

    def log_density(self, u: jax.Array) -> jax.Array:
        """log q(u) for `u` of shape (..., D)."""
        z = (u - self.loc) / self.scale
        return jnp.sum(-0.5 * z**2 - jnp.log(self.scale) - 0.5 * jnp.log(2 * jnp.pi), axis=-1)

    def draws(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """Fresh unconstrained draws from q, shape (num_samples, D)."""
        noise = jax.random.normal(rng_key, (num_samples, *self.loc.shape), self.loc.dtype)
        return self.loc + self.scale * noise

    def sample(
        self, problem: Problem, params: Params, rng_key: jax.Array, num_samples: int
    ) -> Latents:
        """Independent draws from q, each of shape (num_samples, *site_shape)."""
        return constrain_draws(problem, params, self.draws(rng_key, num_samples))
