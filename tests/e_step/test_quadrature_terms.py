"""Quadrature integrates every term that depends on latents, whatever the start and the key."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy.special import expit, gammaln, logsumexp
from scipy.stats import norm

from ppl_em import EM, ModelError
from ppl_em.posterior import constant_part
from ppl_em.problem import build_problem
from ppl_em.structure import owners

GRID = np.linspace(-8, 8, 4001)
COUNTS = np.array([3, 5, 2, 4, 6])


def shared(y):
    rate = numpyro.param("rate", 2.0, constraint=constraints.positive)
    b = numpyro.sample("b", dist.Normal(0.0, 0.5))
    numpyro.sample("y", dist.Poisson(rate * jnp.exp(b)), obs=y)


def shared_by_grid(rate: float) -> float:
    mean = rate * np.exp(GRID)[:, None]
    each = (COUNTS * np.log(mean) - mean - gammaln(COUNTS + 1)).sum(1) + norm.logpdf(GRID, 0, 0.5)
    return float(logsumexp(each) + np.log(GRID[1] - GRID[0]))


def test_one_shared_effect_is_integrated():
    fit = EM(shared, "quadrature").run(jax.random.key(0), COUNTS, progress_bar=False)
    assert fit.converged
    np.testing.assert_allclose(
        fit.log_likelihood.value, shared_by_grid(float(fit.params["rate"])), atol=1e-7
    )
    assert max(map(shared_by_grid, np.linspace(3.7, 4.1, 41))) < fit.log_likelihood.value + 1e-5


def two(y):
    mu = numpyro.param("mu", 0.5)
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(a, 1.0))
    numpyro.sample("y", dist.Normal(mu + b, 1.0).expand([3]).to_event(1), obs=y)


@pytest.mark.long
def test_one_block_of_two_latents_is_integrated():
    y = np.array([0.3, 1.4, -0.2])
    fit = EM(two, "quadrature").run(jax.random.key(0), y, progress_bar=False)
    covariance = np.eye(3) + 2.0
    right = -0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    r = y - y.mean()
    right -= 0.5 * r @ np.linalg.solve(covariance, r)
    np.testing.assert_allclose(fit.log_likelihood.value, right, atol=1e-7)


def saturated(x, y, b0=0.3):
    a, b = numpyro.param("a", 0.0), numpyro.param("b", b0)
    with numpyro.plate("g", 4):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", 12):
        numpyro.sample("y", dist.Bernoulli(logits=a + b * x + z[np.arange(12) // 3]), obs=y)


def test_saturated_rows_belong_to_their_groups():
    x, y = np.linspace(150.0, 250.0, 12), np.tile([1, 0, 1], 4)
    problem, params = build_problem(jax.random.key(0), saturated, (x, y), {})
    found = owners(problem, problem.unconstrain(params), np.zeros(4), np.arange(4))
    rows = found[-12:]
    np.testing.assert_array_equal(rows, np.arange(12) // 3)


@pytest.mark.parametrize("seed", [0, 1])
def test_saturated_start_gives_the_integral(seed):
    x, y = np.linspace(150.0, 250.0, 12), np.tile([1, 0, 1], 4)
    fit = EM(saturated, "quadrature").run(
        jax.random.key(seed), x, y, b0=0.0, init_params={"b": 0.05}, progress_bar=False
    )
    a, b = (float(fit.params[name]) for name in "ab")
    p = expit((2 * y - 1)[:, None] * ((a + b * x)[:, None] + GRID))
    each = np.log(p).reshape(4, 3, -1).sum(1) + norm.logpdf(GRID)
    right = np.sum(logsumexp(each, axis=1)) + 4 * np.log(GRID[1] - GRID[0])
    np.testing.assert_allclose(fit.log_likelihood.value, right, atol=1e-6)


def test_what_is_called_constant_must_be():
    assert float(constant_part(jnp.full(5, 3.0))) == 3.0
    assert np.isnan(float(constant_part(jnp.array([3.0, 3.0, 3.1]))))


def test_steps_are_refused():
    def model(y):
        mu = numpyro.param("mu", 0.2)
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(jnp.floor(z), 1.0), obs=y)

    with pytest.raises(ModelError, match=r"Site 'z'.*floor"):
        EM(model, "quadrature").run(jax.random.key(0), np.zeros(3), progress_bar=False)
