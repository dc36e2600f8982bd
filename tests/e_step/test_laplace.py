"""Laplace: exact where the log-joint is quadratic, one gradient everywhere, honest failures."""

from functools import cache
from typing import Any, NamedTuple

import gaussian_models
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED
from effects_models import CASES, STRUCTURED
from numpyro.distributions import constraints

from ppl_em import EM, ModelError, Status
from ppl_em.e_step import Exact, Laplace, expectation
from ppl_em.e_step.mode import find_mode
from ppl_em.problem import Problem, build_problem
from ppl_em.structure import Arrow, Blocks, Chain
from ppl_em.util import Static

EVERY = {**CASES, **STRUCTURED}


class Setting(NamedTuple):
    problem: Problem
    engine: Laplace
    x: jax.Array
    posterior: Any
    state: Any
    info: Any


@cache
def setting(name: str) -> Setting:
    """A case at random parameters."""
    keys = jax.random.split(jax.random.key(SEED + 1), 3)
    problem, params = build_problem(keys[0], EVERY[name].model, EVERY[name].args, {})
    engine = Laplace().resolve(keys[1], problem, params)
    x = problem.unconstrain(params)
    x = x + 0.3 * jax.random.normal(keys[2], x.shape)
    state = engine.init(keys[1], problem, params)
    return Setting(problem, engine, x, *expectation(engine, problem, x, state))


@pytest.mark.parametrize("name", [pytest.param("level", marks=pytest.mark.long), "crossed"])
def test_exact_where_the_log_joint_is_quadratic(name):
    case = gaussian_models.CASES[name]
    keys = jax.random.split(jax.random.key(SEED), 3)
    problem, params = build_problem(keys[0], case.model, case.args, {})
    x = problem.unconstrain(params) + 0.1
    values = []
    for configuration in (Laplace(), Exact()):
        engine = configuration.resolve(keys[1], problem, params)
        posterior, _, info = expectation(engine, problem, x, engine.init(keys[2], problem, params))
        q = posterior.expected_log_joint(problem, problem.constrain(x))
        values.append([float(info.objective), float(q)])
    np.testing.assert_allclose(values[0], values[1], rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("absences", Blocks),
        pytest.param("walk", Chain, marks=pytest.mark.long),
        pytest.param("raters", Arrow, marks=pytest.mark.long),
    ],
)
def test_one_gradient(name, structure):
    """That of Q, of the log-likelihood, and differences of the objective."""
    s = setting(name)
    assert isinstance(s.engine.structure, structure)

    def q_function(x: jax.Array) -> jax.Array:
        return s.posterior.expected_log_joint(s.problem, s.problem.constrain(x))

    def likelihood(x: jax.Array) -> jax.Array:
        return s.engine.log_likelihood(s.problem, s.problem.constrain(x), s.state)

    gradients = jax.jit(lambda x: (jax.grad(q_function)(x), jax.grad(likelihood)(x)))(s.x)
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-8, atol=1e-9)

    def objective(x: jax.Array) -> float:
        return float(expectation(s.engine, s.problem, x, s.state)[2].objective)

    steps = 1e-4 * np.eye(s.x.size)
    expected = [(objective(s.x + h) - objective(s.x - h)) / 2e-4 for h in steps]
    np.testing.assert_allclose(gradients[0], expected, rtol=1e-6, atol=1e-6)


def test_chain_as_one_dense_block():
    s = setting("walk")
    dense = Laplace(structure=Blocks(Static(np.arange(s.problem.num_latents)[None])))
    found = expectation(dense, s.problem, s.x, s.state)
    np.testing.assert_allclose(found[2].objective, s.info.objective, rtol=1e-12)
    np.testing.assert_allclose(found[0].shift, s.posterior.shift, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("start", [3.0, -40.0, 0.0])
def test_search_climbs_where_newton_would_not(start):
    """Convex tails, and far from the mode: a Student-t log-density around 1."""
    structure = Blocks(Static(np.arange(1)[None]))

    def density(u: jax.Array) -> jax.Array:
        return -2.5 * jnp.sum(jnp.log1p((u - 1.0) ** 2))

    mode = jax.jit(lambda u: find_mode(structure, density, u))(jnp.array([start]))
    assert bool(mode.found)
    np.testing.assert_allclose(mode.u, [1.0], atol=1e-8)
    np.testing.assert_allclose(mode.law.precision_tril[0, 0, 0], np.sqrt(5.0), rtol=1e-8)


def two_peaks(y):
    """The effect enters by its square: two modes, the right one a little higher."""
    sd = numpyro.param("sd", 0.5, constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Normal(0.0, 2.0))
        numpyro.factor("tilt", 0.1 * z)
        numpyro.sample("y", dist.Normal(z**2, sd), obs=y)


def test_random_starts_find_the_higher_mode():
    problem, params = build_problem(jax.random.key(0), two_peaks, (np.array([4.0]),), {})
    engine = Laplace(num_starts=12).resolve(jax.random.key(SEED), problem, params)
    assert engine.init(jax.random.key(SEED), problem, params).center[0] > 0


def test_without_a_mode_it_refuses():
    def unbounded(y):
        sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.factor("wrong_sign", 2.0 * z**2)
            numpyro.sample("y", dist.Normal(z, sd), obs=y)

    with pytest.raises(ModelError, match=r"Site 'z': no mode .* 'nuts'|Site 'z': no mode"):
        EM(unbounded, e_step="laplace").run(jax.random.key(0), np.ones(3), progress_bar=False)


@pytest.mark.long
def test_groups_without_data_change_nothing():
    """Also one whose answers are all zero converges; the objective never falls."""

    def logistic(group, y, number):
        mean = numpyro.param("mean", 0.0)
        sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
        with numpyro.plate("groups", number):
            b = numpyro.sample("b", dist.Normal(0.0, sd))
        numpyro.sample("y", dist.Bernoulli(logits=mean + b[group]), obs=y)

    group = np.repeat(np.arange(8), 6)
    y = (np.random.default_rng(1).uniform(size=48) < np.repeat(np.linspace(0.1, 0.9, 8), 6)) * 1
    y[:6] = 0
    results = [
        EM(logistic, e_step="laplace").run(jax.random.key(0), group, y, number, progress_bar=False)
        for number in (8, 11)
    ]
    assert all(result.status is Status.CONVERGED for result in results)
    assert abs(results[0].log_likelihood.value - results[1].log_likelihood.value) < 1e-9
    assert abs(results[0].params["sd"] - results[1].params["sd"]) < 1e-6
    assert results[0].log_likelihood.kind == "laplace"
    assert np.min(results[0].history["change"]) > -1e-9
