"""Probability vectors in closed form: right where Q is multinomial in them, harmless elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

from ppl_em import EM, Stopping, m_step
from ppl_em.m_step import grow
from ppl_em.problem import build_problem

RNG = np.random.default_rng(SEED + 3)
POINTS = jnp.asarray(RNG.normal(size=40) + np.array([0.0, 3.0, 6.0])[RNG.integers(3, size=40)])


def mixture(y):
    weights = numpyro.param("weights", jnp.array([0.2, 0.3, 0.5]), constraint=constraints.simplex)
    loc = numpyro.param("loc", jnp.array([0.0, 2.0, 5.0]))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("y", dist.Normal(loc[z], 1.0), obs=y)


def with_prior(y):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.array([2.0, 1.0, 3.0])))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("y", dist.Normal(3.0 * z, 1.0), obs=y)


def composition(y):
    """The vector moves the locations too, so that no closed form holds."""
    weights = numpyro.param("weights", jnp.array([0.2, 0.3, 0.5]), constraint=constraints.simplex)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("y", dist.Normal(6.0 * weights[z], 1.0), obs=y)


def responsibilities(weights, loc):
    joint = np.asarray(weights) * np.exp(
        -0.5 * (np.asarray(POINTS)[:, None] - np.asarray(loc)) ** 2
    )
    return joint / joint.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("flag", ["newton", "lbfgs"])
def test_mixture_weights_are_mean_responsibilities(flag):
    result = EM(mixture, "exact", flag, max_steps=1).run(
        jax.random.key(SEED), POINTS, progress_bar=False
    )
    expected = responsibilities([0.2, 0.3, 0.5], [0.0, 2.0, 5.0])
    np.testing.assert_allclose(result.params["weights"], expected.mean(axis=0), rtol=1e-14)
    centers = (expected * np.asarray(POINTS)[:, None]).sum(axis=0) / expected.sum(axis=0)
    np.testing.assert_allclose(result.params["loc"], centers, atol=1e-7)


def test_a_dirichlet_prior_counts():
    start = np.array([0.2, 0.3, 0.5])
    result = EM(with_prior, "exact", "newton", map_sites=["weights"], max_steps=1).run(
        jax.random.key(SEED), POINTS, init_params={"weights": start}, progress_bar=False
    )
    counts = responsibilities(start, [0.0, 3.0, 6.0]).sum(axis=0) + np.array([1.0, 0.0, 2.0])
    np.testing.assert_allclose(result.params["weights"], counts / counts.sum(), rtol=1e-14)


def test_where_it_does_not_hold_q_still_rises_to_its_maximum():
    fits = [
        EM(composition, "exact", flag).run(jax.random.key(SEED), POINTS, progress_bar=False)
        for flag in ("newton", "lbfgs")
    ]
    assert all(fit.converged for fit in fits)
    assert all(np.all(np.diff(fit.history["objective"]) > -1e-11) for fit in fits)
    score = np.asarray(fits[0].parts._information()[0].gradient)
    assert np.max(np.abs(score)) < 1e-4
    np.testing.assert_allclose(fits[0].params["weights"], fits[1].params["weights"], atol=1e-6)


def test_a_function_that_the_closed_form_would_lower_is_left_alone():
    problem, params = build_problem(jax.random.key(0), mixture, (POINTS,), {})
    x = problem.unconstrain(params)

    def against(free):
        return -jnp.sum((free["weights"] - jnp.array([0.2, 0.3, 0.5])) ** 2)

    def negative(free):
        return -jnp.sum(jnp.log(free["weights"]))

    for function in (against, negative):
        grown = jax.jit(lambda x, f=function: grow(problem.space, f, x))(x)
        np.testing.assert_array_equal(grown.x, x)
        assert grown.start_value == function(params)


def hidden_markov(y):
    delta = numpyro.param("delta", jnp.full(3, 1 / 3), constraint=constraints.simplex)
    gamma = numpyro.param("gamma", 0.4 * jnp.eye(3) + 0.2, constraint=constraints.simplex)
    loc = numpyro.param("loc", jnp.array([0.0, 3.0, 6.0]))
    table = jnp.concatenate([gamma, delta[None]])

    def step(previous, y):
        z = numpyro.sample("z", dist.Categorical(table[previous]))
        numpyro.sample("y", dist.Normal(loc[z], 1.0), obs=y)
        return z, None

    scan(step, 3, y)


@pytest.mark.long
def test_probabilities_that_go_to_zero_do_not_slow_the_m_step():
    """One observation of the first state: its law has two entries that EM drives to 0.

    On the unconstrained scale they are at minus infinity, where a numerical M-step crawls.
    """
    y = POINTS
    result = EM(
        hidden_markov, "exact", m_step.LBFGS(), max_steps=100, stopping=Stopping(gap=0.0)
    ).run(jax.random.key(SEED), y, progress_bar=False)
    assert np.max(result.history["m_steps"][1:]) < 50
    assert np.sort(result.params["delta"])[-2] < 1e-8
    default = EM(hidden_markov, "exact").run(jax.random.key(SEED), y, progress_bar=False)
    assert abs(default.log_likelihood.value - result.log_likelihood.value) < 1e-8
