"""Fits of nonlinear and non-Gaussian time series, against references and dense grids."""

from collections.abc import Callable
from functools import cache

import dense_chain
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED, load_model, load_reference
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

from ppl_em import EM

pytestmark = pytest.mark.usefixtures("optimized")


@pytest.mark.long
def test_nonlinear_growth_reaches_the_reference():
    """By the default algorithm, from the model's own start."""
    growth, reference = load_model("nonlinear_growth"), load_reference("growth_q01")["reference"]
    result = EM(growth.model).run(jax.random.key(SEED), **growth.load(), progress_bar=False)
    assert result.converged and result.e_step == "quadrature"
    assert abs(result.log_likelihood.value - reference["loglik"]) < 0.02
    errors = result.standard_errors()
    for name, value in reference["mle"].items():
        assert abs(result.params[name] - value) < 0.02 * reference["se"][name]
        assert abs(errors[name] / reference["se"][name] - 1) < 0.02


@pytest.mark.long
def test_a_linear_gaussian_chain_agrees_with_exact():
    nile = load_model("nile")
    fits = [
        EM(nile.model, flag).run(jax.random.key(SEED), **nile.load(), progress_bar=False)
        for flag in ("exact", "quadrature")
    ]
    errors = fits[0].standard_errors()
    for name, value in fits[0].params.items():
        assert abs(fits[1].params[name] - value) < 1e-3 * errors[name]


def stochastic_volatility(y):
    """The logarithm of the variance of returns is an autoregression."""
    phi = numpyro.param("phi", 0.9, constraint=constraints.interval(-1, 1))
    sigma = numpyro.param("sigma", 0.3, constraint=constraints.positive)
    level = numpyro.param("level", 0.0)

    def step(before, inputs):
        t, seen = inputs
        sd = jnp.where(t == 0, sigma / jnp.sqrt(1 - phi**2), sigma)
        h = numpyro.sample("h", dist.Normal(phi * before, sd))
        numpyro.sample("y", dist.Normal(0.0, jnp.exp((level + h) / 2)), obs=seen)
        return h, None

    scan(step, 0.0, (jnp.arange(len(y)), y))


def volatility_data(length=300):
    rng = np.random.default_rng(42)
    h = np.zeros(length)
    for t in range(1, length):
        h[t] = 0.95 * h[t - 1] + 0.25 * rng.normal()
    return np.exp((h - 0.5) / 2) * rng.normal(size=length)


def volatility_on_a_grid(params, y):
    phi, sigma, level = (float(params[name]) for name in ("phi", "sigma", "level"))
    nodes = np.linspace(-9, 9, 1201)
    weights = np.full(len(nodes), nodes[1] - nodes[0])
    move = dense_chain.normal(nodes, phi * nodes[:, None], sigma)
    first = dense_chain.normal(nodes, 0.0, sigma / np.sqrt(1 - phi**2))
    seen = dense_chain.normal(y[:, None], 0.0, np.exp((level + nodes) / 2))
    return dense_chain.filtered(weights, first, lambda t: move, seen)


def student_level(flow):
    """The level of the Nile, with jumps."""
    noise = numpyro.param("noise", 120.0, constraint=constraints.positive)
    step_sd = numpyro.param("step", 30.0, constraint=constraints.positive)

    def year(before, seen):
        level = numpyro.sample("level", dist.StudentT(3.0, before, step_sd))
        numpyro.sample("flow", dist.Normal(level, noise), obs=seen)
        return level, None

    start = numpyro.sample("start", dist.Normal(1000.0, 500.0))
    numpyro.sample("first", dist.Normal(start, noise), obs=flow[0])
    scan(year, start, flow[1:])


def student_on_a_grid(params, flow):
    noise, step = float(params["noise"]), float(params["step"])
    nodes = np.linspace(-500, 2500, 3001)
    weights = np.full(len(nodes), nodes[1] - nodes[0])
    move = dense_chain.student_t(nodes, 3.0, nodes[:, None], step)
    first = dense_chain.normal(nodes, 1000.0, 500.0)
    seen = dense_chain.normal(flow[:, None], nodes, noise)
    return dense_chain.filtered(weights, first, lambda t: move, seen)


@cache
def fitted(name: str) -> tuple:
    model, data, grid = {
        "volatility": (stochastic_volatility, volatility_data(), volatility_on_a_grid),
        "student": (student_level, load_model("nile").load()["flow"], student_on_a_grid),
    }[name]
    return EM(model).run(jax.random.key(SEED), data, progress_bar=False), data, grid


@pytest.mark.long
@pytest.mark.parametrize("name", ["volatility", "student"])
def test_fits_against_a_dense_grid(name: str):
    """The log-likelihood is the grid's, whose maximum is less than 0.01 standard errors away."""
    result, data, grid = fitted(name)
    assert result.converged and result.e_step == "quadrature"
    assert abs(result.log_likelihood.value - grid(result.params, data)) < 1e-2
    errors = result.standard_errors()
    for parameter, value in result.params.items():
        assert abs(_slope(grid, result.params, data, parameter, float(errors[parameter]))) < 0.01
        assert np.isfinite(value)


def _slope(grid: Callable, params: dict, data: np.ndarray, name: str, error: float) -> float:
    """The slope of the grid's log-likelihood, in nats per standard error."""
    ends = [{**params, name: float(params[name]) + sign * 0.05 * error} for sign in (-1, 1)]
    below, above = (grid(end, data) for end in ends)
    return (above - below) / 0.1
