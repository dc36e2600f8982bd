"""Exact E-step for continuous latents whose conditional law is a product of known ones."""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.e_step.base import DeterministicEStep, ExactInfo, Strength
from ppl_em.e_step.exact.find_state_space import find_state_space
from ppl_em.e_step.exact.state_space import StateSpace
from ppl_em.e_step.exact.uniform_chain import UniformChain, find_uniform
from ppl_em.params import Params
from ppl_em.posterior import GaussianChain, PartPosterior, Product
from ppl_em.problem import WIDE, Problem, look
from ppl_em.structure import Density, StepPoints, Structure, totals
from ppl_em.structure.condense_steps import condense_steps
from ppl_em.util import Static

LOST = 1e-10
"""Relative error of a law by its precision beyond which it is found from transitions instead."""

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

    `states` is the state space model that the latents are, if they are one.
    """

    center: jax.Array
    points: StepPoints
    uniform: UniformChain | None
    states: StateSpace | None


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
        keys = jax.random.split(rng_key, 3)
        center = self._near(problem, x)
        points = condense_steps(keys[0], problem, x, self.min_rows)
        uniform, states, part = None, None, self.parts[0]
        if len(self.parts) == 1:
            states = find_state_space(keys[2], problem, x, part.structure)
        if points and len(self.parts) == 1 and part.structure is not None:
            uniform = find_uniform(keys[1], problem, x, part.structure, points)
        return ContinuousState(center, points, uniform, states)

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
        states = state.states
        if states is None:
            return self._by_precision(problem, params, state)[0]
        # The choice comes first: derivatives of a law without digits are not numbers, even times 0.
        held = self._by_precision(problem, jax.lax.stop_gradient(params), state)
        return jax.lax.cond(
            _has_digits(*held),
            lambda: self._by_precision(problem, params, state)[0],
            lambda: states.fit(problem, params, state.center)[0],
        )

    def posterior(self, density: Density, u: jax.Array, gradient: jax.Array) -> Product:
        """The parts fitted around `u` (D,), where the log-joint has the gradient (D,)."""
        posteriors = tuple(part.fit(density, u, gradient) for part in self.parts)
        return Product(posteriors, tuple(part.index for part in self.parts))

    def _fit(
        self, problem: Problem, params: Params, state: ContinuousState
    ) -> tuple[jax.Array, Product]:
        value, posterior, away = self._by_precision(problem, params, state)
        states = state.states
        if states is None:
            return value, posterior
        value, law = jax.lax.cond(
            _has_digits(value, posterior, away),
            lambda: (value, cast(GaussianChain, posterior.parts[0])),
            lambda: states.fit(problem, params, state.center),
        )
        return value, replace(posterior, parts=(law,))

    def _by_precision(
        self, problem: Problem, params: Params, state: ContinuousState
    ) -> tuple[jax.Array, Product, jax.Array]:
        """Log-likelihood, posterior, and the posterior's log-density at the point they are from."""
        density = problem.density(params)
        u = state.center
        value, gradient = jax.value_and_grad(density)(u)
        if state.uniform is None:
            posterior = self.posterior(density, u, gradient)
        else:
            law = state.uniform.fit(problem, params, u, gradient, state.points)
            posterior = Product((law,), (self.parts[0].index,))
        away = posterior.log_density(u)
        return value - away, posterior, away


def _has_digits(value: jax.Array, posterior: Product, away: jax.Array) -> jax.Array:
    """Whether a chain found by its precision is right, and `away` does not drown the `value`."""
    law = cast(GaussianChain, posterior.parts[0])
    eps = float(jnp.finfo(law.mean.dtype).eps)
    held = jnp.abs(away) * min(eps, LOST) < LOST * (1 + jnp.abs(value))
    return held & (law.collinearity() < max(LOST / eps, 100.0))
