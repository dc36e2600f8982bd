"""An E-step at given parameters, and the log-likelihood there."""

from typing import Any, cast

import jax
import numpy as np

from ppl_em.algorithms import Sampler
from ppl_em.e_step import Approximation, DeterministicEStep, EStep, StochasticEStep, expectation
from ppl_em.m_step import MStep
from ppl_em.posterior import LogLikelihood, Posterior
from ppl_em.problem import Problem

FINAL_STEPS = 10
"""E-steps at the returned parameters, under Monte Carlo."""

TUNING = 10
"""E-steps by draws, after the warm-up, that find masses and step sizes."""

MAX_SETTLING = 200
"""E-steps, at most, until an objective that moves from one to the next stays."""

SETTLED = 1e-10
"""Relative change of an objective that stays."""


def evaluated(
    rng_key: jax.Array,
    problem: Problem,
    x: jax.Array,
    e_step: EStep,
    state: Any,
    m_step: MStep | None = None,
    known: Any = None,
) -> tuple[Posterior, Any, LogLikelihood, Sampler | None]:
    """Posterior, state and log-likelihood at `x` (p,), priors and penalties included; the sampler.

    From `state`. By draws, `m_step` is that of the run, whose program it shares, and `known` are
    independent blocks, see `posterior/evidence.py`.
    """
    if e_step.stochastic:
        sampler, state = Sampler(cast(StochasticEStep, e_step), m_step).fresh(state)
        draws, state = sampler.draws(problem, x, state, FINAL_STEPS)
        return draws, state, draws.log_likelihood(rng_key, problem, x, known), sampler
    posterior, state, info = expectation(e_step, problem, x, state)
    log_likelihood = posterior.log_likelihood(rng_key, problem, x)
    if log_likelihood is None:
        full = cast(DeterministicEStep, e_step).in_full(problem, problem.constrain(x), state)
        value = float(info.objective if full is None else full)
        log_likelihood = LogLikelihood(value, e_step.kind)
    return posterior, state, log_likelihood, None


def settled(rng_key: jax.Array, problem: Problem, x: jax.Array, e_step: EStep) -> tuple[EStep, Any]:
    """An E-step and its state after as many steps at `x` (p,) as it needs; maybe a finer one.

    By draws these tune the sampler. Guides rise to their maximum. Others have arrived at once.
    """
    state = e_step.init(rng_key, problem, problem.constrain(x))
    if e_step.stochastic:
        for _ in range(TUNING):
            state = expectation(e_step, problem, x, state)[1]
        return e_step, state
    if e_step.noise is not None:
        own = cast(Approximation, e_step)
        own = own.refined(problem, problem.constrain(x), state) or own
        return own.for_evaluation(), state
    before = -np.inf
    for _ in range(MAX_SETTLING):
        _, state, info = expectation(e_step, problem, x, state)
        value = float(info.objective)
        if e_step.is_function and not value - before > SETTLED * (1 + abs(value)):
            break
        if not e_step.is_function and not info.window_rise > info.window_error:
            break
        before = value
    return e_step, state
