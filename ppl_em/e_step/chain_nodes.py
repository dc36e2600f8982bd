"""Quadrature along chains of one latent each: sums over all paths through nodes."""

import logging
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.e_step.base import Approximation, Strength, expectation
from ppl_em.params import Params
from ppl_em.posterior import ChainNodes, PathSums, on_nodes, path_sums
from ppl_em.problem import Problem
from ppl_em.structure import (
    Chain,
    Reach,
    StepTerms,
    active,
    find_lone_chain,
    prior_reach,
    terms_by_step,
)
from ppl_em.util import ModelError, compiled

logger = logging.getLogger("ppl_em")

FIRST = 100
"""Nodes of a step at first."""

GROWTH = 1.5
"""Factor by which their number is raised."""

MOST = 600
"""Nodes of a step, at most."""

MAX_NUMBERS = 30_000_000
"""Pairs of states of all steps, at most: what memory takes."""

APART = 3.0
"""Change of the log-likelihood without every second node from which sums are arbitrary."""

AT_START = 1.0
"""The same for the first parameters, from which more nodes are taken."""

SETTLED = 3e-4
"""Change of the log-likelihood on refinement that is small enough."""

NOTABLE = 1e-2
"""The same that is worth a warning where there are no more nodes to have."""

POWERS = (0.03, 0.3, 1.0, 1.0)
"""Powers of the density by which a first range is narrowed."""

WIDE = int(FIRST * GROWTH)
"""Nodes of a step while ranges are wide; at least."""

MORE = 20
"""Passes after these, until ranges stay."""

STAYS = 0.05
"""Change of a range's ends, in its width, within which it stays."""


class ChainState(NamedTuple):
    """Where the nodes are, and which term belongs to which step."""

    reach: Reach
    terms: StepTerms


class ChainInfo(NamedTuple):
    """`objective` is the log-likelihood; `half` what every second node alone changes it by."""

    objective: jax.Array
    nodes: jax.Array
    half: jax.Array


@dataclass(frozen=True)
class ChainQuadrature(Approximation):
    """Sums over all paths through nodes, evenly spaced where the posterior of each step is.

    Attributes
    ----------
    chain
        The latents, (B, T, 1).
    num_nodes
        K, of each step.
    given
        Whether the user gave that number.

    References
    ----------
    Kitagawa (1987), Journal of the American Statistical Association 82, for filters on nodes.
    """

    chain: Chain
    num_nodes: int = FIRST
    given: bool = False
    refinements: int = field(default=0, repr=False)
    flag: ClassVar[str] = "quadrature"
    strength: ClassVar[Strength] = Strength.NODES
    kind: ClassVar[str] = "quadrature"
    runs_long: ClassVar[bool] = True
    holds: ClassVar[bool] = True

    @property
    def noise(self) -> float:
        """What moving the nodes may change."""
        return SETTLED / 10 if self.refinements else SETTLED

    def init(self, rng_key: jax.Array, problem: Problem, params: Params) -> ChainState:
        """Nodes where the posterior is at the first parameters."""
        terms = terms_by_step(problem, problem.unconstrain(params), self.chain)
        if terms is None:
            raise ValueError("call `resolve` first")
        reach = prior_reach(problem, params, self.chain, rng_key)
        if reach is None:
            raise ModelError(
                f"Site '{problem.spec.latents[0].name}': no finite draws come from its prior, "
                f"which e_step='quadrature' takes to see how far a chain reaches. Use a proper law "
                f"for its first step, e_step='laplace' or e_step='nuts'."
            )
        state, count = ChainState(reach, terms), max(self.num_nodes, WIDE)
        for power in POWERS:
            state = self._narrowed(problem, params, state, count, power)[0]
        for _ in range(MORE):
            before, (state, _) = state, self._narrowed(problem, params, state, count)
            if _stays(before.reach, state.reach):
                break
        return state

    def step(
        self, problem: Problem, params: Params, state: ChainState
    ) -> tuple[ChainNodes, ChainState, ChainInfo]:
        """The nodes moved to where the posterior is at `params`, and the sum over paths."""

        def at(reach: Reach) -> tuple[ChainNodes, PathSums]:
            return on_nodes(problem, params, self.chain, state.terms, reach, self.num_nodes)

        def again(_: int, found: tuple[ChainNodes, PathSums]) -> tuple[ChainNodes, PathSums]:
            before = found[0]
            return at(active(before.reach, jnp.sum(before.probs, axis=2), stays=True))

        # A loop, to compile once what is evaluated twice; of no law nodes stay as they are.
        shapes = jax.eval_shape(at, state.reach)
        nothing, sums = jax.tree.map(_unknown, shapes)
        nothing = replace(nothing, reach=state.reach, terms=state.terms)
        posterior, sums = jax.lax.fori_loop(0, 2, again, (nothing, sums))
        info = ChainInfo(_guarded(sums), jnp.asarray(self.num_nodes), sums.half - sums.value)
        return posterior, state._replace(reach=posterior.reach), info

    def log_likelihood(self, problem: Problem, params: Params, state: ChainState) -> jax.Array:
        """The log-likelihood on the nodes of `state`, which are held; a scalar."""
        args = (problem, params, self.chain, state.terms, state.reach)
        return _guarded(path_sums(*args, self.num_nodes))

    def refined(
        self, problem: Problem, params: Params, state: ChainState
    ) -> "ChainQuadrature | None":
        """One with more nodes, if that changes the log-likelihood at `params`; else None."""
        if self.given:
            return None
        more = min(int(GROWTH * self.num_nodes), self.most_nodes(state.terms.num_states))
        if more <= self.num_nodes:
            return None
        x = problem.unconstrain(params)
        state, info = expectation(self, problem, x, state)[1:]
        finer = self._narrowed(problem, problem.constrain(x), state, more)[1].value
        change = abs(float(finer) - float(info.objective))
        if change <= SETTLED:
            return None
        if more == self.most_nodes(state.terms.num_states) and change > NOTABLE:
            logger.warning(
                "e_step='quadrature' has %d nodes in each step and its log-likelihood is good to "
                "about %.0e. Use e_step='nuts' to see whether that matters.",
                more,
                change,
            )
        return replace(self, num_nodes=more, refinements=self.refinements + 1)

    def most_nodes(self, states: int) -> int:
        """Nodes of each step that memory takes, at most."""
        pairs = self.chain.num_chains * self.chain.length * states**2
        return min(MOST, int((MAX_NUMBERS / pairs) ** 0.5))

    def describe(self, info: ChainInfo) -> str:
        """Nodes of each step."""
        return f"{int(info.nodes)} nodes"

    def _narrowed(
        self, problem: Problem, params: Params, state: ChainState, count: int, power: float = 1.0
    ) -> tuple[ChainState, PathSums]:
        count = min(count, self.most_nodes(state.terms.num_states))
        return _narrowed(self.chain, count, problem, params, state, jnp.asarray(power))


