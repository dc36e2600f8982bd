"""Quadrature against closed forms and fine grids; its moments, refinement and refusals."""

import logging
from functools import cache
from typing import Any, NamedTuple

import effects_models
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
from conftest import SEED
from effects_models import CASES
from small_models import GAUSSIAN

from ppl_em import EM, ModelError
from ppl_em.cli import catalog
from ppl_em.e_step import Laplace, Quadrature, expectation
from ppl_em.likelihood import marginal_information
from ppl_em.problem import Problem, build_problem
from ppl_em.result import LatentPosterior


class Setting(NamedTuple):
    problem: Problem
    engine: Quadrature
    x: jax.Array
    params: dict
    posterior: Any
    state: Any
    info: Any


@cache
def setting(name: str) -> Setting:
    """A case at random parameters."""
    case = CASES[name]
    keys = jax.random.split(jax.random.key(SEED + 1), 3)
    problem, params = build_problem(keys[0], case.model, case.args, {})
    engine = Quadrature().resolve(keys[1], problem, params)
    x = problem.unconstrain(params)
    x = x + 0.4 * jax.random.normal(keys[2], x.shape)
    state = engine.init(keys[1], problem, params)
    if engine.known_blocks.block_size > 1:  # few nodes until parameters settle
        engine = engine.refined(problem, problem.constrain(x), state) or engine
        state = engine.init(keys[1], problem, params)
    posterior, state, info = expectation(engine, problem, x, state)
    return Setting(problem, engine, x, problem.constrain(x), posterior, state, info)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.long] * (n in ("proportions", "absences"))) for n in CASES],
)
def test_log_likelihood(name):
    s = setting(name)
    expected = CASES[name].log_likelihood(s.params, *CASES[name].args)
    assert abs(float(s.info.objective) - expected) < 1e-7
    assert float(s.info.inner_slope) < 1e-9


@pytest.mark.parametrize("name", [pytest.param("proportions", marks=pytest.mark.long), "slopes"])
def test_fisher(name):
    """The gradient of Q, of the log-likelihood, and differences of the reference are one."""
    s = setting(name)

    def q_function(x: jax.Array) -> jax.Array:
        return s.posterior.expected_log_joint(s.problem, s.problem.constrain(x))

    def likelihood(x: jax.Array) -> jax.Array:
        return s.engine.log_likelihood(s.problem, s.problem.constrain(x), s.state)

    def reference(x: jax.Array) -> float:
        return CASES[name].log_likelihood(s.problem.constrain(x), *CASES[name].args)

    gradients = jax.jit(lambda x: (jax.grad(q_function)(x), jax.grad(likelihood)(x)))(s.x)
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-9, atol=1e-10)
    steps = 1e-4 * np.eye(s.x.size)
    expected = [(reference(s.x + h) - reference(s.x - h)) / 2e-4 for h in steps]
    np.testing.assert_allclose(gradients[0], expected, rtol=1e-6, atol=1e-6)


def test_moments_and_draws():
    """The posterior of a proportion is a beta law."""
    s = setting("proportions")
    n, y = CASES["proportions"].args
    a, b = float(s.params["a"]) + y, float(s.params["b"]) + n - y
    mean, sd = a / (a + b), np.sqrt(a * b / (a + b + 1)) / (a + b)
    latents = LatentPosterior(s.problem, s.params, s.posterior, jax.random.key(SEED))
    np.testing.assert_allclose(latents.mean()["p"], mean, rtol=1e-6)
    np.testing.assert_allclose(latents.sd()["p"], sd, rtol=1e-6)
    draws = latents.sample(jax.random.key(SEED), 2000)["p"]
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - mean), 5 * sd / np.sqrt(2000))
    np.testing.assert_array_less(np.abs(draws.std(axis=0) / sd - 1), 0.15)


def test_one_node_is_laplace():
    s = setting("slopes")
    one = Quadrature(num_nodes=1, blocks=s.engine.blocks)
    laplace = Laplace(structure=s.engine.blocks)
    found = expectation(one, s.problem, s.x, s.state)[2].objective
    state = laplace.init(jax.random.key(0), s.problem, s.params)
    expected = expectation(laplace, s.problem, s.x, state)[2].objective
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.long
def test_fit_of_a_beta_binomial():
    case = CASES["proportions"]
    args = (case.args[0], np.array([1, 3, 9, 2, 2, 6]))
    result = EM(case.model, e_step="quadrature").run(jax.random.key(0), *args, progress_bar=False)
    best = scipy.optimize.minimize(
        lambda x: -case.log_likelihood({"a": np.exp(x[0]), "b": np.exp(x[1])}, *args),
        np.zeros(2),
        options={"gtol": 1e-8},
    )
    assert result.converged and result.log_likelihood.kind == "quadrature"
    assert abs(result.log_likelihood.value + best.fun) < 1e-7
    errors = result.standard_errors()
    for name, value in zip(("a", "b"), np.exp(best.x), strict=True):
        assert abs(float(result.params[name]) - value) < 1e-3 * float(errors[name])
    assert np.min(result.history["change"]) > -1e-7


