"""Tables of the log-joint over pairs of neighboring steps of a chain, each step on its nodes.

With even steps at node i and odd steps at node j, one run of the model sees the pair (i, j) of all
neighbors at once: K^2 runs give all tables, however the model is written.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.params import Params
from ppl_em.problem import Problem
from ppl_em.structure.chain import Chain
from ppl_em.structure.step_terms import StepTerms

ROUNDING = 1e3
"""Units of rounding in which two sums of the same terms may differ."""


class Tables(NamedTuple):
    """Terms of chains (B, T) on n = S K states of each step, node by node for every discrete state.

    `first` (B, n), `move` (T - 1, B, n, n) from a state to the next, and `base`, which belongs to
    no step; NaN if it is not the same everywhere.
    """

    first: jax.Array
    move: jax.Array
    base: jax.Array


def pair_tables(
    problem: Problem, params: Params, chain: Chain, terms: StepTerms, nodes: jax.Array
) -> Tables:
    """The tables on `nodes` (B, T, K)."""
    values, base = _every_pair(problem, params, chain, terms, nodes)
    first, move = _by_step(values)
    return Tables(first, move, _constant(base))


def weighted_sum(
    problem: Problem,
    params: Params,
    chain: Chain,
    terms: StepTerms,
    nodes: jax.Array,
    first: jax.Array,
    move: jax.Array,
) -> jax.Array:
    """The mean of the log-joint with probabilities like the tables of `Tables`; a scalar.

    Tables are evaluated row by row, also for the gradient, and never held together.
    """
    count, states = nodes.shape[-1], terms.num_states
    weights = _by_pair(first, move, count, states)

    def row(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        values, base = _row(problem, params, chain, terms, nodes, i)
        # What has no weight may have no value either.
        values = jnp.where(weights[i] == 0, 0.0, values)
        return total + jnp.sum(weights[i] * values) + jnp.sum(base) / count**2, None

    return jax.lax.scan(jax.checkpoint(row), jnp.zeros((), nodes.dtype), jnp.arange(count))[0]


def _every_pair(
    problem: Problem, params: Params, chain: Chain, terms: StepTerms, nodes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Terms (K, K, B, T, S, S) with even steps at one node and odd ones at another; rest (K, K)."""

    def row(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _row(problem, params, chain, terms, nodes, i)

    return jax.lax.map(jax.checkpoint(row), jnp.arange(nodes.shape[-1]))


def _row(
    problem: Problem,
    params: Params,
    chain: Chain,
    terms: StepTerms,
    nodes: jax.Array,
    i: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    even = np.arange(chain.length) % 2 == 0

    def at(j: jax.Array) -> tuple[jax.Array, jax.Array]:
        point = jnp.where(even, nodes[..., i], nodes[..., j])
        return terms.at(problem, params, chain.join(point[..., None]))

    return jax.vmap(at)(jnp.arange(nodes.shape[-1]))


def _by_step(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First (B, n) and moves (T - 1, B, n, n) from terms (K, K, B, T, S, S)."""
    count, _, chains, length, states, _ = values.shape
    size = count * states
    odd = values[:, :, :, 1::2].transpose(3, 2, 4, 0, 5, 1)  # even step before: node i
    even = values[:, :, :, 2::2].transpose(3, 2, 4, 1, 5, 0)
    move = jnp.zeros((length - 1, chains, size, size), values.dtype)
    move = move.at[0::2].set(odd.reshape(-1, chains, size, size))
    move = move.at[1::2].set(even.reshape(-1, chains, size, size))
    first = values[:, 0, :, 0, 0].transpose(1, 2, 0)  # step 0 at node i, by its own state
    return first.reshape(chains, size), move


def _by_pair(first: jax.Array, move: jax.Array, count: int, states: int) -> jax.Array:
    """Weights (K, K, B, T, S, S) of terms from those of tables: the transpose of `_by_step`."""
    chains, length = first.shape[0], len(move) + 1
    parts = move.reshape(length - 1, chains, states, count, states, count)
    values = jnp.zeros((count, count, chains, length, states, states), move.dtype)
    values = values.at[:, :, :, 1::2].set(parts[0::2].transpose(3, 5, 1, 0, 2, 4))
    values = values.at[:, :, :, 2::2].set(parts[1::2].transpose(5, 3, 1, 0, 2, 4))
    start = first.reshape(chains, states, count).transpose(2, 0, 1)
    return values.at[:, 0, :, 0, 0].set(start)


def _constant(values: jax.Array) -> jax.Array:
    """What belongs to no step, from its values (K, K); NaN if they are not the same."""
    limit = ROUNDING * float(jnp.finfo(values.dtype).eps) * (1 + jnp.abs(values[0, 0]))
    return jnp.where(jnp.ptp(values) <= limit, values[0, 0], jnp.nan)
