"""Weighted draws: one representation for Monte Carlo EM, stochastic approximation, reweighting."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.params import Params
from ppl_em.posterior.base import Posterior, constrain_draws, weighted_mean
from ppl_em.posterior.evidence import KnownBlocks, importance_sampled, sampled_by_group
from ppl_em.posterior.log_likelihood import LogLikelihood
from ppl_em.problem import Latents, Problem


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class WeightedDraws(Posterior):
    """Draws of the unconstrained latents, (chain, draw, D), and weights (chain, draw).

    Weights sum to one; plain Monte Carlo EM has equal weights. `stats` holds what the sampler says
    of each draw, arrays (chain, draw) under ArviZ's names.
    """

    by_draws: ClassVar[bool] = True

    draws: jax.Array
    weights: jax.Array
    stats: dict[str, jax.Array] = field(default_factory=dict)

    @staticmethod
    def equal(draws: jax.Array, stats: dict[str, jax.Array] | None = None) -> "WeightedDraws":
        """Equally weighted `draws`, (chain, draw, D)."""
        count = draws.shape[0] * draws.shape[1]
        weights = jax.device_put(np.full(draws.shape[:2], 1 / count, draws.dtype))
        return WeightedDraws(draws, weights, stats or {})

    def log_joints(self, problem: Problem, params: Params) -> jax.Array:
        """The log-joint at `params` of every draw, shape (chain, draw)."""

        def log_joint(u: jax.Array) -> jax.Array:
            return problem.log_joint_unconstrained(params, u)

        return jax.vmap(jax.vmap(log_joint))(self.draws)

    def expected_log_joint(self, problem: Problem, params: Params) -> jax.Array:
        """Monte Carlo Q(params): the weighted mean of the log-joint; a scalar."""
        return jnp.sum(self.weights * self.log_joints(problem, params))

    def sample(
        self, problem: Problem, params: Params, rng_key: jax.Array, num_samples: int
    ) -> Latents:
        """Resample the stored draws; each site has shape (num_samples, *site_shape)."""
        flat = self.draws.reshape((-1, self.draws.shape[-1]))
        picked = jax.random.choice(rng_key, len(flat), (num_samples,), p=self.weights.ravel())
        return constrain_draws(problem, params, flat[picked])

    def expectation(self, value: Callable[[jax.Array], Any]) -> Any:
        """As good as Q is."""
        flat = self.draws.reshape(self.weights.size, -1)
        return weighted_mean(value, flat, self.weights.ravel())

    def integrals(
        self, rng_key: jax.Array, problem: Problem, x: jax.Array, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """By importance or bridge sampling."""
        return sampled_by_group(rng_key, problem, x, np.asarray(self.draws), labels)

    def log_likelihood(
        self,
        rng_key: jax.Array,
        problem: Problem,
        x: jax.Array,
        known: KnownBlocks | None = None,
    ) -> LogLikelihood:
        """By importance or bridge sampling, see `evidence.importance_sampled`."""
        return importance_sampled(rng_key, problem, x, np.asarray(self.draws), known)
