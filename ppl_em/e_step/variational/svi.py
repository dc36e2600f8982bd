"""Variational inference by stochastic gradients: NumPyro's SVI, for any guide."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import Adam

from ppl_em.e_step.base import DeterministicEStep, Strength
from ppl_em.e_step.variational.base_draws import base_draws
from ppl_em.params import Params
from ppl_em.posterior import Guided, Law
from ppl_em.problem import Indices, Problem, check_batches, draw_rows
from ppl_em.structure import dense

STEP_SIZE = 0.05
"""Of Adam, the default optimiser, at the start."""

SLOWER = 300
"""Gradient steps after which the step size is 1.6 times smaller, and so on: (1 + k / 300)^-0.7."""

WINDOW = 10
"""EM steps over which the rise of the bound is compared with its error."""


class StochasticState(NamedTuple):
    """SVI's own state, the guide in use, and the fixed draws on which guides are compared.

    `phi` are the parameters of that guide; `base` has n rows; `window` (W, n) holds the bound of
    every draw in the last W steps, `age` counts steps.
    """

    svi: Any
    phi: Params
    base: jax.Array
    window: jax.Array
    age: jax.Array


class StochasticInfo(NamedTuple):
    """`objective` is the bound on the fixed draws; a guide that lowers it is not `accepted`.

    `window_rise` is what it gained in the last ten steps, infinite before, `window_error` the
    Monte Carlo error of that over the draws.
    """

    objective: jax.Array
    accepted: jax.Array
    window_rise: jax.Array
    window_error: jax.Array


@dataclass(frozen=True)
class StochasticGuide(DeterministicEStep):
    """`MeanField(mode="stochastic")`: gradient steps on fresh draws, judged on fixed ones.

    Every E-step takes `num_steps` of SVI from where the last one ended and proposes the mean of the
    second half of its iterates (Polyak & Juditsky 1992). The guide in use gives way only if the
    bound, averaged over fixed base draws, is higher for the proposal. Q is averaged over the same
    draws, so neither half of an EM step lowers the bound. The run ends when it has risen by no more
    than its error in ten EM steps.

    Attributes
    ----------
    law
        The guide as a law of the unconstrained latents.
    optimizer
        Of NumPyro or optax; Adam with `step_size` if None.
    num_steps
        Gradient steps for each E-step.
    num_particles
        Fixed base draws.
    gradient_particles
        Fresh draws for each gradient.
    batches
        Whether every such draw sees fresh rows of the model's sub-sampled plates, see
        `problem/minibatches.py`, instead of all. The bound on fixed draws always sees all rows.
    """

    law: Law
    optimizer: Any
    num_steps: int
    num_particles: int
    gradient_particles: int = 16
    batches: bool = False
    flag: ClassVar[str] = "mean_field"
    strength: ClassVar[Strength] = Strength.BOUND
    is_function: ClassVar[bool] = False
    kind: ClassVar[str] = "lower_bound"

    def resolve(self, rng_key: jax.Array, problem: Problem, params: Params) -> "StochasticGuide":
        """Find out whether the model has mini-batches to use; `MeanField` has checked the rest."""

        def bound(problem: Problem, params: Params, indices: Indices) -> jax.Array:
            engine = self._engine(None)
            phi = engine.get_params(engine.init(rng_key, problem, params))
            return self.law.batch_bound(problem, params, phi, rng_key, indices)

        return dataclasses.replace(self, batches=check_batches(problem, bound, params))

    def init(self, rng_key: jax.Array, problem: Problem, params: Params) -> StochasticState:
        """The guide where its own initial values put it, around the problem's start."""
        key_svi, key_base = jax.random.split(rng_key)
        engine = self._engine(problem.start)
        svi = engine.init(key_svi, problem, params)
        if self.law.stratified:
            draws = base_draws(key_base, self.num_particles, dense(problem))
            base = jnp.asarray(draws, problem.start.dtype)
        else:
            base = self.law.base(key_base, self.num_particles, problem.start.dtype)
        window = jnp.zeros((WINDOW, self.num_particles), problem.start.dtype)
        return StochasticState(svi, engine.get_params(svi), base, window, jnp.zeros((), int))

    def step(
        self, problem: Problem, params: Params, state: StochasticState
    ) -> tuple[Guided, StochasticState, StochasticInfo]:
        """Gradient steps at `params`, then the better of two guides."""
        svi, phi = self._ascend(problem, params, state.svi)
        (points, bounds), (old_points, old_bounds) = (
            self._bounds(problem, params, candidate, state.base) for candidate in (phi, state.phi)
        )
        accepted = jnp.mean(bounds) > jnp.mean(old_bounds)
        phi, points, bounds = jax.tree.map(
            lambda new, old: jnp.where(accepted, new, old),
            (phi, points, bounds),
            (state.phi, old_points, old_bounds),
        )
        place = state.age % WINDOW
        gains = bounds - state.window[place]
        rise = jnp.where(state.age < WINDOW, jnp.inf, jnp.mean(gains))
        error = jnp.std(gains, ddof=1) / jnp.sqrt(len(gains))
        window = state.window.at[place].set(bounds)
        state = StochasticState(svi, phi, state.base, window, state.age + 1)
        info = StochasticInfo(jnp.mean(bounds), accepted.astype(bounds.dtype), rise, error)
        return Guided(points, phi, self.law), state, info

    def log_likelihood(self, problem: Problem, params: Params, state: StochasticState) -> jax.Array:
        """NaN: how q would follow the parameters is not known, so there are no derivatives."""
        return jnp.nan * jnp.mean(self._bounds(problem, params, state.phi, state.base)[1])

    def describe(self, info: StochasticInfo) -> str:
        """What the bound gained over the window."""
        return f"rise {float(info.window_rise):.1e} ± {float(info.window_error):.0e}"

    def _ascend(self, problem: Problem, params: Params, svi: Any) -> tuple[Any, Params]:
        """SVI's state after its steps, and the mean of the second half of its iterates."""
        engine = self._engine(None)
        engine.init(jax.random.key(0), problem, params)  # it learns the constraints

        def update(carry: tuple, count: jax.Array) -> tuple:
            svi, total = carry
            svi, _ = engine.update(svi, problem, params)
            here = engine.optim.get_params(svi.optim_state)
            late = count >= self.num_steps // 2
            total = jax.tree.map(lambda t, x: t + jnp.where(late, x, 0.0), total, here)
            return (svi, total), None

        zero = jax.tree.map(jnp.zeros_like, engine.optim.get_params(svi.optim_state))
        (svi, total), _ = jax.lax.scan(update, (svi, zero), jnp.arange(self.num_steps))
        count = self.num_steps - self.num_steps // 2
        return svi, engine.constrain_fn(jax.tree.map(lambda t: t / count, total))

    def _bounds(
        self, problem: Problem, params: Params, phi: Params, base: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The points (n, D) of the guide, and log-joint less log q at each, (n,)."""
        points, log_q = self.law.draws(problem, phi, base)
        log_joint = jax.vmap(problem.density(params))(points)
        return points, log_joint - log_q

    def _engine(self, start: jax.Array | None) -> SVI:
        optimizer = Adam(step_size) if self.optimizer is None else self.optimizer
        loss = Trace_ELBO(num_particles=self.gradient_particles)
        if self.batches:
            loss = BatchELBO(self.law, self.gradient_particles)
        return SVI(self.law.model, self.law.guide(start), optimizer, loss)


class BatchELBO(Trace_ELBO):
    """The bound of a law, as a loss for SVI, estimated from a fresh mini-batch for each draw."""

    def __init__(self, law: Law, num_particles: int):
        super().__init__(num_particles=num_particles)
        self.law = law

    def loss(
        self,
        rng_key: jax.Array,
        param_map: Params,
        model: Any,
        guide: Any,
        problem: Problem,
        params: Params,
    ) -> jax.Array:
        """Minus the bound; a scalar. `model` and `guide` are those of the law."""

        def one(rng_key: jax.Array) -> jax.Array:
            key_rows, key_draw = jax.random.split(rng_key)
            indices = draw_rows(key_rows, problem)
            return self.law.batch_bound(problem, params, param_map, key_draw, indices)

        return -jnp.mean(jax.vmap(one)(jax.random.split(rng_key, self.num_particles)))


def step_size(count: jax.Array) -> jax.Array:
    """Of gradient step `count`: it falls slowly enough for convergence (Robbins & Monro 1951)."""
    return STEP_SIZE / (1 + count / SLOWER) ** 0.7
