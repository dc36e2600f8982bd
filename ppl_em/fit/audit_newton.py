"""From a fit to the maximum of another E-step's log-likelihood, by Newton steps.

The score there is ∇ℓ(θ) = E[∇ℓc | y, θ] (Fisher's identity): the gradient of the objective of a
deterministic E-step, a mean over draws of a Monte Carlo one.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from ppl_em.algorithms import Sampler, Stopping, Verdict, polish, rounding
from ppl_em.e_step import Approximation, DeterministicEStep, EStep, StochasticEStep, expectation
from ppl_em.likelihood import Components, Information, marginal_information, moved, set_aside
from ppl_em.posterior import LogLikelihood
from ppl_em.problem import Problem

MAX_STEPS = 50
"""Newton steps on a deterministic log-likelihood."""

MAX_HALVINGS = 12
"""Of a step that does not gain."""

MAX_GAP = 1e-10
"""Gain still promised at which they end: 1.4e-5 standard errors from the maximum."""

MAX_LENGTH = 3.0
"""Longest step, in standard errors."""

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


def _by_derivatives(
    problem: Problem, x: jax.Array, e_step: DeterministicEStep, state: Any
) -> Climb:
    e_step = _refined(problem, x, e_step, state) or e_step
    _, state, info = expectation(e_step, problem, x, state)
    value = float(info.objective)
    log_likelihood = LogLikelihood(value, e_step.kind)
    here = start = set_aside(problem, x, marginal_information(e_step, problem, x, state))[0]
    trouble = f"its log-likelihood has no maximum within {MAX_STEPS} Newton steps"
    for _ in range(MAX_STEPS):
        if not np.all(np.isfinite(here.matrix)):
            trouble = here.reason
            break
        step = newton_step(here)
        noise = max(rounding(value, x.dtype), e_step.noise or 0.0)
        if 0.5 * here.gradient @ step < max(MAX_GAP, noise):  # nothing is left to gain
            finer = _refined(problem, x, e_step, state)
            if finer is None:
                last = moved(problem, x, step, here)
                x, trouble = x if last is None else last, here.reason
                break
            e_step = finer
            _, state, info = expectation(e_step, problem, x, state)
            value = float(info.objective)
            here = set_aside(problem, x, marginal_information(e_step, problem, x, state))[0]
            continue
        for _ in range(MAX_HALVINGS):
            new_x = moved(problem, x, step, here)
            if new_x is not None:
                _, new_state, info = expectation(e_step, problem, new_x, state)
                if float(info.objective) >= value - noise:
                    break
            step = step / 2
        else:
            trouble = "a Newton step does not raise its log-likelihood, however short"
            break
        x, state, value = new_x, new_state, float(info.objective)
        here = set_aside(problem, x, marginal_information(e_step, problem, x, state))[0]
    return Climb(x, np.zeros_like(here.matrix), log_likelihood, start, here, trouble)


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
                x = x + jnp.asarray(newton_step(found.information), x.dtype)
                continue
            x = found.x
            if found.verdict is not Verdict.MOVED:
                trouble = ""
                break
    trouble = found.information.reason or trouble
    last = found.information
    return Climb(x, found.mcse_x, log_likelihood, start or last, last, trouble)


def newton_step(information: Information) -> np.ndarray:
    """The step to the maximum, (p,), at most three standard errors long.

    Coordinates at a boundary and flat directions stay. Where the information is not positive
    definite its eigenvalues count by their size, which makes the step one uphill.
    """
    gradient = information.gradient
    if information.usable:
        step = information.covariance @ gradient
        length = np.sqrt(max(gradient @ step, 0.0))
    else:
        values, vectors = np.linalg.eigh(information.matrix)
        sizes = np.maximum(np.abs(values), 1e-8 * np.max(np.abs(values)))
        along = vectors.T @ gradient
        step, length = vectors @ (along / sizes), np.sqrt(np.sum(along**2 / sizes))
    return step * min(1.0, MAX_LENGTH / max(length, 1e-300))
