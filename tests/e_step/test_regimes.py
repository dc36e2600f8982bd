"""Discrete states beside a continuous one: sums over all paths of both."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

from ppl_em.e_step import Quadrature, expectation
from ppl_em.likelihood import value_and_score
from ppl_em.problem import build_problem

RNG = np.random.default_rng(5)
Y = np.cumsum(RNG.normal(size=9) * np.where(RNG.uniform(size=9) < 0.3, 3.0, 0.5))
Y += 0.5 * RNG.normal(size=9)


def switching_level(y):
    """The steps of a local level are small or large, as a Markov chain says."""
    stay = numpyro.param("stay", 0.8, constraint=constraints.unit_interval)
    small = numpyro.param("small", 0.4, constraint=constraints.positive)
    ratio = numpyro.param("ratio", 5.0, constraint=constraints.positive)
    noise = numpyro.param("noise", 0.6, constraint=constraints.positive)

    def step(before, inputs):
        t, seen = inputs
        regime, level = before
        to_large = jnp.where(t == 0, 0.5, jnp.where(regime == 1, stay, 1 - stay))
        regime = numpyro.sample("regime", dist.Bernoulli(to_large), infer={"enumerate": "parallel"})
        sd = jnp.where(regime == 1, ratio * small, small)
        level = numpyro.sample("level", dist.Normal(level, sd))
        numpyro.sample("y", dist.Normal(level, noise), obs=seen)
        return (regime, level), None

    scan(step, (0, 0.0), (jnp.arange(len(y)), y))


def all_paths(params, y):
    """A Kalman filter for each of the 2^T paths of the regimes, together."""
    stay, noise = params["stay"], params["noise"]
    paths = np.array(list(itertools.product((0, 1), repeat=len(y))))
    prior = jnp.log(0.5) + jnp.zeros(len(paths))
    prior += jnp.sum(jnp.where(paths[:, 1:] == paths[:, :-1], jnp.log(stay), jnp.log1p(-stay)), 1)
    sd = jnp.where(paths == 1, params["ratio"] * params["small"], params["small"])
    mean, variance = jnp.zeros(len(paths)), jnp.zeros(len(paths))
    for t, seen in enumerate(y):
        variance = variance + sd[:, t] ** 2
        total = variance + noise**2
        prior += -0.5 * ((seen - mean) ** 2 / total + jnp.log(2 * jnp.pi * total))
        gain = variance / total
        mean, variance = mean + gain * (seen - mean), (1 - gain) * variance
    return jax.nn.logsumexp(prior), prior, paths


@pytest.mark.slow
def test_a_switching_level_is_the_sum_over_all_paths():
    problem, params = build_problem(jax.random.key(SEED), switching_level, (Y,), {})
    x = problem.unconstrain(params)
    engine = Quadrature().resolve(jax.random.key(SEED), problem, params)
    state = engine.init(jax.random.key(SEED), problem, params)
    posterior, state, info = expectation(engine, problem, x, state)
    expected, slope = jax.value_and_grad(lambda x: all_paths(problem.constrain(x), Y)[0])(x)
    assert abs(info.objective - expected) < 1e-3
    value, score, _ = value_and_score(engine, problem, x, state)
    np.testing.assert_allclose(value, info.objective, rtol=1e-12)
    np.testing.assert_allclose(score, slope, atol=1e-3)
    total, logs, paths = all_paths(params, Y)
    smoothed = jnp.exp(logs - total) @ paths
    found = posterior.responsibilities()["regime"]
    np.testing.assert_allclose(found[:, 1], smoothed, atol=1e-4)
    q = jax.grad(lambda x: posterior.expected_log_joint(problem, problem.constrain(x)))(x)
    np.testing.assert_allclose(q, slope, atol=1e-3)


def outliers(y):
    """A state of its own for every step, which no other follows."""
    phi = numpyro.param("phi", 0.7)
    sd = numpyro.param("sd", 0.8, constraint=constraints.positive)
    rate = numpyro.param("rate", 0.2, constraint=constraints.unit_interval)

    def step(before, seen):
        z = numpyro.sample("z", dist.Normal(phi * before, sd))
        wild = numpyro.sample("wild", dist.Bernoulli(rate), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Normal(z, jnp.where(wild == 1, 5.0, 0.5)), obs=seen)
        return z, None

    scan(step, 0.0, y)


@pytest.mark.slow
def test_states_that_do_not_follow_one_another():
    problem, params = build_problem(jax.random.key(SEED), outliers, (Y,), {})
    engine = Quadrature().resolve(jax.random.key(SEED), problem, params)
    state = engine.init(jax.random.key(SEED), problem, params)
    info = expectation(engine, problem, problem.unconstrain(params), state)[2]
    gaps = np.arange(9)[:, None] - np.arange(9)
    lower = np.where(gaps >= 0, 0.7 ** np.maximum(gaps, 0), 0.0) * 0.8
    logs = []
    for wild in itertools.product((0, 1), repeat=9):
        noise = np.where(wild, 5.0, 0.5) ** 2
        law = dist.MultivariateNormal(
            jnp.zeros(9), covariance_matrix=lower @ lower.T + np.diag(noise)
        )
        logs.append(law.log_prob(Y) + sum(wild) * np.log(0.2) + (9 - sum(wild)) * np.log(0.8))
    assert abs(info.objective - jax.nn.logsumexp(jnp.array(logs))) < 1e-3
