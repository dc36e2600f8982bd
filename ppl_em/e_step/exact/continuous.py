"""Exact E-step for continuous latents whose conditional law is a product of known ones."""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.e_step.base import DeterministicEStep, ExactInfo, Strength, firm
from ppl_em.e_step.exact.find_state_space import MAX_BLOCK, find_state_space
from ppl_em.e_step.exact.state_space import StateSpace
from ppl_em.e_step.exact.uniform_chain import UniformChain, find_uniform
from ppl_em.params import Params
from ppl_em.posterior import Gaussian, GaussianChain, PartPosterior, Product
from ppl_em.problem import WIDE, Problem, look
from ppl_em.structure import Blocks, Chain, Density, StepPoints, Structure, totals
from ppl_em.structure.condense_steps import condense_steps
from ppl_em.util import Static, split

ROUNDED = 0.7
"""A chain's precision may turn rounding into a relative error of eps to this power."""

ROUGH = 0.35
"""The same where there is no other form of the chain."""

MOVES = 5
"""Moves of the first expansion point, at most."""


class Part(Protocol):
    """Some coordinates whose conditional law is of one known kind; frozen and hashable."""

    @property
    def index(self) -> Static:
        """The coordinates, ascending positions in u, shape (d,)."""
        ...

    @property
    def structure(self) -> Structure | None:
        """The zeros of the Hessian of a Gaussian part; None for others."""
        ...

    def away(self, slope: np.ndarray) -> np.ndarray:
        """How far to move from where the log-joint has this slope, (D,), so that a fit is good."""
        ...

    def fit(self, density: Density, u: jax.Array, gradient: jax.Array) -> PartPosterior:
        """The conditional law, from the log-joint near `u` (D,) and its gradient there (D,).

        The law does not depend on `u`, except by rounding.
        """
        ...


class ContinuousState(NamedTuple):
    """Where the parts are fitted, shape (D,), the points of condensed scans, and what they see.

    `states` is the state space model that the latents are, once their precision has lost its
    digits; until then that makes NaN of what has a larger relative error than `allowed`.
    """

    center: jax.Array
    points: StepPoints
    uniform: UniformChain | None
    states: StateSpace | None
    allowed: jax.Array


