"""Quadrature E-step: integrals over small independent blocks of latents."""

import logging
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.e_step.base import Approximation, Strength
from ppl_em.e_step.chain_nodes import along_chain
from ppl_em.e_step.mode import Mode, find_mode, first_mode, law_near, mode_of
from ppl_em.e_step.quadrature_refinement import (
    COARSE,
    HERMITE,
    Rule,
    choose,
    following,
    ladder,
    value_on,
)
from ppl_em.params import Params
from ppl_em.posterior import (
    Gaussian,
    Nodes,
    Placed,
    Span,
    block_sums,
    find_span,
    gauss_hermite,
    sinh_trapezoid,
)
from ppl_em.problem import Problem
from ppl_em.structure import Blocks, find_blocks, owners
from ppl_em.util import ModelError, check_options, compiled, number, optional, whole

logger = logging.getLogger("ppl_em")

NOTABLE = 1e-4
"""Change of the log-likelihood on the last refinement that is worth a warning."""

RELATIVE = 1e-9
"""Change of the log-likelihood that is small enough, relative to its size."""

ENOUGH = 1e-6
"""Squared distance from the mode, in standard deviations, at which nodes may be held."""

SPREAD = 0.3
"""How far away parameters are at which blocks are found, on the unconstrained scale."""


class QuadratureState(NamedTuple):
    """The last modes, (D,), the block of every term of the log-joint, (E,), and how far they reach.

    `span` is None for Gauss-Hermite rules.
    """

    center: jax.Array
    owner: jax.Array
    span: Span | None


class QuadratureInfo(NamedTuple):
    """`objective` is the log-likelihood; the rest tells how it was come by.

    `nodes` in each dimension; `inner_slope`, the length of the gradient at the modes in posterior
    standard deviations; `inner_steps`, the Newton steps there.
    """

    objective: jax.Array
    nodes: jax.Array
    inner_slope: jax.Array
    inner_steps: jax.Array


