"""Monte Carlo E-step: NumPyro's NUTS, its chains and tuning carried from step to step."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.infer.hmc import hmc

from ppl_em.params import Params
from ppl_em.posterior import WeightedDraws
from ppl_em.problem import Problem


class NUTSState(NamedTuple):
    """Chains between steps: positions (chain, D), step sizes (chain,), inverse masses, key."""

    u: jax.Array
    step_size: jax.Array
    inverse_mass_matrix: jax.Array
    rng_key: jax.Array


class NUTSInfo(NamedTuple):
    """Means over the step's transitions, and the number that diverged."""

    accept_prob: jax.Array
    divergences: jax.Array
    tree_steps: jax.Array
    step_size: jax.Array


@dataclass(frozen=True)
class NUTS:
    """Draws of the continuous latents by NUTS; discrete latents are summed out inside.

    Chains are warmed up once, at the initial parameters. After that positions, step sizes and
    mass matrices live as long as the fit: no step discards draws and nothing is compiled anew.
    Between steps each step size follows the acceptance probability.

    Attributes
    ----------
    num_chains, num_samples
        Vectorised chains, and draws of each per EM step.
    num_warmup
        Transitions of the one warm-up.
    max_tree_depth, target_accept_prob, dense_mass
        As in `numpyro.infer.NUTS`.
    """

    num_chains: int = 4
    num_samples: int = 50
    num_warmup: int = 300
    max_tree_depth: int = 8
    target_accept_prob: float = 0.8
    dense_mass: bool = False
    stochastic: ClassVar[bool] = True
    kind: ClassVar[str] = "estimate"

    def resolve(self, rng_key: jax.Array, problem: Problem, params: Params) -> "NUTS":
        """Refuse models without continuous latents.

        Raises
        ------
        ModelError
            If there is nothing to sample.
        """
        problem.require_continuous("nuts")
        return self

    def init(self, rng_key: jax.Array, problem: Problem, params: Params) -> NUTSState:
        """Warm the chains up at `params`."""
        return _warm_up(self, problem, params, rng_key)

    def step(
        self, problem: Problem, params: Params, state: NUTSState
    ) -> tuple[WeightedDraws, NUTSState, NUTSInfo]:
        """Draw (num_chains, num_samples) from p(z given y, params), from where the chains are.

        Energies and gradients are recomputed first: they belong to the previous parameters.
        """
        rng_key, *keys = jax.random.split(state.rng_key, self.num_chains + 1)

        def chain(u, step_size, inverse_mass_matrix, rng_key):
            start, transition = self._kernel(problem, params)
            first = start(
                u,
                num_warmup=0,
                step_size=step_size,
                inverse_mass_matrix=inverse_mass_matrix,
                rng_key=rng_key,
            )

            def body(current, _):
                current = transition(current)
                info = (current.accept_prob, current.diverging, current.num_steps)
                return current, (current.z, info)

            return jax.lax.scan(body, first, length=self.num_samples)[1]

        draws, (accept, diverging, steps) = jax.vmap(chain)(
            state.u, state.step_size, state.inverse_mass_matrix, jnp.stack(keys)
        )
        nudge = jnp.exp(0.3 * (jnp.mean(accept, axis=1) - self.target_accept_prob))
        info = NUTSInfo(
            jnp.mean(accept), jnp.sum(diverging), jnp.mean(steps), jnp.mean(state.step_size)
        )
        state = NUTSState(draws[:, -1], state.step_size * nudge, state.inverse_mass_matrix, rng_key)
        stats = {"acceptance_rate": accept, "diverging": diverging, "n_steps": steps}
        return WeightedDraws.equal(draws, stats), state, info

    def describe(self, info: NUTSInfo) -> str:
        """Acceptance and divergences."""
        return f"accept {float(info.accept_prob):.2f}, divergences {int(info.divergences)}"

    def _kernel(self, problem: Problem, params: Params):
        def potential(u: jax.Array) -> jax.Array:
            return -problem.log_joint_unconstrained(params, u)

        start, transition = hmc(potential, algo="NUTS")
        start = partial(
            start,
            trajectory_length=None,
            dense_mass=self.dense_mass,
            max_tree_depth=self.max_tree_depth,
            target_accept_prob=self.target_accept_prob,
        )
        return start, transition


@jax.jit(static_argnums=0)
def _warm_up(config: NUTS, problem: Problem, params: Params, rng_key: jax.Array) -> NUTSState:
    rng_key, key_jitter, *keys = jax.random.split(rng_key, config.num_chains + 2)
    shape = (config.num_chains, problem.num_latents)
    jitter = 0.1 * jax.random.normal(key_jitter, shape, problem.start.dtype)

    def chain(u: jax.Array, rng_key: jax.Array):
        start, transition = config._kernel(problem, params)
        first = start(u, num_warmup=config.num_warmup, rng_key=rng_key)
        last = jax.lax.scan(
            lambda current, _: (transition(current), None), first, length=config.num_warmup
        )[0]
        return last.z, last.adapt_state.step_size, last.adapt_state.inverse_mass_matrix

    u, step_size, inverse_mass_matrix = jax.vmap(chain)(problem.start + jitter, jnp.stack(keys))
    return NUTSState(u, step_size, inverse_mass_matrix, rng_key)