@dataclass(frozen=True)
class Continuous(DeterministicEStep):
    """One fit for each part, all around one point.

    The log-joint minus the parts' log-densities is the same everywhere: log Z.

    Attributes
    ----------
    parts
        A partition of the coordinates into independent parts, proved by `Exact`.
    min_rows
        Steps of a scan from which they are condensed, see `condense_steps.py`; None for never.
    """

    parts: tuple[Part, ...]
    min_rows: int | None = None
    flag: ClassVar[str] = "exact"
    strength: ClassVar[Strength] = Strength.EXACT
    kind: ClassVar[str] = "exact"

    def init(self, rng_key: jax.Array, problem: Problem, params: Params) -> ContinuousState:
        """The expansion point, and points that stand for the steps of long scans."""
        x = problem.unconstrain(params)
        center = self._near(problem, x)
        keys = split(rng_key)
        points = condense_steps(keys[0], problem, x, self.min_rows)
        uniform, part = None, self.parts[0]
        if points and len(self.parts) == 1 and part.structure is not None:
            uniform = find_uniform(keys[1], problem, x, part.structure, points)
        allowed = jax.device_put(np.asarray(np.finfo(x.dtype).eps ** ROUNDED, x.dtype))
        state = ContinuousState(center, points, uniform, None, allowed)
        if isinstance(x, jax.core.Tracer) or self._chain(problem) is None:
            return state
        return firm(self, problem, x, state)

    def firmer(
        self, problem: Problem, x: jax.Array, state: ContinuousState
    ) -> ContinuousState | None:
        """The chain as a state space model, if it is one; else what its precision tells."""
        chain, eps = self._chain(problem), float(jnp.finfo(problem.start.dtype).eps)
        if chain is None or state.states is not None or state.allowed > eps**ROUNDED * 1.1:
            return None
        states = find_state_space(problem, x, chain)
        if states is not None:
            # Sums over condensed steps would take differences of what is nearly the same.
            return state._replace(points={}, uniform=None, states=states)
        rough = eps**ROUGH if isinstance(self.parts[0].structure, Chain) else np.inf
        return state._replace(allowed=jnp.asarray(rough, state.allowed.dtype))

    def by_fisher(self, state: ContinuousState) -> bool:
        """Not where states differ by less than they are rounded."""
        return state.states is None

    def _near(self, problem: Problem, x: jax.Array) -> jax.Array:
        """The problem's start, or where slopes are not so steep that they hide all else."""
        if isinstance(x, jax.core.Tracer):  # within a program there are no values to go by
            return problem.start
        u = np.asarray(problem.start)
        for _ in range(MOVES):
            directions = np.zeros_like(u[None]) if u.size <= WIDE else None
            slope = np.asarray(look(problem, x, u[None], directions).by_latent[0])
            moves = [np.where(np.isfinite(slope), part.away(slope), 0.0) for part in self.parts]
            if not np.any(moves):
                break
            u = (u + np.sum(moves, axis=0)).astype(u.dtype)
        return jax.device_put(u)

    def step(
        self, problem: Problem, params: Params, state: ContinuousState
    ) -> tuple[Product, ContinuousState, ExactInfo]:
        """The posterior at `params`, and the exact log-likelihood."""
        value, posterior = self._fit(problem, params, state)
        steps = None
        if state.uniform is not None:
            chain = cast(GaussianChain, posterior.parts[0])
            nodes, steps = state.uniform.moments(problem, params, chain, state.points)
        else:
            nodes = posterior.points()
            if state.points:
                steps = totals(problem, params, nodes, state.points)
        posterior = replace(posterior, nodes=nodes, steps=steps)
        return posterior, state._replace(center=posterior.center), ExactInfo(value)

    def log_likelihood(self, problem: Problem, params: Params, state: ContinuousState) -> jax.Array:
        """log p(y; params), latents integrated out; a scalar."""
        return self._fit(problem, params, state)[0]

    def posterior(self, density: Density, u: jax.Array, gradient: jax.Array) -> Product:
        """The parts fitted around `u` (D,), where the log-joint has the gradient (D,)."""
        posteriors = tuple(part.fit(density, u, gradient) for part in self.parts)
        return Product(posteriors, tuple(part.index for part in self.parts))

    def _fit(
        self, problem: Problem, params: Params, state: ContinuousState
    ) -> tuple[jax.Array, Product]:
        """The log-likelihood and the posterior, both NaN where rounding has taken their digits."""
        if state.states is not None:
            value, filtered = state.states.fit(problem, params, state.center)
            return value, Product((filtered,), (self.parts[0].index,))
        density = problem.density(params)
        u = state.center
        value, gradient = jax.value_and_grad(density)(u)
        if state.uniform is None:
            posterior = self.posterior(density, u, gradient)
        else:
            found = state.uniform.fit(problem, params, u, gradient, state.points)
            posterior = Product((found,), (self.parts[0].index,))
        away = posterior.log_density(u)
        if self._chain(problem) is None:
            return value - away, posterior
        law = cast(GaussianChain | Gaussian, posterior.parts[0])
        error = jnp.finfo(u.dtype).eps * jax.lax.stop_gradient(
            jnp.maximum(law.cancellation(), jnp.abs(away) / (1 + jnp.abs(value - away)))
        )
        known = jnp.where(error < state.allowed, 1.0, jnp.nan)  # a factor reaches derivatives, too
        law = replace(law, mean=law.mean * known)
        return (value - away) * known, replace(posterior, parts=(law,))

    def _chain(self, problem: Problem) -> Chain | None:
        """The chain that all latents are, if they are one; a short one has been made a block."""
        structure = self.parts[0].structure if len(self.parts) == 1 else None
        if isinstance(structure, Chain):
            return structure
        if not isinstance(structure, Blocks) or not 1 < structure.block_size <= MAX_BLOCK:
            return None
        alone = structure.num_blocks == 1 or bool(problem.spec.scans)
        return Chain(Static(structure.index.value[:, None])) if alone else None
