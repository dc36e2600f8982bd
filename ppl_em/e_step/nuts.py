"""Monte Carlo E-step: NumPyro's NUTS, its chains and tuning carried from step to step."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.hmc import hmc

from ppl_em.e_step.base import StochasticEStep, Strength
from ppl_em.e_step.nuts_health import examine
from ppl_em.e_step.saem import SAEM, SHARE
from ppl_em.params import Params
from ppl_em.posterior import WeightedDraws
from ppl_em.problem import Problem
from ppl_em.stats import Health, ebfmi
from ppl_em.util import check_choice, check_options, compiled, number, switch, whole

REFIT = 4
"""Masses are estimated anew after so many EM steps, and after each doubling of their number."""

SIDE_BY_SIDE = 100
"""Latents up to which chains move side by side on CPUs. There each waits for the longest trajectory
and every step copies all of them; one after the other costs more only where arrays are small."""


class NUTSState(NamedTuple):
    """Chains between steps.

    Positions (chain, D), step sizes (chain,), inverse masses (chain, D) or (chain, D, D), a key,
    the acceptance probability aimed at, the number of steps since the warm-up (-1 while the
    tuning is held), and the number of steps that the warm-up has still to go.
    """

    u: jax.Array
    step_size: jax.Array
    inverse_mass_matrix: jax.Array
    rng_key: jax.Array
    target: jax.Array
    age: jax.Array
    warm: jax.Array


class NUTSInfo(NamedTuple):
    """Means over the step's transitions, the number that diverged, the smallest E-BFMI."""

    accept_prob: jax.Array
    divergences: jax.Array
    tree_steps: jax.Array
    step_size: jax.Array
    ebfmi: jax.Array