@dataclass(frozen=True)
class Quadrature(Approximation):
    """Integrals over each block of latents, on nodes around its mode.

    Latents with a support are on the unconstrained scale. The number of nodes is raised until the
    log-likelihood no longer changes, at the first parameters and again at the last ones. Latents
    alone in their block, for which Gauss-Hermite rules need many, get nodes that reach further.
    Blocks of several latents get few nodes for second derivatives and until parameters settle.
    Chains of one latent in each step have sums over all paths.

    Attributes
    ----------
    num_nodes
        Nodes of adaptive Gauss-Hermite rules in each dimension, as lme4's `nAGQ`; with 1 the
        log-likelihood is Laplace's. None to choose rule and number.
    tol
        Change of the log-likelihood on refinement that is small enough, times the square root of
        the number of blocks: about how far estimates may be off, in standard errors.
    max_dimension, max_points
        Largest block, in latents; and most nodes of a block, over all its dimensions.

    References
    ----------
    Pinheiro & Bates (1995), Journal of Computational and Graphical Statistics 4.

    Examples
    --------
    >>> em = EM(model, e_step=ppl_em.e_step.Quadrature(num_nodes=9))
    """

    num_nodes: int | None = None
    tol: float = 1e-8
    max_dimension: int = 3
    max_points: int = 30_000
    blocks: Blocks | None = field(default=None, repr=False)
    rule: Rule | None = field(default=None, repr=False)
    coarse: Rule | None = field(default=None, repr=False)
    flag: ClassVar[str] = "quadrature"
    strength: ClassVar[Strength] = Strength.NODES
    kind: ClassVar[str] = "quadrature"

    def __post_init__(self) -> None:
        # More nodes than that add rounding, and their weights take minutes to find.
        check_options(self, "Quadrature", num_nodes=optional(whole(1, 200)), tol=number(above=True))
        check_options(self, "Quadrature", max_dimension=whole(), max_points=whole())

    @property
    def noise(self) -> float:
        """What moving the nodes may change."""
        if self.blocks is not None and self._is_dear and self.coarse is None:
            return COARSE * self.blocks.num_blocks
        return 10 * self.tol

    def resolve(self, rng_key: jax.Array, problem: Problem, params: Params) -> Approximation:
        """Find the blocks, and how many nodes they take.

        Raises
        ------
        ModelError
            If there are no continuous latents, their blocks are too large, or no mode is found.
        """
        problem.require_continuous(self.flag)
        problem.require_gradient(self.flag)
        blocks = find_blocks(problem, problem.unconstrain(params), problem.start, rng_key, SPREAD)
        name, size = problem.spec.latents[0].name, blocks.block_size
        if size > self.max_dimension:
            along = along_chain(rng_key, problem, params, self.num_nodes)
            if along is not None:
                return along
            least = f"{HERMITE[2][1]}^{size} nodes or more"
            raise ModelError(
                f"Site '{name}': the latents depend on one another in blocks of {size}, for which "
                f"e_step='quadrature' would take {least}. Use e_step='nuts' or 'laplace', or raise "
                f"Quadrature(max_dimension={self.max_dimension})."
            )
        found = replace(self, blocks=blocks)
        if found._is_dear:
            return replace(found, rule=ladder(size, self.max_points)[0])
        state = found.init(rng_key, problem, params)
        return found.refined(problem, params, state) or found

    def init(self, rng_key: jax.Array, problem: Problem, params: Params) -> QuadratureState:
        """The modes at the first parameters, and what belongs to which block."""
        blocks = self.known_blocks
        mode = first_mode(self.flag, rng_key, blocks, problem, params)
        x, center = problem.unconstrain(params), np.asarray(mode.u)
        owner = owners(problem, x, center, blocks.labels)
        if owner is None:
            raise ModelError(
                f"Site '{problem.spec.latents[0].name}': e_step='quadrature' cannot tell which "
                f"terms of the log-joint depend on which latents. Use e_step='nuts' or 'laplace'."
            )
        where = jnp.asarray(owner)
        span = self._span(problem, params, cast(Gaussian, mode.law), where)
        return QuadratureState(mode.u, where, span)

    def step(
        self, problem: Problem, params: Params, state: QuadratureState
    ) -> tuple[Nodes, QuadratureState, QuadratureInfo]:
        """The nodes at `params` with their probabilities, and the log-likelihood."""
        mode = self._mode(problem, params, state.center)
        law = cast(Gaussian, mode.law)
        span = self._span(problem, params, law, state.owner)
        posterior = Nodes.at(problem, params, law, self._place(law, span), state.owner)
        value = jnp.where(mode.found, posterior.log_normalizer, jnp.nan)
        info = QuadratureInfo(value, jnp.asarray(self.size), mode.slope, mode.num_steps)
        return posterior, state._replace(center=mode.u, span=span), info

    def log_likelihood(self, problem: Problem, params: Params, state: QuadratureState) -> jax.Array:
        """The log-likelihood, differentiable once; a scalar.

        Nodes that are enough are held: moving them does not change an integral. Given numbers of
        nodes follow the mode and the curvature there.
        """
        fixed, given = jax.lax.stop_gradient(params), self.num_nodes is not None
        found = self._mode(problem, fixed, state.center, 0.0 if given else ENOUGH)
        mode = jax.lax.stop_gradient(found)
        law = cast(Gaussian, mode.law)
        if given:
            law = law_near(self.known_blocks, problem.density(params), mode)
            placed = self._place(law, None)
        else:
            span = state.span or self._span(problem, fixed, law, state.owner)
            placed = jax.lax.stop_gradient(self._place(law, span))
        value = Nodes.at(problem, params, law, placed, state.owner).log_normalizer
        return jnp.where(mode.found, value, jnp.nan)

    def refined(
        self, problem: Problem, params: Params, state: QuadratureState
    ) -> "Quadrature | None":
        """One with more nodes, if this one has too few at `params`; None if it has enough."""
        if self.num_nodes is not None or self.coarse is not None:
            return None
        blocks = self.known_blocks
        values: dict[Rule, float] = {}
        law = cast(Gaussian, mode_of(blocks, problem, params, state.center)[0].law)

        def value(rule: Rule) -> float:
            span = _find_span(problem, params, law, state.owner) if rule.sinh else None
            placed = _placed(law, span, rule.size)
            values[rule] = value_on(problem, params, law, state.owner, placed)
            return values[rule]

        def allowed(value: float) -> float:
            return max(self.tol * np.sqrt(blocks.num_blocks), RELATIVE * abs(value))

        rules = ladder(blocks.block_size, self.max_points)
        if self._is_dear:
            rule, change = choose(value, allowed, rules, None, 1.0)
            near = (
                r for r in values if abs(values[r] - values[rule]) <= COARSE * blocks.num_blocks
            )
            finer: Quadrature | None = replace(self, rule=rule, coarse=next(near))
        else:
            rule, change = choose(value, allowed, rules, self.rule)
            is_finer = self.rule is None or rules.index(rule) > rules.index(self.rule)
            finer = replace(self, rule=rule) if is_finer else None
        if rule == rules[-1] and self.rule is not None:
            level = logging.WARNING if change > NOTABLE else logging.INFO
            logger.log(
                level,
                "e_step='quadrature' has %d nodes in each dimension and its log-likelihood is good "
                "to about %.0e. For more, raise Quadrature(max_points=%d), or use e_step='nuts'.",
                rule.size,
                change,
                self.max_points,
            )
        return finer

    def for_curvature(self) -> "Quadrature":
        """With fewer nodes, if these do for second derivatives."""
        return self if self.coarse is None else replace(self, rule=self.coarse)

    def for_evaluation(self) -> "Quadrature":
        """With the rule that confirmed this one: moments need more nodes than their sum."""
        return replace(self, rule=following(self.rule, self.known_blocks, self.max_points))

    def describe(self, info: QuadratureInfo) -> str:
        """Nodes in each dimension."""
        return f"{int(info.nodes)} nodes"

    @property
    def known_blocks(self) -> Blocks:
        """The blocks that `resolve` found."""
        if self.blocks is None:
            raise ValueError("call `resolve` first")
        return self.blocks

    @property
    def size(self) -> int:
        """Nodes in each dimension."""
        return self.num_nodes or (self.rule.size if self.rule else 0)

    @property
    def _is_dear(self) -> bool:
        return self.num_nodes is None and self.known_blocks.block_size > 1

    def _mode(
        self, problem: Problem, params: Params, center: jax.Array, enough: float = 0.0
    ) -> Mode:
        return find_mode(self.known_blocks, problem.density(params), center, enough)

    def _span(
        self, problem: Problem, params: Params, law: Gaussian, owner: jax.Array
    ) -> Span | None:
        if self.rule is None or not self.rule.sinh:
            return None
        return _find_span(problem, params, law, owner)

    def _place(self, law: Gaussian, span: Span | None) -> Placed:
        return _placed(law, span, self.size)


def _placed(law: Gaussian, span: Span | None, size: int) -> Placed:
    return gauss_hermite(law, size) if span is None else sinh_trapezoid(span, size)


@compiled
def _find_span(problem: Problem, params: Params, law: Gaussian, owner: jax.Array) -> Span:
    def log_density(offsets: jax.Array) -> jax.Array:
        return block_sums(problem, params, law, owner, offsets)[:, :-1]

    return find_span(law, log_density)
