"""Chains on nodes against closed forms and dense grids, however the model is written."""

import pickle
from collections.abc import Callable
from functools import cache

import dense_chain
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

from ppl_em import ModelError
from ppl_em.e_step import Quadrature, expectation
from ppl_em.likelihood import value_and_score
from ppl_em.problem import build_problem

T, B = 7, 3
RNG = np.random.default_rng(20)
Y = np.cumsum(RNG.normal(size=(T, B)), axis=0) + RNG.normal(size=(T, B))
X = RNG.normal(size=T)
SEEN = np.array([1, 1, 0, 1, 0, 0, 1], bool)


def parameters():
    phi = numpyro.param("phi", 0.7)
    sd = numpyro.param("sd", 0.8, constraint=constraints.positive)
    noise = numpyro.param("noise", 0.5, constraint=constraints.positive)
    slope = numpyro.param("slope", 0.4)
    return phi, sd, noise, slope


def by_scan(y, x, seen):
    phi, sd, noise, slope = parameters()

    def step(before, inputs):
        y, x, seen, t = inputs
        z = numpyro.sample("z", dist.Normal(phi * before, jnp.where(t == 0, 2.0, sd)))
        with numpyro.handlers.mask(mask=seen):
            numpyro.sample("y", dist.Normal(z + slope * x, noise), obs=y)
        return z, None

    scan(step, 0.0, (y, x, seen, jnp.arange(len(y))))


def observed_afterwards(y, x, seen):
    phi, sd, noise, slope = parameters()

    def step(before, t):
        z = numpyro.sample("z", dist.Normal(phi * before, jnp.where(t == 0, 2.0, sd)))
        return z, z

    _, z = scan(step, 0.0, jnp.arange(len(y)))
    with numpyro.plate("time", len(y)), numpyro.handlers.mask(mask=seen):
        numpyro.sample("y", dist.Normal(z + slope * x, noise), obs=y)


def by_loop(y, x, seen):
    phi, sd, noise, slope = parameters()
    z = 0.0
    for t in range(len(y)):
        z = numpyro.sample(f"z_{t}", dist.Normal(phi * z, sd if t else 2.0))
        if seen[t]:
            numpyro.sample(f"y_{t}", dist.Normal(z + slope * x[t], noise), obs=y[t])


def first_outside(y, x, seen):
    """The first state before the scan, and states on a scale of their own."""
    phi, sd, noise, slope = parameters()

    def emit(name, z, y, x, seen):
        with numpyro.handlers.mask(mask=seen):
            numpyro.sample(name, dist.Normal(jnp.log(z) + slope * x, noise), obs=y)

    def step(before, inputs):
        z = numpyro.sample("z", dist.LogNormal(phi * jnp.log(before), sd))
        emit("y", z, *inputs)
        return z, None

    start = numpyro.sample("start", dist.LogNormal(0.0, 2.0))
    emit("y_start", start, y[0], x[0], seen[0])
    scan(step, start, (y[1:], x[1:], seen[1:]))


def in_plate(y, x, seen):
    """Three series side by side."""
    phi, sd, noise, slope = parameters()

    def step(before, inputs):
        y, x, seen, t = inputs
        with numpyro.plate("series", B):
            z = numpyro.sample("z", dist.Normal(phi * before, jnp.where(t == 0, 2.0, sd)))
            with numpyro.handlers.mask(mask=seen):
                numpyro.sample("y", dist.Normal(z + slope * x, noise), obs=y)
        return z, None

    scan(step, jnp.zeros(B), (y, x, seen, jnp.arange(len(y))))


def emissions_in_plate(y, x, seen):
    """Three things seen of one state."""
    phi, sd, noise, slope = parameters()

    def step(before, inputs):
        y, x, seen, t = inputs
        z = numpyro.sample("z", dist.Normal(phi * before, jnp.where(t == 0, 2.0, sd)))
        with numpyro.plate("items", B), numpyro.handlers.mask(mask=seen):
            numpyro.sample("y", dist.Normal(z + slope * x, noise), obs=y)
        return z, None

    scan(step, 0.0, (y, x, seen, jnp.arange(len(y))))


