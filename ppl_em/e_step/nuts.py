"""Monte Carlo E-step: NumPyro's NUTS, its chains and tuning carried from step to step."""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.infer.hmc import hmc

from ppl_em.e_step.saem import SAEM, SHARE
from ppl_em.params import Params
from ppl_em.posterior import WeightedDraws
from ppl_em.problem import Problem
from ppl_em.validation import check_choice

REFIT = 4
"""Masses are estimated anew after so many EM steps, and after each doubling of their number."""


class NUTSState(NamedTuple):
    """Chains between steps.

    Positions (chain, D), step sizes (chain,), inverse masses (chain, D) or (chain, D, D), a key,
    the acceptance probability aimed at, and the number of steps since the warm-up; -1 while the
    tuning is held.
    """

    u: jax.Array
    step_size: jax.Array
    inverse_mass_matrix: jax.Array
    rng_key: jax.Array
    target: jax.Array
    age: jax.Array


class NUTSInfo(NamedTuple):
    """Means over the step's transitions, the number that diverged, the smallest E-BFMI."""

    accept_prob: jax.Array
    divergences: jax.Array
    tree_steps: jax.Array
    step_size: jax.Array
    ebfmi: jax.Array


@dataclass(frozen=True)
class NUTS:
    """Draws of the continuous latents by NUTS; discrete latents are summed out inside.

    Chains are warmed up once, at the initial parameters. After that positions, step sizes and
    mass matrices live as long as the fit: no step discards draws and nothing is compiled anew.
    While the parameters move, each step size follows the acceptance probability, and masses are
    now and then estimated from the draws of all chains; both are held while a result is confirmed.

    Attributes
    ----------
    num_chains, num_samples
        Vectorised chains, and draws of each per EM step.
    num_warmup
        Transitions of the one warm-up.
    max_tree_depth, target_accept_prob, dense_mass, forward_mode_differentiation
        As in `numpyro.infer.NUTS`.
    schedule
        `"mcem"`: Q is the mean over the newest draws. `"saem"`: few draws per step, and Q is a
        weighted mean over those of many steps (stochastic approximation, see `saem.py`).
    """

    num_chains: int = 4
    num_samples: int = 50
    num_warmup: int = 300
    max_tree_depth: int = 8
    target_accept_prob: float = 0.8
    dense_mass: bool = False
    forward_mode_differentiation: bool = False
    schedule: str = "mcem"
    stochastic: ClassVar[bool] = True
    kind: ClassVar[str] = "estimate"

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, ("mcem", "saem"))

    def resolve(self, rng_key: jax.Array, problem: Problem, params: Params) -> "NUTS | SAEM":
        """Refuse models without continuous latents; wrap in `SAEM` where that is the schedule.

        Raises
        ------
        ModelError
            If there is nothing to sample.
        """
        problem.require_continuous("nuts")
        if self.schedule == "mcem":
            return self
        each = max(1, self.num_samples // SHARE)
        return SAEM(replace(self, num_samples=each), self)

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
                info = (current.accept_prob, current.diverging, current.num_steps, current.energy)
                return current, (current.z, info)

            return jax.lax.scan(body, first, length=self.num_samples)[1]

        draws, (accept, diverging, steps, energy) = jax.vmap(chain)(
            state.u, state.step_size, state.inverse_mass_matrix, jnp.stack(keys)
        )
        info = NUTSInfo(
            jnp.mean(accept),
            jnp.sum(diverging),
            jnp.mean(steps),
            jnp.mean(state.step_size),
            jnp.min(_ebfmi(energy)),
        )
        stats = {
            "acceptance_rate": accept,
            "diverging": diverging,
            "n_steps": steps,
            "energy": energy,
        }
        state = self._tuned(state._replace(u=draws[:, -1], rng_key=rng_key), draws, accept)
        return WeightedDraws.equal(draws, stats), state, info

    def fresh(self, state: NUTSState) -> tuple["NUTS", NUTSState]:
        """A sampler of equally weighted draws at one value of the parameters, its tuning held."""
        return self, state._replace(age=jnp.full_like(state.age, -1))

    def resume(self, state: NUTSState) -> NUTSState:
        """The state of the next EM step, from that of a fresh sampler."""
        return state._replace(age=jnp.zeros_like(state.age))

    def calm(self, state: NUTSState) -> NUTSState:
        """Aim half-way from the present acceptance to 1, with smaller steps: for divergences."""
        target = jnp.minimum(0.5 * (1 + state.target), 0.995)
        return state._replace(target=target, step_size=0.6 * state.step_size)

    def _tuned(self, state: NUTSState, draws: jax.Array, accept: jax.Array) -> NUTSState:
        """Step sizes nudged to the acceptance aimed at; masses anew at ages 4, 8, 16, ..."""
        held = state.age < 0
        nudge = jnp.exp(0.3 * (jnp.mean(accept, axis=1) - state.target))
        age = jnp.where(held, state.age, state.age + 1)
        due = (age >= REFIT) & (age & (age - 1) == 0)
        refitted = _inverse_mass(draws, state.inverse_mass_matrix)
        return state._replace(
            step_size=jnp.where(held, state.step_size, state.step_size * nudge),
            inverse_mass_matrix=jnp.where(due, refitted, state.inverse_mass_matrix),
            age=age,
        )

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
            forward_mode_differentiation=self.forward_mode_differentiation,
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
    target = jnp.asarray(config.target_accept_prob, u.dtype)
    return NUTSState(u, step_size, inverse_mass_matrix, rng_key, target, jnp.zeros((), int))


def _inverse_mass(draws: jax.Array, before: jax.Array) -> jax.Array:
    """Variances, or the covariance, of the draws (chain, n, D) of all chains, shape of `before`.

    Shrunk towards what was there before, which counts as many draws as D for a full matrix.
    """
    flat = draws.reshape(-1, draws.shape[-1])
    if before.ndim == 2:
        found, prior = jnp.var(flat, axis=0), 5.0
    else:
        found, prior = jnp.cov(flat.T), 5.0 + flat.shape[1]
    share = len(flat) / (len(flat) + prior)
    return share * found + (1 - share) * jnp.mean(before, axis=0)[None]


def _ebfmi(energy: jax.Array) -> jax.Array:
    """Energy's Bayesian fraction of missing information of each chain, from (chain, draw).

    References
    ----------
    Betancourt (2016), Diagnosing suboptimal cotangent disintegrations, arXiv:1604.00695.
    """
    return jnp.mean(jnp.diff(energy, axis=1) ** 2, axis=1) / jnp.var(energy, axis=1)
