"""Chains of one latent each, every step on nodes: sums over all paths through them."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.discrete import forward_backward
from ppl_em.params import Params
from ppl_em.posterior.base import Posterior, constrain_draws
from ppl_em.problem import Latents, Problem
from ppl_em.structure import Chain, Reach, StepTerms, Tables, pair_tables, weighted_sum


class PathSums(NamedTuple):
    """Logs of sums over paths: on all nodes, and on every second one; scalars."""

    value: jax.Array
    half: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ChainNodes(Posterior):
    """B chains of T steps, each on K nodes, with S discrete states: n = S K states of a step.

    `reach` (B, T) says where the nodes are, `first` (B, n) and `pairs` (T - 1, B, n, n) are the
    probabilities of first states and of neighbors, `terms` tells the log-joint apart by step.
    """

    reach: Reach
    terms: StepTerms
    first: jax.Array
    pairs: jax.Array
    chain: Chain = field(metadata={"static": True})

    @property
    def num_nodes(self) -> int:
        """K."""
        return self.first.shape[-1] // self.terms.num_states

    @cached_property
    def nodes(self) -> jax.Array:
        """Unconstrained latents, (B, T, K)."""
        return self.reach.nodes(self.num_nodes)

    @property
    def probs(self) -> jax.Array:
        """Smoothed probabilities of the states of every step, (B, T, S, K)."""
        later = jnp.moveaxis(jnp.sum(self.pairs, axis=-2), 0, 1)
        every = jnp.concatenate([self.first[:, None], later], axis=1)
        return every.reshape(*every.shape[:2], self.terms.num_states, -1)

    def expected_log_joint(self, problem: Problem, params: Params) -> jax.Array:
        """Q(params), with the probabilities of the nodes held; a scalar."""
        where = (problem, params, self.chain, self.terms, self.nodes)
        return weighted_sum(*where, self.first, self.pairs)

    def moments(self, problem: Problem, params: Params) -> tuple[Latents, Latents]:
        """Means and standard deviations on the model's own scale, each of the site's shape."""
        probs = self.chain.join(jnp.sum(self.probs, axis=2).transpose(2, 0, 1)[..., None])
        points = self.chain.join(jnp.moveaxis(self.nodes, -1, 0)[..., None])
        weights = jax.vmap(problem.unravel)(probs)
        means, sds = {}, {}
        for name, values in constrain_draws(problem, params, points).items():
            means[name] = jnp.sum(weights[name] * values, axis=0)
            sds[name] = jnp.sqrt(jnp.sum(weights[name] * (values - means[name]) ** 2, axis=0))
        return means, sds

    def responsibilities(self) -> dict[str, jax.Array] | None:
        """Of discrete states that follow one another, where they are of one site."""
        names = self.terms.sites
        if len(names) != 1:
            return None
        probs = jnp.sum(self.probs, axis=-1)
        return {names[0]: probs[0] if len(probs) == 1 else jnp.moveaxis(probs, 0, 1)}

    def site_means(self, problem: Problem, params: Params) -> Latents:
        """Of all sites."""
        return self.moments(problem, params)[0]

    def site_sds(self, problem: Problem, params: Params, rng_key: jax.Array) -> Latents:
        """Of all sites."""
        return self.moments(problem, params)[1]

    def sample(
        self, problem: Problem, params: Params, rng_key: jax.Array, num_samples: int
    ) -> Latents:
        """Draws of paths through the nodes, backwards, each (num_samples, *site_shape)."""
        paths = self.paths(rng_key, num_samples)
        nodes = jnp.broadcast_to(self.nodes, (num_samples, *self.nodes.shape))
        places = (paths % self.num_nodes)[..., None]
        points = jnp.take_along_axis(nodes, places, axis=-1)
        return constrain_draws(problem, params, self.chain.join(points))

    def paths(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """The states of drawn paths, (num_samples, B, T)."""
        chains, length = self.chain.num_chains, self.chain.length
        keys = jax.random.split(rng_key, length)
        every = jnp.broadcast_to(np.arange(chains), (num_samples, chains))
        last = jnp.log(jnp.sum(self.pairs[-1], axis=-2))
        end = jax.random.categorical(keys[-1], last, shape=(num_samples, chains))

        def back(after: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
            key, pairs = inputs
            logs = jnp.log(jnp.swapaxes(pairs, -1, -2)[every, after])
            before = jax.random.categorical(key, logs)
            return before, before

        before = jax.lax.scan(back, end, (keys[:-1], self.pairs), reverse=True)[1]
        return jnp.moveaxis(jnp.concatenate([before, end[None]]), 0, -1)


def on_nodes(
    problem: Problem,
    params: Params,
    chain: Chain,
    terms: StepTerms,
    reach: Reach,
    count: int,
    power: jax.Array | float = 1.0,
) -> tuple[ChainNodes, PathSums]:
    """The posterior on `count` nodes, of the log-joint times `power`, and the log-likelihood."""
    tables = pair_tables(problem, params, chain, terms, reach.nodes(count))
    weights = reach.log_weights(count)

    def total(first: jax.Array, move: jax.Array) -> jax.Array:
        return _sum(Tables(first, move, tables.base), weights)

    first, move = power * tables.first, power * tables.move
    value, (first_probs, pairs) = jax.value_and_grad(total, argnums=(0, 1))(first, move)
    posterior = ChainNodes(reach, terms, first_probs, pairs, chain)
    return posterior, PathSums(value, _half(tables, weights, terms.num_states))


def path_sums(
    problem: Problem,
    params: Params,
    chain: Chain,
    terms: StepTerms,
    reach: Reach,
    count: int,
) -> PathSums:
    """The log-likelihood on `count` nodes, differentiable, and on every second one."""
    tables = pair_tables(problem, params, chain, terms, reach.nodes(count))
    weights = reach.log_weights(count)
    half = _half(jax.lax.stop_gradient(tables), weights, terms.num_states)
    return PathSums(_sum(tables, weights), half)


def _sum(tables: Tables, weights: jax.Array) -> jax.Array:
    """The log of the sum over paths; `weights` (B, T) are the logs of those of the nodes."""
    first = tables.first + weights[:, :1]
    later = jnp.broadcast_to(weights.T[1:, :, None], (*tables.move.shape[:2], first.shape[-1]))
    return jnp.sum(forward_backward.contract(first, tables.move, later, "sum_once")) + tables.base


def _half(tables: Tables, weights: jax.Array, states: int) -> jax.Array:
    """The same on every second node."""
    length, chains, size, _ = tables.move.shape
    count = size // states
    first = tables.first.reshape(chains, states, count)[..., ::2]
    move = tables.move.reshape(length, chains, states, count, states, count)
    move = move[:, :, :, ::2, :, ::2]
    fewer = states * first.shape[-1]
    coarse = Tables(
        first.reshape(chains, fewer), move.reshape(length, chains, fewer, fewer), tables.base
    )
    return _sum(coarse, weights + np.log(2))
