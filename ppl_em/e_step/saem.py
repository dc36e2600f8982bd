"""Stochastic approximation EM: Q as a weighted mean over the draws of many steps.

With step sizes g_k, Q_k = (1 - g_k) Q_(k-1) + g_k (mean over the newest draws). Models need no
sufficient statistics for that: the draws are kept, with weights that decay as the steps go on.

References
----------
Delyon, Lavielle & Moulines (1999), Convergence of a stochastic approximation version of the EM
algorithm, Annals of Statistics 27.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.e_step.base import StochasticEStep, Strength
from ppl_em.params import Params
from ppl_em.posterior import WeightedDraws
from ppl_em.problem import Problem
from ppl_em.stats import Health

SHARE = 10
"""A step makes the draws of plain Monte Carlo EM divided by this."""

MEMORY = 40
"""Steps whose draws are kept; older ones, of small weight by then, make room."""

BURN = 15
"""Steps of plain Monte Carlo EM, g_k = 1, before older draws count."""

DECAY = 0.7
"""g_k = k^-0.7 after that. The popular 1/k converges slowly where much information is missing."""


class SAEMState(NamedTuple):
    """The sampler's state; draws (chain, memory, draw, D), weights (memory,), number of steps."""

    chains: Any
    draws: jax.Array
    weights: jax.Array
    age: jax.Array


@dataclass(frozen=True)
class SAEM(StochasticEStep):
    """Few draws per step of `inner`, weighted with those of the steps before.

    `full` makes the draws on which a result is confirmed. Users choose this by
    `NUTS(schedule="saem")`.
    """

    inner: StochasticEStep
    full: StochasticEStep
    flag: ClassVar[str] = "nuts"
    strength: ClassVar[Strength] = Strength.DRAWS

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        """Draws of each chain in a step."""
        return self.inner.num_samples

    def cold(self, rng_key: jax.Array, problem: Problem, params: Params) -> SAEMState:
        """The sampler's own first state, warmed up, and no draws yet."""
        return self.resume(self.full.init(rng_key, problem, params))

    def step(
        self, problem: Problem, params: Params, state: SAEMState
    ) -> tuple[WeightedDraws, SAEMState, Any]:
        """Draw; put the newest in the oldest place; weights sum to one."""
        posterior, chains, info = self.inner.step(problem, params, state.chains)
        newest = cast(WeightedDraws, posterior).draws
        rate = jnp.maximum(state.age - BURN + 1, 1) ** -DECAY
        place = state.age % MEMORY
        weights = (state.weights * (1 - rate)).at[place].set(rate)
        weights = weights / jnp.sum(weights)
        # What has no weight yet must still be finite.
        draws = jnp.where(state.age == 0, newest[:, None], state.draws)
        draws = draws.at[:, place].set(newest)
        num_chains, _, length, size = draws.shape
        each = jnp.repeat(weights / (num_chains * length), length)
        weighted = WeightedDraws(
            draws.reshape(num_chains, MEMORY * length, size),
            jnp.broadcast_to(each, (num_chains, MEMORY * length)),
        )
        return weighted, SAEMState(chains, draws, weights, state.age + 1), info

    def describe(self, info: Any) -> str:
        """What the sampler says."""
        return self.inner.describe(info)

    def fresh(self, state: SAEMState) -> tuple[StochasticEStep, Any]:
        """The sampler alone, with all its draws per step."""
        return self.full.fresh(state.chains)

    def resume(self, chains: Any) -> SAEMState:
        """No draws yet, and chains where the sampler left them."""
        chains = self.inner.resume(chains)
        num_chains, size = chains.u.shape
        draws = np.zeros((num_chains, MEMORY, self.inner.num_samples, size), chains.u.dtype)
        weights = np.zeros(MEMORY, chains.u.dtype)
        return SAEMState(chains, *jax.device_put((draws, weights, np.zeros((), int))))

    def diagnose(self, stats: dict[str, Any], scores: Any) -> Health:
        """As the sampler does."""
        return self.full.diagnose(stats, scores)

    def calm(self, state: Any) -> Any:
        """As the sampler does."""
        return self.full.calm(state)
