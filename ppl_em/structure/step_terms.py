"""The log-joint along chains of one latent each, as a sum of functions of neighboring steps.

A term belongs to the later of the steps whose latents it moves with. Step t - 1 and step t differ,
in binary, in trailing digits only: so slopes along directions that move the steps with a certain
digit, and those without it, tell the owner of every term that depends on one step or on two
neighbors. Whether no term depends on more is for values to say: the log-joint on random paths has
to be what tables of pairs of neighbors add up to.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.discrete import marginalization
from ppl_em.params import Params
from ppl_em.problem import Problem
from ppl_em.problem.terms import terms
from ppl_em.structure.additive import Read, told_apart
from ppl_em.structure.chain import Chain
from ppl_em.util import compiled


class StepTerms(Protocol):
    """How to tell the terms of chains (B, T, 1) apart by step; a pytree."""

    @property
    def num_states(self) -> int:
        """S, the states of the discrete sites of a step; 1 without any."""
        ...

    @property
    def sites(self) -> tuple[str, ...]:
        """The discrete sites of these states."""
        ...

    def at(self, problem: Problem, params: Params, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Terms by step at `u` (D,), and their rest.

        Shape (B, T, S, S) for the state before and the state of the step; a scalar.
        """
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OwnedTerms:
    """Terms with a step each: `owner` (E,) is b T + t for step t of chain b, and B T for none."""

    owner: jax.Array
    shape: tuple[int, int] = field(metadata={"static": True})
    by_table: bool = field(metadata={"static": True})

    @property
    def num_states(self) -> int:
        """Discrete sites are summed out in the terms."""
        return 1

    @property
    def sites(self) -> tuple[str, ...]:
        """None."""
        return ()

    def at(self, problem: Problem, params: Params, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `StepTerms`."""
        values = _terms(self.by_table, problem, params, u)
        count = int(np.prod(self.shape))
        sums = jax.ops.segment_sum(values, self.owner, num_segments=count + 1)
        return sums[:-1].reshape(*self.shape, 1, 1), sums[-1]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RegimeTerms:
    """Terms of a `scan` with discrete states beside the latent, which follow one another."""

    shape: tuple[int, int] = field(metadata={"static": True})
    num_states: int = field(metadata={"static": True})
    chain: Chain = field(metadata={"static": True})
    sites: tuple[str, ...] = field(metadata={"static": True})

    def at(self, problem: Problem, params: Params, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `StepTerms`."""
        u, idle = problem.without_idle(u)
        latents, jacobians = problem.transformed(u)
        found = marginalization.step_potentials(problem.log_factors(params, latents))
        if found is None:
            raise ValueError("there is not one chain of discrete states")
        parts, rest = found
        order = np.argsort(parts.batch)
        chains, length = self.shape

        def steps(array: jax.Array, lead: int, states: int) -> jax.Array:
            axes = [*range(lead), *(order + lead), *range(lead + len(order), array.ndim)]
            full = array.transpose(axes)
            return full.reshape(*full.shape[:lead], -1, *full.shape[full.ndim - states :])

        move = steps(parts.move, 1, 2) + steps(parts.emission, 1, 1)[..., None, :]
        first = steps(parts.first, 0, 1)[:, None]
        move = jnp.broadcast_to(move, (length - 1, chains, *move.shape[2:]))
        first = jnp.broadcast_to(first, (chains, *move.shape[2:]))
        values = jnp.moveaxis(jnp.concatenate([first[None], move]), 0, 1)
        own = idle + jnp.concatenate([jnp.ravel(part) for part in jacobians])
        return values + self.chain.split(own)[..., None], rest


def regime_terms(problem: Problem, x: jax.Array, chain: Chain) -> RegimeTerms | None:
    """The discrete states of every step of a chain; None if they form no chain beside it."""
    kept: list[marginalization.Potentials] = []

    def look(x: jax.Array) -> jax.Array:
        latents, jacobians = problem.transformed(problem.start)
        own = sum(jnp.size(part) for part in jacobians)
        found = marginalization.step_potentials(problem.log_factors(problem.constrain(x), latents))
        if found is not None and own == chain.size:
            kept.append(found[0])
        return jnp.zeros(())

    jax.eval_shape(look, x)
    if not kept or kept[0].emission.shape[0] != chain.length - 1:
        return None
    batch = kept[0].emission.shape[1:-1]
    if int(np.prod(batch)) not in (1, chain.num_chains):
        return None
    states = kept[0].first.shape[-1]
    shape = chain.num_chains, chain.length
    return RegimeTerms(shape, int(states), chain, kept[0].states)


def _terms(by_table: bool, problem: Problem, params: Params, u: jax.Array) -> jax.Array:
    """The terms of the log-joint, (E,); `by_table` evaluates the steps of a scan side by side."""
    if not by_table:
        return terms(problem, params, u)
    u, idle = problem.without_idle(u)
    latents, jacobians = problem.transformed(u)
    found = marginalization.log_terms(problem.log_factors(params, latents))
    return jnp.concatenate([jnp.ravel(part) for part in (idle, *jacobians, found)])


def owned_terms(problem: Problem, x: jax.Array, chain: Chain, by_table: bool) -> OwnedTerms | None:
    """The step that owns each term; None where terms move with others than two neighbors."""
    chains, length = chain.num_chains, chain.length
    digits = int(length - 1).bit_length()
    steps = (np.arange(chains)[:, None] << digits) + np.arange(length)
    labels = np.zeros(chain.size, int)
    labels[chain.index.value[..., 0]] = steps
    slopes = partial(_slopes, by_table)
    found = told_apart(problem, x, np.asarray(problem.start), labels, _later(digits), slopes)
    if found is None:
        return None
    b, t = found >> digits, found & ((1 << digits) - 1)
    none = found < 0
    if np.any(~none & ((b >= chains) | (t >= length))):
        return None
    owner = np.where(none, chains * length, b * length + t)
    return OwnedTerms(jnp.asarray(owner), (chains, length), by_table)


def _later(digits: int) -> Read:
    """What reads the later of two neighbors from the dependence of terms on single digits."""

    def owner(depends: np.ndarray, bits: np.ndarray, count: int) -> np.ndarray | None:
        with_bit, without = np.split(depends, 2)
        constant, both = ~np.any(depends, axis=0), with_bit & without
        number = np.sum(both, axis=0)
        trailing = bits[:, None] < number
        if not np.all((both == trailing) & (with_bit | without) | constant):
            return None
        if np.any(number > digits):
            return None
        alone = np.sum((with_bit & ~both) << bits[:, None], axis=0)
        last = np.where(number > 0, 1 << np.maximum(number - 1, 0), 0)
        return np.where(constant, -1, alone | last)

    return owner


@partial(compiled, static_argnums=0)
def _slopes(
    by_table: bool, problem: Problem, x: jax.Array, u: jax.Array, directions: jax.Array
) -> jax.Array:
    """Derivatives of the terms at `u` (D,) along `directions` (n, D), shape (n, E)."""
    params = problem.constrain(x)

    def slope(direction: jax.Array) -> jax.Array:
        return jax.jvp(partial(_terms, by_table, problem, params), (u,), (direction,))[1]

    return jax.lax.map(slope, directions)
