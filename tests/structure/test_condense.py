"""Condensed data give the same E-step and the same Q as all of their rows."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

from ppl_em import EM
from ppl_em.e_step import Exact
from ppl_em.e_step.exact.enumeration import Enumeration
from ppl_em.problem import build_problem
from ppl_em.structure.condense_rows import condense
from ppl_em.structure.condense_steps import condense_steps

RNG = np.random.default_rng(5)
PLANE = jnp.asarray(RNG.normal(size=(300, 2)) + 3 * RNG.integers(2, size=(300, 1)))
COUNTS = jnp.asarray(RNG.poisson(2 + 6 * RNG.integers(2, size=300)))


def gaussian_mixture(y):
    weights = numpyro.param("weights", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
    loc = numpyro.param("loc", jnp.array([[0.0, 0.5], [2.0, 3.0]]))
    tril = numpyro.param(
        "tril", jnp.tile(jnp.eye(2), (2, 1, 1)), constraint=constraints.lower_cholesky
    )
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("y", dist.MultivariateNormal(loc[z], scale_tril=tril[z]), obs=y)


def poisson_mixture(y):
    weight = numpyro.param("weight", 0.4, constraint=constraints.unit_interval)
    rate = numpyro.param("rate", jnp.array([2.0, 7.0]), constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(weight))
        numpyro.sample("y", dist.Poisson(rate[z]), obs=y)


def hidden_markov(y):
    moves = numpyro.param(
        "moves", jnp.array([[0.8, 0.2], [0.3, 0.7]]), constraint=constraints.simplex
    )
    loc = numpyro.param("loc", jnp.array([[0.0, 0.5], [2.0, 3.0]]))
    scale = numpyro.param("scale", jnp.ones((2, 2)), constraint=constraints.positive)

    def body(z, y):
        z = numpyro.sample("z", dist.Categorical(moves[z]))
        numpyro.sample("y", dist.Normal(loc[z], scale[z]).to_event(1), obs=y)
        return z, None

    scan(body, 0, y)


def no_latents(y):
    loc = numpyro.param("loc", jnp.zeros(2))
    scale = numpyro.param("scale", jnp.ones(2), constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(loc, scale).to_event(1), obs=y)


def skewed(y):
    """Not quadratic in the data, and all rows differ."""
    shape = numpyro.param("shape", jnp.array([1.5, 4.0]), constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Gamma(shape[z], 1.0), obs=y)


def regression(y, x):
    """Rows with distributions of their own."""
    slope = numpyro.param("slope", jnp.array([1.5, 4.0]))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(slope[z] * x, 1.0), obs=y)


def masked(y):
    loc = numpyro.param("loc", jnp.array([0.0, 3.0]))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        with handlers.mask(mask=y > 0):
            numpyro.sample("y", dist.Normal(loc[z], 1.0), obs=y)


def drifting(y):
    """A scan whose emissions change with time."""
    loc = numpyro.param("loc", jnp.array([0.0, 3.0]))

    def body(z, inputs):
        t, y = inputs
        z = numpyro.sample("z", dist.Categorical(jnp.array([[0.8, 0.2], [0.3, 0.7]])[z]))
        numpyro.sample("y", dist.Normal(loc[z] + 0.01 * t, 1.0), obs=y)
        return z, None

    scan(body, 0, (jnp.arange(len(y)), y))


CONDENSED = {
    "gaussian": (gaussian_mixture, PLANE, 6),
    "poisson": (poisson_mixture, COUNTS, len(np.unique(COUNTS))),
    "chain": (hidden_markov, PLANE, 6),
    "no latents": (no_latents, PLANE, 6),
}


@pytest.mark.parametrize("name", CONDENSED)
def test_the_same_step(name):
    model, y, size = CONDENSED[name]
    problem, start = build_problem(jax.random.key(0), model, (y,), {})
    x = problem.unconstrain(start)
    rows = condense(jax.random.key(1), problem, x, 100)
    assert rows["y"].points.shape[0] == size
    result = jax.device_get(_both(problem, x + 0.2, x - 0.3, rows))
    (value, q, gradient, likelihood), full = result
    scale = 1 + abs(full[0])
    np.testing.assert_allclose(value, full[0], atol=1e-12 * scale)
    np.testing.assert_allclose(likelihood, full[0], atol=1e-12 * scale)
    np.testing.assert_allclose(q, full[1], atol=1e-12 * (1 + abs(full[1])))
    np.testing.assert_allclose(gradient, full[2], atol=1e-10 * scale)


@jax.jit
def _both(problem, x, other, rows):
    def numbers(rows):
        engine = Enumeration()
        posterior, _, info = engine.step(problem, problem.constrain(x), rows)

        def q_function(x):
            return posterior.expected_log_joint(problem, problem.constrain(x))

        likelihood = engine.log_likelihood(problem, problem.constrain(x), rows)
        return info.objective, *jax.value_and_grad(q_function)(other), likelihood

    return numbers(rows), numbers({})


@pytest.mark.parametrize(
    "model, data",
    [
        (skewed, (jnp.abs(PLANE[:, 0]) + 0.1,)),
        (regression, (PLANE[:, 0], PLANE[:, 1])),
        (masked, (PLANE[:, 0],)),
        (drifting, (PLANE[:, 0],)),
    ],
)
def test_what_cannot_be_condensed_is_left_alone(model, data):
    problem, start = build_problem(jax.random.key(0), model, data, {})
    assert condense(jax.random.key(1), problem, problem.unconstrain(start), 100) == {}


@pytest.mark.long
def test_a_fit_is_the_same():
    fits = [
        EM(gaussian_mixture, Exact(min_rows=count)).run(
            jax.random.key(SEED), PLANE, progress_bar=False
        )
        for count in (100, None)
    ]
    assert all(fit.converged for fit in fits)
    values = [fit.log_likelihood.value for fit in fits]
    assert abs(values[0] - values[1]) < 1e-9 * (1 + abs(values[0]))
    for name, value in fits[0].params.items():
        errors = fits[1].standard_errors()[name] + 1e-12
        assert np.max(np.abs(value - fits[1].params[name]) / errors) < 1e-4


def state_space(y, x):
    """Two states, three outputs, a covariate, a first state outside the scan."""
    move = numpyro.param("move", jnp.array([[0.8, 0.1], [-0.2, 0.7]]))
    load = numpyro.param("load", jnp.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]))
    slope = numpyro.param("slope", 0.3)
    noise = numpyro.param("noise", jnp.ones(3), constraint=constraints.positive)

    def body(state, inputs):
        y, x = inputs
        law = dist.MultivariateNormal(move @ state + slope * x, jnp.eye(2))
        state = numpyro.sample("state", law)
        numpyro.sample("y", dist.Normal(load @ state, noise).to_event(1), obs=y)
        return state, None

    first = numpyro.sample("first", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    scan(body, first, (y, x))


def level_and_slope(y):
    """A local linear trend whose carry is a tuple."""
    sd = numpyro.param("sd", jnp.array([1.0, 0.5, 0.3]), constraint=constraints.positive)

    def body(carry, y):
        level, slope = carry
        slope = numpyro.sample("slope", dist.Normal(slope, sd[2]))
        level = numpyro.sample("level", dist.Normal(level + slope, sd[1]))
        numpyro.sample("y", dist.Normal(level, sd[0]), obs=y)
        return (level, slope), None

    scan(body, (0.0, 0.0), y)


def two_series(y):
    """Two chains side by side, each with its own noise, and a level that both start from."""
    sd = numpyro.param("sd", jnp.array([1.0, 0.5]), constraint=constraints.positive)
    drift = numpyro.param("drift", 0.1)

    def body(level, y):
        with numpyro.plate("series", 2):
            level = numpyro.sample("level", dist.Normal(0.9 * level + drift, sd))
            numpyro.sample("y", dist.Normal(level, 0.7), obs=y)
        return level, None

    scan(body, jnp.zeros(2), y)


def growing_noise(y):
    """A step whose variance changes with time: not quadratic in what varies."""
    sd = numpyro.param("sd", jnp.array([1.0, 0.5]), constraint=constraints.positive)

    def body(level, inputs):
        y, t = inputs
        level = numpyro.sample("level", dist.Normal(level, sd[1]))
        numpyro.sample("y", dist.Normal(level, sd[0] * (1 + 0.1 * t)), obs=y)
        return level, None

    scan(body, 0.0, (y, jnp.arange(len(y)) / 10.0))


def not_centered(y):
    """The state depends on parameters when the latents are fixed."""
    sd = numpyro.param("sd", jnp.array([1.0, 0.5]), constraint=constraints.positive)

    def body(level, y):
        step = numpyro.sample("step", dist.Normal(0.0, 1.0))
        level = level + sd[1] * step
        numpyro.sample("y", dist.Normal(level, sd[0]), obs=y)
        return level, None

    scan(body, 0.0, y)


SHORT = PLANE[:60, 0]


@pytest.mark.parametrize(
    "model, data",
    [
        pytest.param(state_space, (RNG.normal(size=(60, 3)), SHORT), marks=pytest.mark.long),
        pytest.param(level_and_slope, (SHORT,), marks=pytest.mark.long),
        pytest.param(two_series, (PLANE[:60],), marks=pytest.mark.long),
    ],
)
def test_condensed_steps_give_the_same(model, data):
    """Log-likelihood, its gradient, means, Q and the gradient of Q."""
    data = tuple(map(jnp.asarray, data))
    problem, start = build_problem(jax.random.key(0), model, data, {})
    engines = [
        Exact(min_rows=count).resolve(jax.random.key(1), problem, start) for count in (10, None)
    ]
    states = [engine.init(jax.random.key(2), problem, start) for engine in engines]
    assert [len(state.points) for state in states] == [1, 0]
    assert [state.uniform is not None for state in states] == [True, False]
    x = problem.unconstrain(start)
    short, full = (
        jax.device_get(_all_of(engine, problem, x + 0.1, x - 0.2, state))
        for engine, state in zip(engines, states, strict=True)
    )
    for name, expected in full.items():
        atol = 1e-10 * (1 + np.max(np.abs(expected)))
        np.testing.assert_allclose(short[name], expected, rtol=0, atol=atol, err_msg=name)


@jax.jit(static_argnums=0)
def _all_of(engine, problem, x, other, state):
    posterior, _, _ = engine.step(problem, problem.constrain(x), state)

    def log_likelihood(x):
        return engine.log_likelihood(problem, problem.constrain(x), state)

    def q_function(x):
        return posterior.expected_log_joint(problem, problem.constrain(x))

    value, score = jax.value_and_grad(log_likelihood)(x)
    q, slope = jax.value_and_grad(q_function)(other)
    return {"value": value, "score": score, "mean": posterior.center, "q": q, "slope": slope}


@pytest.mark.parametrize("model", [growing_noise, not_centered])
def test_steps_that_cannot_be_condensed_are_left_alone(model):
    problem, start = build_problem(jax.random.key(0), model, (SHORT,), {})
    assert condense_steps(jax.random.key(1), problem, problem.unconstrain(start), 10) == {}