@dataclass(frozen=True)
class NUTS(StochasticEStep):
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
        Transitions of the one warm-up, rounded up to a multiple of `num_samples`.
    max_tree_depth, target_accept_prob, dense_mass, forward_mode_differentiation
        As in `numpyro.infer.NUTS`.
    schedule
        `"mcem"`: Q is the mean over the newest draws. `"saem"`: few draws per step, and Q is a
        weighted mean over those of many steps (stochastic approximation, see `saem.py`).

    Examples
    --------
    With the `model` of the example of `ppl_em.EM`:

    >>> from ppl_em.e_step import NUTS
    >>> em = EM(model, e_step=NUTS(num_samples=200, target_accept_prob=0.9))
    """

    num_chains: int = 4
    num_samples: int = 50
    num_warmup: int = 300
    max_tree_depth: int = 8
    target_accept_prob: float = 0.8
    dense_mass: bool = False
    forward_mode_differentiation: bool = False
    schedule: str = "mcem"
    flag: ClassVar[str] = "nuts"
    strength: ClassVar[Strength] = Strength.DRAWS

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, ("mcem", "saem"))
        check_options(
            self,
            "NUTS",
            num_chains=whole(),
            num_samples=whole(),
            num_warmup=whole(0),
            max_tree_depth=whole(1, 20),
            target_accept_prob=number(0.0, 1.0, above=True),
            dense_mass=switch(),
            forward_mode_differentiation=switch(),
        )

    def resolve(self, rng_key: jax.Array, problem: Problem, params: Params) -> "NUTS | SAEM":
        """Refuse models without continuous latents; wrap in `SAEM` where that is the schedule.

        Raises
        ------
        ModelError
            If there is nothing to sample.
        """
        problem.require_continuous(self.flag)
        if self.schedule == "mcem":
            return self
        each = max(1, self.num_samples // SHARE)
        return SAEM(replace(self, num_samples=each), self)

    def cold(self, rng_key: jax.Array, problem: Problem, params: Params) -> NUTSState:
        """Chains about the problem's own start, masses of one; the warm-up is still to come."""
        start = np.asarray(problem.start)
        shape, dtype = (self.num_chains, start.size), start.dtype
        mass = np.eye(shape[1], dtype=dtype) if self.dense_mass else np.ones(shape[1], dtype)
        u, rng_key = _about(problem.start, rng_key, self.num_chains)
        sizes, masses, target, age, warm = jax.device_put(
            (
                np.ones(self.num_chains, dtype),
                np.broadcast_to(mass, (self.num_chains, *mass.shape)),
                np.asarray(self.target_accept_prob, dtype),
                np.zeros((), int),
                np.asarray(self.num_warmup_steps),
            )
        )
        return NUTSState(u, sizes, masses, rng_key, target, age, warm)

    def step(
        self, problem: Problem, params: Params, state: NUTSState
    ) -> tuple[WeightedDraws, NUTSState, NUTSInfo]:
        """Draw (num_chains, num_samples) from p(z given y, params), from where the chains are.

        Energies and gradients are recomputed first: they belong to the previous parameters.
        """
        rng_key, *keys = jax.random.split(state.rng_key, self.num_chains + 1)
        gains = jnp.where(state.warm > 0, (1.0 + jnp.arange(self.num_samples)) ** -0.5, 0.0)

        start, transition = self._kernel(problem, params)
        each = _each_chain(problem.num_latents)

        def body(current, gain):
            current = each(transition)(current)
            size = current.adapt_state.step_size
            info = (current.accept_prob, current.diverging, current.num_steps)
            out = current.z, current.energy, jnp.log(size), info
            size = size * jnp.exp(gain * (current.accept_prob - state.target))
            tuned = current.adapt_state._replace(step_size=size)
            return current._replace(adapt_state=tuned), out

        chains = state.u, state.step_size, state.inverse_mass_matrix, jnp.stack(keys)
        first = jax.vmap(start)(*chains)
        # The loop over draws is outside: its carry is an array by chain, and is traced as such.
        out = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), jax.lax.scan(body, first, gains)[1])
        draws, energy, log_sizes, (accept, diverging, steps) = out
        info = NUTSInfo(
            jnp.mean(accept),
            jnp.sum(diverging),
            jnp.mean(steps),
            jnp.mean(state.step_size),
            jnp.min(ebfmi(energy)),
        )
        stats = {
            "acceptance_rate": accept,
            "diverging": diverging,
            "n_steps": steps,
            "energy": energy,
        }
        state = state._replace(u=draws[:, -1], rng_key=rng_key)
        state = self._tuned(state, draws, accept, log_sizes)
        return WeightedDraws.equal(draws, stats), state, info

    def fresh(self, state: NUTSState) -> tuple["NUTS", NUTSState]:
        """A sampler of equally weighted draws at one value of the parameters, its tuning held."""
        return self, state._replace(age=jax.device_put(np.full((), -1, state.age.dtype)))

    def resume(self, state: NUTSState) -> NUTSState:
        """The state of the next EM step, from that of a fresh sampler."""
        return state._replace(age=jax.device_put(np.zeros((), state.age.dtype)))

    def calm(self, state: NUTSState) -> NUTSState:
        """Aim half-way from the present acceptance to 1, with smaller steps: for divergences."""
        target = np.minimum(0.5 * (1 + np.asarray(state.target)), 0.995)
        size = 0.6 * np.asarray(state.step_size)
        target, size = jax.device_put((target.astype(size.dtype), size))
        return state._replace(target=target, step_size=size)

    def _tuned(
        self, state: NUTSState, draws: jax.Array, accept: jax.Array, log_sizes: jax.Array
    ) -> NUTSState:
        """Step sizes and masses for the next step.

        In the warm-up, step sizes follow every transition and masses every step, both by the
        second half of the step. Later step sizes are nudged, and masses set anew at ages 4, 8,
        16, ..., until they are held.
        """
        warm, half = state.warm > 0, draws.shape[1] // 2
        nudge = jnp.exp(0.3 * (jnp.mean(accept, axis=1) - state.target))
        nudged = jnp.where(state.age < 0, state.step_size, state.step_size * nudge)
        age = jnp.where(warm | (state.age < 0), state.age, state.age + 1)
        due = ~warm & (age >= REFIT) & (age & (age - 1) == 0)
        before = state.inverse_mass_matrix
        masses = jnp.where(due, _inverse_mass(draws, before), before)
        return state._replace(
            step_size=jnp.where(warm, jnp.exp(jnp.mean(log_sizes[:, half:], axis=1)), nudged),
            inverse_mass_matrix=jnp.where(warm, _inverse_mass(draws[:, half:], before), masses),
            age=age,
            warm=jnp.maximum(state.warm - 1, 0),
        )

    def diagnose(self, stats: dict[str, Any], scores: Any) -> Health:
        """Divergences, energies, acceptance, and whether the chains agree."""
        return examine(stats, scores)

    def describe(self, info: NUTSInfo) -> str:
        """Acceptance and divergences."""
        return f"accept {float(info.accept_prob):.2f}, divergences {int(info.divergences)}"

    @property
    def num_warmup_steps(self) -> int:
        """E-steps of the warm-up."""
        return -(-self.num_warmup // self.num_samples)

    def _kernel(self, problem: Problem, params: Params):
        def potential(u: jax.Array) -> jax.Array:
            return -problem.log_joint_unconstrained(params, u)

        init, transition = hmc(potential, algo="NUTS")

        def start(u, step_size, inverse_mass_matrix, rng_key):
            return init(
                u,
                num_warmup=0,
                step_size=step_size,
                inverse_mass_matrix=inverse_mass_matrix,
                rng_key=rng_key,
                trajectory_length=None,
                dense_mass=self.dense_mass,
                max_tree_depth=self.max_tree_depth,
                target_accept_prob=self.target_accept_prob,
                forward_mode_differentiation=self.forward_mode_differentiation,
            )

        return start, transition


def _each_chain(num_latents: int) -> Callable[[Callable], Callable]:
    """How a transition of one chain becomes one of all: side by side, or one after the other."""
    if num_latents <= SIDE_BY_SIDE or jax.default_backend() != "cpu":
        return jax.vmap
    return lambda transition: partial(jax.lax.map, transition)


@compiled(static_argnums=2)
def _about(start: jax.Array, rng_key: jax.Array, num_chains: int) -> tuple[jax.Array, jax.Array]:
    """Points about `start` (D,), (chain, D), and another key."""
    key_jitter, rng_key = jax.random.split(rng_key)
    jitter = jax.random.normal(key_jitter, (num_chains, start.size), start.dtype)
    return start + 0.1 * jitter, rng_key


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