def along_chain(
    rng_key: jax.Array, problem: Problem, params: Params, num_nodes: int | None
) -> ChainQuadrature | None:
    """Quadrature along chains, with as many nodes as the first parameters need.

    None if the latents are not chains of one latent each.

    Raises
    ------
    ModelError
        If no nodes that memory takes are enough there.
    """
    x = problem.unconstrain(params)
    found = find_lone_chain(problem, x, rng_key)
    if found is None:
        return None
    chain, terms = found
    engine = ChainQuadrature(chain, num_nodes or FIRST, num_nodes is not None)
    most = engine.most_nodes(terms.num_states)
    engine = replace(engine, num_nodes=min(engine.num_nodes, most))
    params = problem.constrain(x)
    while True:
        state = engine.init(rng_key, problem, params)
        gap = abs(float(expectation(engine, problem, x, state)[2].half))
        if gap <= (APART if engine.given else AT_START):
            return engine
        if engine.given or engine.num_nodes >= most:
            raise ModelError(
                f"Site '{problem.spec.latents[0].name}': sums over {engine.num_nodes} nodes of "
                f"each step are not to be trusted at the first parameters: without every second "
                f"node the log-likelihood changes by {gap:.2g}. Start at other values, or use "
                f"e_step='nuts' or 'laplace'."
            )
        engine = replace(engine, num_nodes=min(int(GROWTH * engine.num_nodes), most))


def _guarded(sums: PathSums) -> jax.Array:
    """The log-likelihood; NaN where nodes are too far apart for it to mean anything."""
    gap = jnp.abs(sums.value - sums.half)
    return jnp.where(gap <= APART, sums.value, jnp.nan)


def _unknown(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    real = jnp.issubdtype(leaf.dtype, jnp.floating)
    return jnp.full(leaf.shape, jnp.nan if real else 0, leaf.dtype)


def _stays(before: Reach, after: Reach) -> bool:
    width = np.asarray(after.high - after.low)
    moved = [np.abs(np.asarray(a - b)) for a, b in zip(before, after, strict=True)]
    return bool(np.all(np.stack(moved) <= STAYS * width))


def _narrowed_once(
    chain: Chain, count: int, problem: Problem, params: Params, state: ChainState, power: jax.Array
) -> tuple[ChainState, PathSums]:
    found, sums = on_nodes(problem, params, chain, state.terms, state.reach, count, power)
    return state._replace(
        reach=active(state.reach, jnp.sum(found.probs, axis=2), stays=False)
    ), sums


_narrowed = compiled(_narrowed_once, static_argnums=(0, 1), runs_long=True)
