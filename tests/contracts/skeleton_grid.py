"""Skeleton of a deterministic E-step: one latent, summed over an even grid of its values.

Copy it to `ppl_em/e_step/`, add an import line and a row of `FLAGS` in `ppl_em/e_step/__init__.py`,
and a row in the table of `tests/contracts/test_conformance.py`. Here it is used as it is.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ppl_em.e_step import DeterministicEStep, Strength
from ppl_em.params import Params
from ppl_em.posterior import Posterior, constrain_draws
from ppl_em.problem import Latents, Problem
from ppl_em.util import ModelError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OnGrid(Posterior):
    """Points (n, 1) of the unconstrained latent, and their probabilities (n,)."""

    points: jax.Array
    probs: jax.Array

    def expected_log_joint(self, problem: Problem, params: Params) -> jax.Array:
        """Q(params); a scalar."""
        return self.probs @ jax.vmap(problem.density(params))(self.points)

    def sample(
        self, problem: Problem, params: Params, rng_key: jax.Array, num_samples: int
    ) -> Latents:
        """Independent draws, each of shape (num_samples, *site_shape)."""
        picked = jax.random.choice(rng_key, len(self.points), (num_samples,), p=self.probs)
        return constrain_draws(problem, params, self.points[picked])


class GridInfo(NamedTuple):
    """`objective` is the log-likelihood."""

    objective: jax.Array


@dataclass(frozen=True)
class Grid(DeterministicEStep):
    """The posterior of a single latent on `num_points` from -`reach` to `reach`, without state."""

    num_points: int = 801
    reach: float = 20.0
    flag: ClassVar[str] = "grid"
    strength: ClassVar[Strength] = Strength.NODES
    kind: ClassVar[str] = "quadrature"

    def resolve(self, rng_key: jax.Array, problem: Problem, params: Params) -> "Grid":
        """Refuse what has not exactly one latent."""
        problem.require_continuous(self.flag)
        if problem.num_latents != 1:
            raise ModelError(
                f"Site '{problem.latent_names[0]}': e_step='{self.flag}' is for one latent, and "
                f"there are {problem.num_latents}. Use e_step='quadrature'."
            )
        return self

    def init(self, rng_key: jax.Array, problem: Problem, params: Params) -> tuple:
        """Nothing is carried from step to step."""
        return ()

    def step(
        self, problem: Problem, params: Params, state: tuple
    ) -> tuple[OnGrid, tuple, GridInfo]:
        """The posterior at `params`, and the log-likelihood."""
        points, logs = self._logs(problem, params)
        value = jax.nn.logsumexp(logs)
        return OnGrid(points, jnp.exp(logs - value)), state, GridInfo(value)

    def log_likelihood(self, problem: Problem, params: Params, state: tuple) -> jax.Array:
        """The log-likelihood, differentiable; a scalar."""
        return jax.nn.logsumexp(self._logs(problem, params)[1])

    def _logs(self, problem: Problem, params: Params) -> tuple[jax.Array, jax.Array]:
        """The points (n, 1), and the logs of the log-joint's share of each, (n,)."""
        points = jnp.linspace(-self.reach, self.reach, self.num_points)[:, None]
        width = 2 * self.reach / (self.num_points - 1)
        return points, jax.vmap(problem.density(params))(points) + jnp.log(width)
