"""Latents that are Gaussian given discrete ones: a mixture of Gaussians in every block."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.discrete import States
from ppl_em.params import Params
from ppl_em.posterior.base import Centered, constrain_draws
from ppl_em.posterior.linalg import inverse_transpose
from ppl_em.problem import Latents, Problem
from ppl_em.structure import Blocks
from ppl_em.util import cholesky, in_batches

AT_ONCE = 16
"""Points evaluated side by side, at most."""


@dataclass(frozen=True)
class BlockLayout:
    """Which tables and coordinates belong to which block; hashable.

    Attributes
    ----------
    states
        Joint states of the discrete sites, S in each of G blocks.
    blocks
        The coordinates of each block, (G, d).
    moving
        Keys of the tables that depend on the continuous latents.
    shared
        Whether terms outside of the blocks' tables depend on them, as rows in long format do.
    """

    states: States
    blocks: Blocks
    moving: tuple[str, ...]
    shared: bool

    def terms(self, problem: Problem, params: Params, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Terms that depend on `u` (D,): by joint state and block, (S, G), and all others."""
        factors, jacobian = problem.log_factors_unconstrained(params, u)
        inside, outside = self.states.collect(factors, self.moving)
        return inside, outside + jacobian


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class GaussianMixture(Centered):
    """In block g, N(means[s, g], roots[s, g] roots[s, g]^T) with probability weights[s, g].

    `weights` is (S, G), `means` (S, G, d), `precision_trils` (S, G, d, d) the Cholesky factors of
    the precisions; all on the unconstrained scale. `marginals` holds the posterior marginal of
    every table that does not depend on continuous latents, `probs` that of every discrete site,
    shape (*plates, size of the support).
    """

    weights: jax.Array
    means: jax.Array
    precision_trils: jax.Array
    marginals: dict[str, jax.Array]
    probs: dict[str, jax.Array]
    layout: BlockLayout = field(metadata={"static": True})

    @property
    def center(self) -> jax.Array:
        """The mean on the unconstrained scale, (D,)."""
        return self.layout.blocks.join(self._mean())

    @property
    def center_is_mean(self) -> jax.Array:
        """Not unless the transform is the identity, (D,)."""
        return jnp.zeros(self.center.size, bool)

    def log_density(self, u: jax.Array) -> jax.Array:
        """log q(u) for `u` of shape (D,), discrete sites summed out; a scalar."""
        return jnp.sum(self._by_block(u))

    def by_coordinate(self, problem: Problem, params: Params) -> tuple[jax.Array, jax.Array]:
        """At the center; the log-density of a block is at the first of its coordinates."""
        u, index = self.center, self.layout.blocks.index.value[:, 0]
        return u, jnp.zeros_like(u).at[index].set(self._by_block(u))

    def _by_block(self, u: jax.Array) -> jax.Array:
        """Terms of `log_density`, (G,)."""
        away = self.layout.blocks.split(u) - self.means
        noise = jnp.einsum("sgji,sgj->sgi", self.precision_trils, away)
        diagonal = jnp.diagonal(self.precision_trils, axis1=-2, axis2=-1)
        normal = jnp.log(diagonal) - 0.5 * noise**2 - 0.5 * np.log(2 * np.pi)
        return jax.nn.logsumexp(jnp.sum(normal, -1), axis=0, b=self.weights)

    def points(self) -> jax.Array:
        """2d equally weighted points, (2d, D), with the mean and covariance of every block."""
        mean = self._mean()
        roots = inverse_transpose(self.precision_trils)
        away = self.means - mean
        second = roots @ jnp.swapaxes(roots, -1, -2) + away[..., None] * away[..., None, :]
        covariance = jnp.sum(self.weights[..., None, None] * second, axis=0)
        return self._around(mean, cholesky(covariance))

    def expected_log_joint(self, problem: Problem, params: Params) -> jax.Array:
        """Q(params), exactly; a scalar.

        Each state's Gaussians have 2d points at which that state's terms are averaged. Terms
        that are no state's own are averaged over points of the whole mixture.
        """
        fixed = self._expected_fixed(problem, params)
        points = jax.vmap(self._around)(self.means, inverse_transpose(self.precision_trils))
        num_states, count = points.shape[:2]
        state = jnp.repeat(jnp.arange(num_states), count)

        def inside(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
            u, s = inputs
            weight, term = self.weights[s], self.layout.terms(problem, params, u)[0][s]
            return jnp.sum(weight * jnp.where(weight != 0, term, 0.0))

        def outside(u: jax.Array) -> jax.Array:
            return self.layout.terms(problem, params, u)[1]

        q = (
            fixed
            + jnp.sum(in_batches(inside, (points.reshape(-1, points.shape[-1]), state), AT_ONCE))
            / count
        )
        if self.layout.shared:
            return q + jnp.mean(in_batches(outside, self.points(), AT_ONCE))
        return q + outside(self.center)

    def sample(
        self, problem: Problem, params: Params, rng_key: jax.Array, num_samples: int
    ) -> Latents:
        """Independent exact draws, each of shape (num_samples, *site_shape)."""
        key_state, key_noise = jax.random.split(rng_key)
        shape = (num_samples, *self.means.shape[1:])
        logits = jnp.log(self.weights).T
        state = jax.random.categorical(key_state, logits, shape=shape[:2])
        block = jnp.arange(shape[1])
        noise = jax.random.normal(key_noise, shape, self.means.dtype)
        roots = inverse_transpose(self.precision_trils)[state, block]
        away = jnp.einsum("ngij,ngj->ngi", roots, noise)
        draws = self.layout.blocks.join(self.means[state, block] + away)
        return constrain_draws(problem, params, draws)

    def _mean(self) -> jax.Array:
        """Means of the blocks, (G, d)."""
        return jnp.sum(self.weights[..., None] * self.means, axis=0)

    def _around(self, mean: jax.Array, root: jax.Array) -> jax.Array:
        """2d points, (2d, D), with means (G, d) and covariances root root^T, (G, d, d)."""
        columns = jnp.moveaxis(root, -1, 0) * np.sqrt(root.shape[-1])
        return self.layout.blocks.join(mean + jnp.concatenate([columns, -columns]))

    def _expected_fixed(self, problem: Problem, params: Params) -> jax.Array:
        """Of the tables that do not depend on continuous latents: evaluated anywhere."""
        tables = problem.log_factors_unconstrained(params, self.center)[0].tables

        def term(name: str) -> jax.Array:
            weight = self.marginals[name]
            return jnp.sum(weight * jnp.where(weight != 0, tables[name], 0.0))

        return sum((term(name) for name in self.marginals), start=jnp.zeros(()))

    def responsibilities(self) -> dict[str, jax.Array]:
        """Probabilities of every discrete site."""
        return self.probs
