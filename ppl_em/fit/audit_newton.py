"""From a fit to the maximum of another E-step's log-likelihood, by Newton steps.

The score there is ∇ℓ(θ) = E[∇ℓc | y, θ] (Fisher's identity): the gradient of the objective of a
deterministic E-step, a mean over draws of a Monte Carlo one.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from ppl_em.algorithms import (
    MAX_LENGTH,
    Model,
    Point,
    Sampler,
    Stopping,
    Verdict,
    ascend,
    polish,
    rounding,
)
from ppl_em.e_step import Approximation, DeterministicEStep, EStep, StochasticEStep, expectation
from ppl_em.likelihood import Components, Information, marginal_information, moved, set_aside
from ppl_em.posterior import LogLikelihood
from ppl_em.problem import Problem

MAX_STEPS = 50
"""Newton steps on a deterministic log-likelihood."""

MAX_GAP = 1e-10
"""Gain still promised at which they end: 1.4e-5 standard errors from the maximum."""

MAX_ROUNDS = 15
"""Rounds of draws."""

MAX_CALMED = 3
"""Rounds in which a sampler that diverges is given smaller steps."""

PRECISION = Stopping(mcse_fraction=0.05, max_draws=100_000)
"""Monte Carlo error that the last round aims at, in standard errors."""

NUM_STEPS = 10
"""E-steps behind a Monte Carlo log-likelihood."""


class Climb(NamedTuple):
    """Where another E-step's maximum is, as seen from a fit.

    `log_likelihood` and `start`, the information, belong to where the climb began. `x` (p,) is
    the maximum, `mcse_x` (p, p) its Monte Carlo covariance, `information` that of the last place.
    `trouble` says why none of it is to be believed, and is empty if it is.
    """

    x: jax.Array
    mcse_x: np.ndarray
    log_likelihood: LogLikelihood
    start: Information
    information: Information
    trouble: str


def climb(rng_key: jax.Array, problem: Problem, x: jax.Array, e_step: EStep) -> Climb:
    """Newton steps from `x` (p,) to the maximum of the log-likelihood of a resolved E-step.

    A deterministic one climbs until the next step promises nothing. One by draws goes from round
    to round of `polish`, until the step left is known to 0.05 standard errors.
    """
    key_init, key_evidence = jax.random.split(rng_key)
    state = e_step.init(key_init, problem, problem.constrain(x))
    if e_step.stochastic:
        return _by_draws(key_evidence, problem, x, cast(StochasticEStep, e_step), state)
    return _by_derivatives(problem, x, cast(DeterministicEStep, e_step), state)


@dataclass(eq=False)
class _Stronger:
    """The log-likelihood of a stronger E-step; `information` is that at the latest point."""

    problem: Problem
    e_step: DeterministicEStep
    information: Information = field(init=False)

    def begin(self, x: jax.Array, state: Any) -> Point:
        """Where the climb starts."""
        value, state = self.at(x, state)
        return Point(x, state, value, self._model_at(x, state))

    def at(self, x: jax.Array, state: Any) -> tuple[float, Any]:
        _, state, info = expectation(self.e_step, self.problem, x, state)
        return float(info.objective), state

    def floor(self, value: float) -> float:
        dtype = self.problem.start.dtype
        return max(rounding(value, dtype), self.e_step.noise or 0.0)

    def move(self, here: Point, step: np.ndarray) -> jax.Array | None:
        return moved(self.problem, here.x, step, self.information)

    def model(self, x: jax.Array, state: Any, before: Point, taken: np.ndarray) -> Model | None:
        return self._model_at(x, state)

    def _model_at(self, x: jax.Array, state: Any) -> Model | None:
        found = marginal_information(self.e_step, self.problem, x, state)
        self.information = set_aside(self.problem, x, found)[0]
        step, promised = self.information.uphill(MAX_LENGTH)
        return Model(step, promised) if np.isfinite(promised) else None


def _by_derivatives(
    problem: Problem, x: jax.Array, e_step: DeterministicEStep, state: Any
) -> Climb:
    terrain = _Stronger(problem, _refined(problem, x, e_step, state) or e_step)
    here = terrain.begin(x, state)
    log_likelihood = LogLikelihood(here.value, e_step.kind)
    start, steps = terrain.information, ascend(terrain, here)
    trouble = f"its log-likelihood has no maximum within {MAX_STEPS} Newton steps"
    x = here.x
    for _ in range(MAX_STEPS):
        if here.model is None:
            trouble = terrain.information.reason
            break
        if here.model.promised < max(MAX_GAP, terrain.floor(here.value)):  # nothing left to gain
            finer = _refined(problem, here.x, terrain.e_step, here.state)
            if finer is None:
                last = terrain.move(here, here.model.step)
                x, trouble = here.x if last is None else last, terrain.information.reason
                break
            terrain = _Stronger(problem, finer)
            here = terrain.begin(here.x, here.state)
            steps = ascend(terrain, here)
            continue
        following = next(steps, None)
        if following is None:
            trouble = "a Newton step does not raise its log-likelihood, however short"
            break
        here, x = following, following.x
    information = terrain.information
    nothing = np.zeros_like(information.matrix)
    return Climb(x, nothing, log_likelihood, start, information, trouble)


def _refined(
    problem: Problem, x: jax.Array, e_step: DeterministicEStep, state: Any
) -> DeterministicEStep | None:
    """A finer approximation, if this one is one and too coarse at `x` (p,)."""
    if e_step.noise is None:
        return None
    return cast(Approximation, e_step).refined(problem, problem.constrain(x), state)


def _by_draws(
    rng_key: jax.Array, problem: Problem, x: jax.Array, e_step: StochasticEStep, state: Any
) -> Climb:
    sampler, state = Sampler(e_step).fresh(state)
    draws, state = sampler.draws(problem, x, state, NUM_STEPS)
    log_likelihood = draws.log_likelihood(rng_key, problem, x)
    start: Information | None = None
    components: Components | None = None
    calmed, trouble = 0, f"the Newton steps did not settle in {MAX_ROUNDS} rounds of draws"
    with tqdm(disable=True) as bar:
        for _ in range(MAX_ROUNDS):
            found = polish(sampler, problem, x, state, components, PRECISION, np.inf, bar)
            components, state = found.components, found.state
            if found.verdict is Verdict.SICK:
                calmed += 1
                if calmed > MAX_CALMED:
                    trouble = found.health.complaint(problem.latent_names)
                    break
                state = sampler.e_step.calm(state)
                continue
            start = start or found.information
            if found.verdict is Verdict.SINGULAR:
                if not np.all(np.isfinite(found.information.matrix)):
                    break
                x = x + jnp.asarray(found.information.uphill(MAX_LENGTH)[0], x.dtype)
                continue
            x = found.x
            if found.verdict is not Verdict.MOVED:
                trouble = ""
                break
    trouble = found.information.reason or trouble
    last = found.information
    return Climb(x, found.mcse_x, log_likelihood, start or last, last, trouble)
