"""Weighted draws of independent blocks of latents: each block has weights of its own."""

import logging
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.params import Params
from ppl_em.posterior.base import Posterior, constrain_draws
from ppl_em.posterior.evidence import NUM_SAMPLES
from ppl_em.posterior.log_likelihood import LogLikelihood
from ppl_em.problem import Latents, Problem
from ppl_em.stats import DEGREES, importance, log_density_of_noise
from ppl_em.structure import Blocks, NotAdditive, by_block
from ppl_em.util import Static, compiled, generator, in_batches

logger = logging.getLogger("ppl_em")

AT_ONCE = 64
"""Draws evaluated side by side where they are many or large."""

MAX_NUMBERS = 2_000_000
"""Latents at draws that are all evaluated side by side, at most."""


@dataclass(frozen=True)
class TermLayout:
    """G independent blocks, and the block that each term of the log-joint belongs to.

    `owner` is (E,), with G for terms of no block; None if there is one block for all.
    """

    blocks: Blocks
    owner: Static | None

    def pieces(self, problem: Problem, params: Params, draws: jax.Array) -> jax.Array:
        """The log-joint at `draws` (n, D) by block, (n, G), and last what belongs to none."""
        at_once = len(draws) if draws.size <= MAX_NUMBERS else AT_ONCE
        if self.owner is None:
            whole = in_batches(problem.density(params), draws, at_once)
            return jnp.stack([whole, jnp.zeros_like(whole)], axis=-1)
        owner = jnp.asarray(self.owner.value)

        def at(u: jax.Array) -> jax.Array:
            return by_block(problem, params, u, owner, self.blocks.num_blocks)

        found = in_batches(at, draws, at_once)
        whole = problem.log_joint_unconstrained(params, draws[0])
        left_out = jax.lax.stop_gradient(whole - jnp.sum(found[0]))  # constants of idle latents
        return found.at[:, -1].add(left_out)