def test_nodes_are_added_where_they_are_needed(caplog):
    """A wide prior over a sharp edge takes many nodes; with too few allowed, it says so."""

    def edge(y):
        scale = numpyro.param("scale", 30.0, constraint=dist.constraints.positive)
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Normal(0.0, scale))
            numpyro.sample("y", dist.Bernoulli(logits=40.0 * z), obs=y)

    problem, params = build_problem(jax.random.key(0), edge, (np.array([0, 1, 1]),), {})
    many = Quadrature().resolve(jax.random.key(1), problem, params)
    few = Quadrature().resolve(*_setting_of("heavy_tails"))
    assert many.size > few.size
    state = many.init(jax.random.key(1), problem, params)
    value = expectation(many, problem, problem.unconstrain(params), state)[2].objective
    assert abs(float(value) - 3 * np.log(0.5)) < 1e-6
    with caplog.at_level(logging.WARNING, "ppl_em"):
        poor = Quadrature(max_points=21).resolve(jax.random.key(1), problem, params)
        poor.refined(problem, params, state)
    assert "is good to about" in caplog.text


def _setting_of(name: str) -> tuple:
    case = CASES[name]
    return jax.random.key(1), *build_problem(jax.random.key(0), case.model, case.args, {})


def test_refusals():
    case = effects_models.STRUCTURED["raters"]
    with pytest.raises(ModelError, match=r"Site 'a': .* blocks of 15.* 9\^15 nodes.*'nuts'"):
        EM(case.model, e_step="quadrature").run(jax.random.key(0), *case.args)
    with pytest.raises(ModelError, match="num_nodes"):
        Quadrature(num_nodes=0)


def test_gaussian_latents_are_exact():
    case = GAUSSIAN["slope"]
    problem, params = build_problem(jax.random.key(0), case.model, case.args, {})
    engine = Quadrature(num_nodes=2).resolve(jax.random.key(1), problem, params)
    state = engine.init(jax.random.key(1), problem, params)
    x = problem.unconstrain(params) + 0.1
    found = expectation(engine, problem, x, state)[2].objective
    expected = case.log_likelihood(problem.constrain(x))
    np.testing.assert_allclose(float(found), float(jnp.asarray(expected)), rtol=1e-10)


LME4 = {  # lme4 1.1-31, glmer(cbind(r, n - r) ~ x1 * x2 + (1 | group), binomial, nAGQ = ...)
    1: [-0.5484837, 0.0974257, 1.3368108, -0.8100413, 0.2345795],
    2: [-0.5484999, 0.0973313, 1.3368917, -0.8101720, 0.2350766],
}


@pytest.mark.parametrize("nodes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_few_nodes_reach_the_maximum_of_their_own_log_likelihood(nodes):
    entry = catalog.find("seeds")
    result = EM(entry.model, e_step=Quadrature(num_nodes=nodes)).run(
        jax.random.key(SEED), progress_bar=False, **entry.load()
    )
    assert result.converged
    found = np.append(result.params["alpha"], result.params["sd"])
    errors = entry.reference["standard_errors"]
    errors = np.append(errors["alpha"], errors["sd"])
    np.testing.assert_array_less(np.abs(found - LME4[nodes]) / errors, 5e-4)  # its own tolerance
    if nodes == 1:  # and of Laplace's
        np.testing.assert_allclose(result.log_likelihood.value, -53.7695716, atol=1e-6)


def slopes(x, group, number, y):
    beta = numpyro.param("beta", jnp.zeros(2))
    sd = numpyro.param("sd", jnp.ones(2), constraint=dist.constraints.positive)
    with numpyro.plate("groups", number):
        b = numpyro.sample("b", dist.Normal(0.0, sd[0]))
        c = numpyro.sample("c", dist.Normal(0.0, sd[1]))
    with numpyro.plate("rows", len(x)):
        logits = beta[0] + b[group] + (beta[1] + c[group]) * x
        numpyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


@pytest.mark.long
@pytest.mark.parametrize("number", [40, 250])
def test_blocks_of_two_start_with_few_nodes_and_end_with_enough(number):
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(number), 6)
    x = rng.normal(size=len(group))
    logits = -0.5 + x + rng.normal(size=number)[group] + 0.7 * rng.normal(size=number)[group] * x
    y = (rng.uniform(size=len(group)) < 1 / (1 + np.exp(-logits))).astype(int)
    result = EM(slopes, e_step="quadrature").run(
        jax.random.key(SEED), x, group, number, y, progress_bar=False
    )
    assert result.converged
    engine = result.parts.e_step
    few = engine.for_curvature()
    assert few.size < engine.size and engine.refined(*[None] * 3) is None

    problem, key = result.parts.problem, jax.random.key(SEED)
    sure = Quadrature(num_nodes=35, blocks=engine.blocks)
    state = sure.init(key, problem, result.params)
    expected = float(expectation(sure, problem, result.parts.x, state)[2].objective)
    np.testing.assert_allclose(result.log_likelihood.value, expected, rtol=0, atol=1e-6)
    found = marginal_information(sure, problem, result.parts.x, state)
    errors = np.sqrt(np.diag(found.covariance))
    assert np.max(np.abs(found.newton_step) / errors) < 1e-4
    ours = marginal_information(engine, problem, result.parts.x, result.parts.e_state)
    np.testing.assert_allclose(np.sqrt(np.diag(ours.covariance)), errors, rtol=1e-3)