def jointly_normal(params, y, together):
    """The log-density of series (T, n); `together` if all are of one state."""
    phi, sd, noise, slope = (params[name] for name in ("phi", "sd", "noise", "slope"))
    scale = jnp.where(jnp.arange(T) == 0, 2.0, sd)
    gaps = jnp.arange(T)[:, None] - jnp.arange(T)
    lower = jnp.where(gaps >= 0, phi ** jnp.maximum(gaps, 0), 0.0) * scale
    covariance = lower @ lower.T
    left = (y - slope * X[:, None])[SEEN]
    covariance = covariance[np.ix_(SEEN, SEEN)]
    if together:
        covariance = jnp.kron(covariance, jnp.ones((y.shape[1], y.shape[1])))
        left = left.reshape(-1, 1)
    covariance += noise**2 * jnp.eye(len(left))
    law = dist.MultivariateNormal(covariance_matrix=covariance)
    return jnp.sum(law.log_prob(left.T))


SPELLINGS = {
    "scan": (by_scan, Y[:, 0], False),
    "afterwards": (observed_afterwards, Y[:, 0], False),
    "loop": (by_loop, Y[:, 0], False),
    "outside": (first_outside, Y[:, 0], False),
    "series": (in_plate, Y, False),
    "items": (emissions_in_plate, Y, True),
}
QUICK = ("scan",)


@cache
def setting(name: str) -> tuple:
    model, y, _ = SPELLINGS[name]
    problem, params = build_problem(jax.random.key(SEED), model, (y, X, SEEN), {})
    x = problem.unconstrain(params) + jnp.asarray([0.1, -0.2, 0.3, 0.1])
    params = problem.constrain(x)
    engine = Quadrature(max_dimension=1).resolve(jax.random.key(SEED), problem, params)
    state = engine.init(jax.random.key(SEED), problem, params)
    return problem, engine, x, params, *expectation(engine, problem, x, state)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in SPELLINGS]
)
def test_a_gaussian_chain_in_any_spelling(name):
    """Value and score are those of a joint normal law."""
    problem, engine, x, _, _, state, info = setting(name)
    assert engine.kind == "quadrature" and engine.noise > 0
    _, y, together = SPELLINGS[name]
    y = y if y.ndim > 1 else y[:, None]

    def exact(x):
        return jointly_normal(problem.constrain(x), y, together)

    expected, slope = jax.value_and_grad(exact)(x)
    value, score, _ = value_and_score(engine, problem, x, state)
    assert abs(info.objective - expected) < 1e-5 and abs(info.half) < 1e-3
    np.testing.assert_allclose(value, info.objective, rtol=1e-12)
    np.testing.assert_allclose(score, slope, atol=1e-4)


def test_the_posterior_of_a_chain():
    """Moments are the smoother's; Q has the slope of the log-likelihood; draws have its moments."""
    problem, _, x, params, posterior, _, _ = setting("scan")
    scale = np.where(np.arange(T) == 0, 2.0, params["sd"])
    gaps = np.arange(T)[:, None] - np.arange(T)
    lower = np.where(gaps >= 0, float(params["phi"]) ** np.maximum(gaps, 0), 0.0) * scale
    prior = np.linalg.inv(lower @ lower.T)
    precision = prior + np.diag(SEEN / float(params["noise"]) ** 2)
    covariance = np.linalg.inv(precision)
    left = np.where(SEEN, Y[:, 0] - params["slope"] * X, 0.0) / float(params["noise"]) ** 2
    means, sds = posterior.moments(problem, params)
    np.testing.assert_allclose(means["z"], covariance @ left, atol=1e-5)
    np.testing.assert_allclose(sds["z"], np.sqrt(np.diag(covariance)), rtol=1e-4)

    def q(x):
        return posterior.expected_log_joint(problem, problem.constrain(x))

    slope = jax.grad(lambda x: jointly_normal(problem.constrain(x), Y[:, :1], False))(x)
    np.testing.assert_allclose(jax.grad(q)(x), slope, atol=1e-4)
    draws = posterior.sample(problem, params, jax.random.key(SEED), 4000)["z"]
    error = np.sqrt(np.diag(covariance) / 4000)
    assert np.all(np.abs(draws.mean(0) - covariance @ left) < 4.5 * error)
    spread = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)) / 4000)
    assert np.all(np.abs(np.cov(draws.T) - covariance) < 6.5 * spread)


