"""Variational inference corrected by importance weights: draws of q, weighted block by block."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.e_step.base import DeterministicEStep, Strength
from ppl_em.e_step.variational.base_draws import base_draws
from ppl_em.params import Params
from ppl_em.posterior import BlockDraws, Proposal, TermLayout, draw_mixing, roots
from ppl_em.problem import Problem
from ppl_em.stats import MAX_KHAT, smooth
from ppl_em.structure import dense, owners
from ppl_em.util import Static, generator

SMALL = 10
"""Blocks of more latents have normal proposals: in many dimensions heavy tails miss the bulk."""

MOVED = 0.01
"""Gain in log-likelihood after which q is fitted anew: 0.14 standard errors of the parameters."""


class CorrectedState(NamedTuple):
    """The draws in use, what they were drawn from, and where the objective was at that time.

    `guide` is the variational state. `normal` (n, D) and `mixing` (n, G) are the base draws;
    `log_density` (n, G) the proposals' less what smoothing adds to log weights; `corrected` (G,)
    the blocks with importance weights. `reached` is the objective when q was fitted, `offset`
    what makes it continuous there, `fits` how often that was.
    """

    guide: Any
    normal: jax.Array
    mixing: jax.Array
    draws: jax.Array
    log_density: jax.Array
    proposal: Proposal
    corrected: jax.Array
    khat: jax.Array
    reached: jax.Array
    offset: jax.Array
    fits: jax.Array


class CorrectedInfo(NamedTuple):
    """`objective`, an estimate of the log-likelihood, and how far its weights can be trusted.

    `pareto_khat` is the worst over blocks, `effective_draws` the fewest; `uncorrected_blocks` have
    a k-hat above 0.7 and stay variational; `guide_fits` counts the proposals so far.
    """

    objective: jax.Array
    pareto_khat: jax.Array
    effective_draws: jax.Array
    uncorrected_blocks: jax.Array
    guide_fits: jax.Array


@dataclass(frozen=True)
class Corrected(DeterministicEStep):
    """`MeanField(correct="psis")`: Q over draws with Pareto-smoothed importance weights.

    Proposals have the location of q and its covariances by linear response, with Student-t tails
    for blocks of 10 latents or fewer. Weights w_gi of the n draws of block g are self-normalised;
    for as long as the draws stay, EM with these weights maximises

        sum_g log (1/n) sum_i exp(log-joint_g(u_gi) - log q_g(u_gi)),

    an estimate of the log-likelihood, and never lowers it. When it has gained 0.01, q is fitted
    anew to the parameters. The objective goes on from where it was: only its changes matter.

    Attributes
    ----------
    inner
        The variational E-step, its blocks known.
    layout
        The blocks, and which terms of the log-joint they have.
    num_draws
        Draws that are weighted.
    """

    inner: Any
    layout: TermLayout
    num_draws: int
    flag: ClassVar[str] = "mean_field"
    strength: ClassVar[Strength] = Strength.BOUND
    kind: ClassVar[str] = "estimate"

    def init(self, rng_key: jax.Array, problem: Problem, params: Params) -> CorrectedState:
        """Base draws, and no proposal yet."""
        keys = jax.random.split(rng_key, 3)
        rng = generator(keys[1])
        blocks, u = self.layout.blocks, problem.start
        groups, size = blocks.num_blocks, blocks.block_size
        normal = jnp.asarray(base_draws(keys[0], self.num_draws, blocks), u.dtype)
        mixing = jnp.asarray(draw_mixing(rng, self.num_draws, groups), u.dtype)
        zero = jnp.zeros((), u.dtype)
        identity = jnp.broadcast_to(jnp.eye(size, dtype=u.dtype), (groups, size, size))
        return CorrectedState(
            guide=self.inner.init(keys[2], problem, params),
            normal=normal,
            mixing=mixing,
            draws=jnp.broadcast_to(u, normal.shape),
            log_density=jnp.zeros_like(mixing),
            proposal=Proposal(u, identity, jnp.zeros(groups, u.dtype)),
            corrected=jnp.zeros(groups, bool),
            khat=zero,
            reached=zero,
            offset=zero,
            fits=jnp.zeros((), int),
        )

    def step(
        self, problem: Problem, params: Params, state: CorrectedState
    ) -> tuple[BlockDraws, CorrectedState, CorrectedInfo]:
        """Weights at `params`; new draws first, if the log-likelihood has moved since the last."""
        value = self.log_likelihood_of_draws(problem, params, state)
        moved = (state.fits == 0) | ~(value - state.reached < MOVED)
        state = jax.lax.cond(moved, lambda: self._fit(problem, params, state, value), lambda: state)
        ratios = self.layout.pieces(problem, params, state.draws)[:, :-1] - state.log_density
        weights = jnp.where(state.corrected, jax.nn.softmax(ratios, axis=0), 1 / len(ratios))
        effective = 1 / jnp.sum(weights**2, axis=0)
        objective = jnp.where(moved, state.reached, value)
        info = CorrectedInfo(
            objective,
            state.khat,
            jnp.min(effective),
            jnp.sum(~state.corrected),
            state.fits,
        )
        posterior = BlockDraws(state.draws, weights, state.proposal, state.corrected, self.layout)
        return posterior, state, info

    def log_likelihood(self, problem: Problem, params: Params, state: CorrectedState) -> jax.Array:
        """The estimate as a function of the parameters; NaN if a block is not corrected."""
        value = self.log_likelihood_of_draws(problem, params, state)
        return jnp.where(jnp.all(state.corrected), value, jnp.nan)

    def log_likelihood_of_draws(
        self, problem: Problem, params: Params, state: CorrectedState
    ) -> jax.Array:
        """Log of the mean weight of corrected blocks, mean log weight of others; a scalar."""
        found = self.layout.pieces(problem, params, state.draws)
        ratios = found[:, :-1] - state.log_density
        log_mean = jax.nn.logsumexp(ratios, axis=0) - np.log(len(ratios))
        by_block = jnp.where(state.corrected, log_mean, jnp.mean(ratios, axis=0))
        return jnp.sum(by_block) + found[0, -1] + state.offset

    def describe(self, info: CorrectedInfo) -> str:
        """The worst k-hat, and how many blocks are not corrected."""
        text = f"k-hat {float(info.pareto_khat):.2f}"
        left = int(info.uncorrected_blocks)
        return f"{text}, {left} blocks not corrected" if left else text

    def _fit(
        self, problem: Problem, params: Params, state: CorrectedState, value: jax.Array
    ) -> CorrectedState:
        """New draws at `params`; the objective, `value` by the old ones, goes on."""
        blocks = self.layout.blocks
        law, guide, _ = self.inner.step(problem, params, state.guide)
        own = wide = law.block_roots()
        better = law.block_covariances(problem, params)
        if better is not None:
            wide = roots(better, own)
        tails = jnp.full(blocks.num_blocks, float(blocks.block_size <= SMALL), law.loc.dtype)
        proposal = Proposal(law.loc, wide, tails)
        draws, log_density = proposal.move(blocks, state.normal, state.mixing)
        ratios = self.layout.pieces(problem, params, draws)[:, :-1] - log_density
        change, khat = jax.vmap(smooth, in_axes=1, out_axes=(1, 0))(ratios)
        good = khat < MAX_KHAT
        # Blocks that cannot be corrected keep q itself.
        proposal = Proposal(
            law.loc, jnp.where(good[:, None, None], wide, own), jnp.where(good, tails, 0.0)
        )
        draws, log_density = proposal.move(blocks, state.normal, state.mixing)
        state = state._replace(
            guide=guide,
            draws=draws,
            log_density=log_density - jnp.where(good, change, 0.0),
            proposal=proposal,
            corrected=good,
            khat=jnp.max(khat),
            offset=jnp.zeros_like(state.offset),
        )
        found = self.log_likelihood_of_draws(problem, params, state)
        first = state.fits == 0
        return state._replace(
            reached=jnp.where(first, found, value),
            offset=jnp.where(first, 0.0, value - found),
            fits=state.fits + 1,
        )


def corrected(inner: Any, problem: Problem, x: jax.Array, num_draws: int) -> Corrected:
    """`inner`, a `MeanField` with its blocks, with weights; `x` (p,) are generic parameters.

    By block where every term of the log-joint belongs to one block, else jointly.
    """
    blocks = inner.blocks or dense(problem)
    owner = None
    if blocks.num_blocks > 1:
        owner = owners(problem, x, np.asarray(problem.start), blocks.labels)
    if owner is None:  # the terms cannot be told apart: joint weights
        blocks = dense(problem)
        inner = dataclasses.replace(inner, blocks=blocks)
    layout = TermLayout(blocks, None if owner is None else Static(owner))
    return Corrected(inner, layout, max(num_draws, 4 * (blocks.block_size + 1)))