class Proposal(NamedTuple):
    """Laws around `loc` (D,) with scale matrices root root', (G, d, d).

    Student-t with 7 degrees of freedom where `heavy`, (G,), is 1, normal where it is 0.
    """

    loc: jax.Array
    root: jax.Array
    heavy: jax.Array

    def move(
        self, blocks: Blocks, normal: jax.Array, mixing: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Draws (n, D) and their log-densities by block, (n, G).

        From standard-normal `normal` (n, D) and `mixing` (n, G), 7 over a chi-square variable.
        """
        spread = jnp.where(self.heavy == 1, jnp.sqrt(mixing), 1.0)
        noise = blocks.split(normal) * spread[..., None]
        draws = self.loc + blocks.join(jnp.einsum("gij,ngj->ngi", self.root, noise))
        return draws, self._log_density(noise)

    def _log_density(self, noise: jax.Array) -> jax.Array:
        """From draws with location and scale removed, (n, G, d), to (n, G)."""
        square, width = jnp.sum(noise**2, axis=-1), noise.shape[-1]
        log_det = jnp.sum(jnp.log(jnp.diagonal(self.root, axis1=-2, axis2=-1)), axis=-1)
        normal, student = (log_density_of_noise(square, width, nu) for nu in (np.inf, DEGREES))
        return jnp.where(self.heavy == 1, student, normal) - log_det


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class BlockDraws(Posterior):
    """Draws (n, D) whose block g has weights (n, g), each column of which sums to one.

    `proposal` is what they were drawn from. `corrected` (G,) says which blocks are weighted by
    importance; the others have equal weights, and stand for q itself.
    """

    draws: jax.Array
    weights: jax.Array
    proposal: Proposal
    corrected: jax.Array
    layout: TermLayout = field(metadata={"static": True})

    def expected_log_joint(self, problem: Problem, params: Params) -> jax.Array:
        """Q(params), the weighted mean of the terms of every block; a scalar."""
        found = self.layout.pieces(problem, params, self.draws)
        weighted = jnp.where(self.weights > 0, self.weights * found[:, :-1], 0.0)
        return jnp.sum(weighted) + found[0, -1]

    def sample(
        self, problem: Problem, params: Params, rng_key: jax.Array, num_samples: int
    ) -> Latents:
        """Resample every block by itself; each site has shape (num_samples, *site_shape)."""
        shares = jnp.cumsum(self.weights, axis=0)
        shape = (num_samples, shares.shape[1])
        level = shares[-1] * jax.random.uniform(rng_key, shape, shares.dtype)
        picked = jax.vmap(jnp.searchsorted, in_axes=1, out_axes=1)(shares, level)
        blocks = self.layout.blocks.split(self.draws)
        chosen = jnp.take_along_axis(blocks, picked[..., None], axis=0)
        return constrain_draws(problem, params, self.layout.blocks.join(chosen))

    def fresh(self, rng_key: jax.Array, num_samples: int) -> tuple[jax.Array, jax.Array]:
        """New draws from the proposal, (num_samples, D), and log-densities, (num_samples, G)."""
        blocks, dtype = self.layout.blocks, self.draws.dtype
        rng = generator(rng_key)
        normal = rng.standard_normal((num_samples, self.draws.shape[1]))
        mixing = draw_mixing(rng, num_samples, blocks.num_blocks)
        return self.proposal.move(blocks, jnp.asarray(normal, dtype), jnp.asarray(mixing, dtype))

    def integrals(
        self, rng_key: jax.Array, problem: Problem, x: jax.Array, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """By importance sampling, on fresh draws; bounds for blocks that are not corrected."""
        draws, log_density = self.fresh(rng_key, NUM_SAMPLES)
        there = jnp.concatenate([draws, self.proposal.loc[None]])
        found = np.asarray(_pieces(self.layout, problem, x, there), float)[:, :-1]
        ratios = found[:-1] - found[-1] - np.asarray(log_density)
        good = np.asarray(self.corrected)
        values = [
            importance(column).value if own else float(np.mean(column))
            for column, own in zip(ratios.T, good, strict=True)
        ]
        blocks = self.layout.blocks.labels
        group = np.zeros(len(values), int)
        group[blocks] = labels
        if np.any(group[blocks] != labels):
            raise NotAdditive("a block of latents is in two groups")
        found = np.bincount(group, values, minlength=int(labels.max()) + 1)
        return np.asarray(self.proposal.loc), found

    def log_likelihood(self, rng_key: jax.Array, problem: Problem, x: jax.Array) -> LogLikelihood:
        """Importance sampling, block by block, on fresh draws from the proposals.

        Kind `"estimate"`; `"lower_bound"` if some blocks could not be corrected, which then stand
        with their mean log weight. The k-hat is the worst over blocks.
        """
        draws, log_density = self.fresh(rng_key, NUM_SAMPLES)
        found = np.asarray(_pieces(self.layout, problem, x, draws), float)
        ratios = found[:, :-1] - np.asarray(log_density)
        value, variance, khats = float(found[0, -1]), 0.0, []
        for column, good in zip(ratios.T, np.asarray(self.corrected), strict=True):
            part = importance(column)
            khats.append(part.khat)
            value += part.value if good else float(np.mean(column))
            variance += part.variance if good else float(np.var(column, ddof=1)) / NUM_SAMPLES
        kind = "estimate" if np.all(self.corrected) else "lower_bound"
        if kind == "lower_bound":
            logger.warning(
                "mean_field: %d of %d blocks of latents could not be corrected, as the Pareto "
                "k-hat of their weights is above 0.7: their share of the bias stays. Use a richer "
                "`guide`, or e_step='nuts'.",
                int(np.sum(~np.asarray(self.corrected))),
                ratios.shape[1],
            )
        return LogLikelihood(value, kind, float(np.sqrt(variance)), max(khats))


@compiled(static_argnums=0)
def _pieces(layout: TermLayout, problem: Problem, x: jax.Array, draws: jax.Array) -> jax.Array:
    return layout.pieces(problem, problem.constrain(x), draws)


def draw_mixing(rng: np.random.Generator, num_samples: int, num_blocks: int) -> np.ndarray:
    """7 over chi-square variables with 7 degrees of freedom, (num_samples, num_blocks)."""
    return DEGREES / rng.chisquare(DEGREES, (num_samples, num_blocks))