def test_the_contract_of_an_approximation():
    """Configuration and posterior can be pickled; a state keeps its type from step to step."""
    problem, engine, x, params, posterior, state, info = setting("scan")
    again = pickle.loads(pickle.dumps(engine))
    assert again == engine and hash(again) == hash(engine)
    assert engine.refined(problem, params, state) is None
    follows, more = expectation(engine, problem, x, state)[1:]
    assert jax.tree.map(jnp.shape, follows) == jax.tree.map(jnp.shape, state)
    for before, after in zip(follows.reach, state.reach, strict=True):
        np.testing.assert_array_equal(before, after)  # nodes that still do stay
    assert float(more.objective) == float(info.objective)
    leaves = jax.tree.leaves(pickle.loads(pickle.dumps(posterior)))
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves)
    assert np.isclose(posterior.first.sum(), 1) and np.allclose(posterior.pairs.sum((-2, -1)), 1)


def poisson_chain(y):
    phi = numpyro.param("phi", 0.6)
    sd = numpyro.param("sd", 0.5, constraint=constraints.positive)

    def step(before, y):
        z = numpyro.sample("z", dist.StudentT(5.0, phi * before, sd))
        numpyro.sample("y", dist.Poisson(jnp.exp(z)), obs=y)
        return z, None

    scan(step, 1.0, y)


@pytest.mark.slow
def test_counts_with_jumps_against_a_dense_grid():
    y = np.array([0, 1, 9, 4, 2, 0, 0, 1])
    problem, params = build_problem(jax.random.key(SEED), poisson_chain, (y,), {})
    engine = Quadrature().resolve(jax.random.key(SEED), problem, params)
    state = engine.init(jax.random.key(SEED), problem, params)
    _, _, info = expectation(engine, problem, problem.unconstrain(params), state)
    nodes = np.linspace(-60, 20, 4001)
    weights = np.full(len(nodes), nodes[1] - nodes[0])
    move = dense_chain.student_t(nodes, 5.0, 0.6 * nodes[:, None], 0.5)
    first = dense_chain.student_t(nodes, 5.0, 0.6, 0.5)
    with np.errstate(over="ignore"):
        seen = dense_chain.poisson(y[:, None], nodes)
    expected = dense_chain.filtered(weights, first, lambda t: move, seen)
    assert abs(info.objective - expected) < 1e-4


def test_few_nodes_are_refused():
    """A transition much narrower than nodes are apart makes sums arbitrary."""
    problem, params = build_problem(jax.random.key(SEED), by_scan, (Y[:, 0], X, SEEN), {})
    engine = Quadrature(3, max_dimension=1)
    with pytest.raises(ModelError, match="3 nodes of each step are not to be trusted"):
        engine.resolve(jax.random.key(SEED), problem, params)


def two_states(y):
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)

    def step(before, y):
        z = numpyro.sample("z", dist.Normal(before, sd).expand([2]).to_event(1))
        numpyro.sample("y", dist.Poisson(jnp.exp(z[0] * z[1])), obs=y)
        return z, None

    scan(step, jnp.zeros(2), y)


def two_back(y):
    """The state before the last one matters as well."""
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)

    def step(before, y):
        z = numpyro.sample("z", dist.Normal(before[0] - 0.5 * before[1], sd))
        numpyro.sample("y", dist.Poisson(jnp.exp(z)), obs=y)
        return (z, before[0]), None

    scan(step, (0.0, 0.0), y)


def added_up(y):
    """A term that is linear in all states: no second derivative shows it."""
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)

    def step(before, y):
        z = numpyro.sample("z", dist.Normal(before, sd))
        numpyro.sample("y", dist.Poisson(jnp.exp(z)), obs=y)
        return z, z

    _, z = scan(step, 0.0, y)
    numpyro.factor("all", 0.1 * jnp.sum(z))


@pytest.mark.parametrize("model", [two_states, two_back, added_up])
def test_what_is_no_chain_of_single_states_is_refused(model: Callable):
    problem, params = build_problem(jax.random.key(SEED), model, (np.arange(9) % 3,), {})
    with pytest.raises(ModelError, match="'nuts' or 'laplace'"):
        Quadrature().resolve(jax.random.key(SEED), problem, params)
