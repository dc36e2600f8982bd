"""Skeleton of an E-step by draws: sampling-importance-resampling from a law about the mode.

Copy it to `ppl_em/e_step/`, add an import line and a row of `FLAGS` in `ppl_em/e_step/__init__.py`,
and a row in the table of `tests/contracts/test_conformance.py`. Here it is used as it is.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ppl_em.e_step import StochasticEStep, Strength
from ppl_em.params import Params
from ppl_em.posterior import WeightedDraws
from ppl_em.problem import Problem


class SIRInfo(NamedTuple):
    """`effective` is the least effective number of proposals behind a chain's draws."""

    effective: jax.Array


@dataclass(frozen=True)
class SIR(StochasticEStep):
    """Normal proposals about where the last draws were, resampled by importance; for few latents.

    The state is (location (D,), scale (D,), key). Every chain has proposals of its own.
    """

    num_chains: int = 4
    num_samples: int = 50
    num_proposals: int = 2000
    flag: ClassVar[str] = "sir"
    strength: ClassVar[Strength] = Strength.DRAWS
    num_warmup_steps: ClassVar[int] = 10  # type: ignore[misc]

    def cold(self, rng_key: jax.Array, problem: Problem, params: Params) -> tuple:
        """About the problem's start, with scale 2."""
        return problem.start, jnp.full_like(problem.start, 2.0), rng_key

    def step(
        self, problem: Problem, params: Params, state: tuple
    ) -> tuple[WeightedDraws, tuple, SIRInfo]:
        """Draws (num_chains, num_samples, D) at `params`; the next proposals are like them."""
        loc, scale, rng_key = state
        rng_key, key_noise, key_pick = jax.random.split(rng_key, 3)
        shape = (self.num_chains, self.num_proposals, loc.size)
        noise = jax.random.t(key_noise, 5.0, shape, loc.dtype)
        points = loc + scale * noise
        log_proposal = -jnp.sum(3.0 * jnp.log1p(noise**2 / 5.0), axis=-1)
        ratios = jax.vmap(jax.vmap(problem.density(params)))(points) - log_proposal
        weights = jax.nn.softmax(ratios, axis=1)
        keys = jax.random.split(key_pick, self.num_chains)

        def resampled(key: jax.Array, points: jax.Array, weights: jax.Array) -> jax.Array:
            return jax.random.choice(key, points, (self.num_samples,), p=weights)

        draws = jax.vmap(resampled)(keys, points, weights)
        flat = draws.reshape(-1, loc.size)
        next_state = flat.mean(axis=0), 1.5 * flat.std(axis=0) + 1e-3, rng_key
        effective = jnp.min(1 / jnp.sum(weights**2, axis=1))
        return WeightedDraws.equal(draws), next_state, SIRInfo(effective)

    def describe(self, info: SIRInfo) -> str:
        """Effective proposals."""
        return f"{float(info.effective):.0f} effective proposals"
