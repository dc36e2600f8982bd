"""Independent blocks of latents on a few nodes each, with posterior probabilities."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.params import Params
from ppl_em.posterior.base import Posterior, constrain_draws
from ppl_em.posterior.gaussian_blocks import Gaussian
from ppl_em.posterior.quadrature_rules import Placed
from ppl_em.problem import Latents, Problem
from ppl_em.problem.terms import terms
from ppl_em.structure import by_block
from ppl_em.util import in_batches

AT_ONCE = 500_000
"""Terms of the log-joint evaluated side by side, at most: few enough to stay in the cache."""

PROPOSALS = 16
"""Gaussian draws per block from which one is picked by its weight."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Nodes(Posterior):
    """G independent blocks of k latents, each on J nodes around its mode.

    `law` is the Gaussian at the modes, `placed` says where the nodes are, `probs` (J, G) are their
    probabilities. `log_sums` (G,) are the logs of the integrals over the blocks, `base` is the sum
    of the terms without latents. `owner` (E,) is the block of every term of the log-joint, G for
    none.
    """

    law: Gaussian
    placed: Placed
    probs: jax.Array
    log_sums: jax.Array
    base: jax.Array
    owner: jax.Array

    @classmethod
    def at(
        cls, problem: Problem, params: Params, law: Gaussian, placed: Placed, owner: jax.Array
    ) -> "Nodes":
        """Integrate over every block."""
        sums = block_sums(problem, params, law, owner, placed.offsets)
        logs = sums[:, :-1] + placed.log_weights
        log_sums = jax.nn.logsumexp(logs, axis=0)
        base = constant_part(sums[:, -1])
        return cls(law, placed, jnp.exp(logs - log_sums), log_sums, base, owner)

    @property
    def log_normalizer(self) -> jax.Array:
        """The log-likelihood; a scalar."""
        return jnp.sum(self.log_sums) + self.base

    def by_coordinate(self, problem: Problem, params: Params) -> tuple[jax.Array, jax.Array]:
        """At the modes; the log-density of a block is at the first of its coordinates."""
        here = jnp.zeros_like(self.placed.offsets[:1])
        values = block_sums(problem, params, self.law, self.owner, here)[0, :-1]
        index = self.law.blocks.index.value[:, 0]
        return self.law.mean, jnp.zeros_like(self.law.mean).at[index].set(values - self.log_sums)

    def expected_log_joint(self, problem: Problem, params: Params) -> jax.Array:
        """Q(params), with the probabilities of the nodes held; a scalar."""
        rest = jnp.full((len(self.probs), 1), 1 / len(self.probs), self.probs.dtype)
        weights = jnp.concatenate([self.probs, rest], axis=1)

        def part(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
            offsets, weight = inputs
            return weight[self.owner] @ terms(problem, params, _point(self.law, offsets))

        return jnp.sum(in_batches(part, (self.placed.offsets, weights), AT_ONCE // self.owner.size))

    def moments(self, problem: Problem, params: Params) -> tuple[Latents, Latents]:
        """Means and standard deviations on the model's own scale, each of the site's shape."""
        points = jax.vmap(lambda offsets: _point(self.law, offsets))(self.placed.offsets)
        blocks = problem.unravel(jnp.asarray(self.law.blocks.labels))
        means, sds = {}, {}
        for name, values in constrain_draws(problem, params, points).items():
            probs = self.probs[:, np.asarray(blocks[name])]
            if probs.shape != values.shape:  # the transform changed the last axis
                probs = jnp.broadcast_to(probs[..., :1], values.shape)
            means[name] = jnp.sum(probs * values, axis=0)
            sds[name] = jnp.sqrt(jnp.sum(probs * (values - means[name]) ** 2, axis=0))
        return means, sds

    def sample(
        self, problem: Problem, params: Params, rng_key: jax.Array, num_samples: int
    ) -> Latents:
        """Nearly exact draws, each (num_samples, *site_shape).

        Each block is picked from a few draws of the Gaussian at its mode, by importance weights.
        """
        key_draw, key_pick = jax.random.split(rng_key)
        blocks = self.law.blocks

        def one(keys: tuple[jax.Array, jax.Array]) -> jax.Array:
            offsets = blocks.split(self.law.draw(keys[0], PROPOSALS) - self.law.mean)
            noise = jnp.einsum("gji,ngj->ngi", self.law.precision_tril, offsets)
            values = block_sums(problem, params, self.law, self.owner, offsets)[:, :-1]
            log_weights = values + 0.5 * jnp.sum(noise**2, axis=-1)
            picked = jax.random.categorical(keys[1], log_weights, axis=0)
            return _point(self.law, offsets[picked, jnp.arange(blocks.num_blocks)])

        keys = jax.random.split(key_draw, num_samples), jax.random.split(key_pick, num_samples)
        return constrain_draws(problem, params, jax.lax.map(one, keys))

    def site_means(self, problem: Problem, params: Params) -> Latents:
        """Of all sites."""
        return self.moments(problem, params)[0]

    def site_sds(self, problem: Problem, params: Params, rng_key: jax.Array) -> Latents:
        """Of all sites."""
        return self.moments(problem, params)[1]


def constant_part(values: Any) -> Any:
    """What belongs to no block, from its values at all nodes, (J,); NaN if they are not the same.

    Then some term depends on latents in a way that slopes do not show, and was not integrated.
    """
    xp = np if isinstance(values, np.ndarray) else jnp
    limit = max(1e-7, 1e3 * float(np.finfo(values.dtype).eps)) * (1 + abs(values[0]))
    with np.errstate(invalid="ignore"):
        return xp.where(xp.ptp(values) <= limit, values[0], xp.nan)


def block_sums(
    problem: Problem, params: Params, law: Gaussian, owner: jax.Array, offsets: jax.Array
) -> jax.Array:
    """Sums of the terms of every block at `offsets` (J, G, k) from the modes, (J, G + 1).

    The last column has the terms without latents; other arguments as in `Nodes`.
    """

    def sums(offsets: jax.Array) -> jax.Array:
        return by_block(problem, params, _point(law, offsets), owner, law.blocks.num_blocks)

    return in_batches(sums, offsets, AT_ONCE // owner.size)


def _point(law: Gaussian, offsets: jax.Array) -> jax.Array:
    """The latents (D,) with the blocks at `offsets` (G, k) from their modes."""
    return law.mean + law.blocks.join(offsets)
