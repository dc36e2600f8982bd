"""Chains of states next to variances of zero, against the law of the data in 50 digits."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED
from numpyro.contrib.control_flow import scan

from ppl_em.e_step import Exact
from ppl_em.problem import build_problem

mp.mp.dps = 50
LENGTH = 10
POSITIVE = dist.constraints.positive


def level(y, d):
    """Local level with a covariate, an initial state of its own and missing observations."""
    be = numpyro.param("be", -2.0)
    sl = numpyro.param("sl", 1.0, constraint=POSITIVE)
    se = numpyro.param("se", 2.0, constraint=POSITIVE)
    first = numpyro.sample("l0", dist.Normal(10.0, 5.0))

    def step(before, x):
        now = numpyro.sample("l", dist.Normal(before, sl))
        seen = dist.Normal(now + be * x[1], se).mask(jnp.isfinite(x[0]))
        numpyro.sample("y", seen, obs=jnp.nan_to_num(x[0]))
        return now, None

    scan(step, first, (y, d))


def level_law(p):
    t = range(1, LENGTH + 1)
    mean = [10 + p["be"] * int(i > 4) for i in t]
    return mean, lambda i, j: 25 + p["sl"] ** 2 * (min(i, j) + 1) + p["se"] ** 2 * (i == j)


def trend(y, d):
    """Level and slope, the slope first; either noise may vanish."""
    sl = numpyro.param("sl", 1.0, constraint=POSITIVE)
    ss = numpyro.param("ss", 0.5, constraint=POSITIVE)
    se = numpyro.param("se", 2.0, constraint=POSITIVE)
    l0 = numpyro.sample("l0", dist.Normal(10.0, 5.0))
    s0 = numpyro.sample("s0", dist.Normal(0.0, 1.0))

    def step(carry, y):
        now, s = carry
        s = numpyro.sample("s", dist.Normal(s, ss))
        now = numpyro.sample("l", dist.Normal(now + s, sl))
        numpyro.sample("y", dist.Normal(now, se), obs=y)
        return (now, s), None

    scan(step, (l0, s0), y)


def trend_law(p):
    def covariance(i, j):
        i, j = i + 1, j + 1
        slopes = sum((i - u + 1) * (j - u + 1) for u in range(1, min(i, j) + 1))
        states = 25 + i * j + p["sl"] ** 2 * min(i, j) + p["ss"] ** 2 * slopes
        return states + p["se"] ** 2 * (i == j)

    return [10] * LENGTH, covariance


pytestmark = pytest.mark.slow
MODELS = {"level": (level, level_law), "trend": (trend, trend_law)}
CASES = [
    *(("level", {"sl": s, "se": 2.0}) for s in (1.0, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)),
    *(("level", {"sl": 1.0, "se": s}) for s in (1e-3, 1e-6)),
    *(("trend", {"sl": a, "ss": b, "se": 2.0}) for a in (1.0, 1e-6, 1e-12) for b in (0.5, 1e-9)),
    ("trend", {"sl": 1e-12, "ss": 0.5, "se": 1e-5}),
]


def data(name):
    rng = np.random.default_rng(SEED)
    y = 10 + rng.normal(size=LENGTH).cumsum() + rng.normal(size=LENGTH)
    y[[2, 3]] = np.where(name == "level", np.nan, y[[2, 3]])
    return y, (np.arange(LENGTH) >= 4).astype(float)


def log_likelihood(name, y, params):
    """In 50 digits, by the joint law of what is seen."""
    mean, covariance = MODELS[name][1](params)
    seen = [i for i in range(LENGTH) if np.isfinite(y[i])]
    matrix = mp.matrix([[covariance(i, j) for j in seen] for i in seen])
    root = mp.cholesky(matrix)
    noise = mp.lu_solve(root, mp.matrix([mp.mpf(y[i]) - mean[i] for i in seen]))
    scale = sum(mp.log(root[i, i]) for i in range(len(seen)))
    return -sum(v**2 for v in noise) / 2 - scale - len(seen) * mp.log(2 * mp.pi) / 2


def score(name, y, params):
    """With respect to the logarithms of standard deviations, and to `be` itself."""
    h, found = mp.mpf(10) ** -15, {}
    for key, value in params.items():
        up, down = (value + s * h if key == "be" else value * mp.exp(s * h) for s in (1, -1))
        gap = [log_likelihood(name, y, {**params, key: v}) for v in (up, down)]
        found[key] = (gap[0] - gap[1]) / (2 * h)
    return found


@pytest.fixture(scope="module", params=["level", "trend"])
def fitted(request):
    name = request.param
    y, d = data(name)
    problem, params = build_problem(jax.random.key(0), MODELS[name][0], (y, d), {})
    e_step = Exact().resolve(jax.random.key(1), problem, params)
    state = e_step.init(jax.random.key(2), problem, params)

    def objective(x):
        return e_step.log_likelihood(problem, problem.constrain(x), state)

    def step(x):
        posterior, _, info = e_step.step(problem, problem.constrain(x), state)

        def q(at):
            return posterior.expected_log_joint(problem, problem.constrain(at))

        return info.objective, jax.grad(q)(x)

    return name, y, problem, jax.jit(jax.value_and_grad(objective)), jax.jit(step)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_score(fitted, case):
    name, y, problem, by_value, by_step = fitted
    if case[0] != name:
        pytest.skip("a case of the other model")
    params = {**({"be": -1.5} if name == "level" else {}), **case[1]}
    x = problem.unconstrain({k: jnp.asarray(v) for k, v in params.items()})
    places = problem.space.constrain(x)
    # The parameters themselves come back from their logarithms with rounding.
    back = {k: mp.mpf(float(v)) for k, v in places.items()}
    value, slope = log_likelihood(name, y, back), score(name, y, back)
    expected = np.array([float(slope[k]) for k in sorted(params)])
    largest = np.max(np.abs(expected))
    found, gradient = by_value(x)
    assert abs(float(found) - value) < 1e-9 * (1 + abs(value))
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-9 * (1 + largest))
    objective, fisher = by_step(x)
    assert abs(objective - found) < 1e-10 * abs(found)
    if case[1].get("se", 2.0) < 1e-4 and name == "trend":
        return  # level and data pin each other down: Q is a difference of rounded states
    # Fisher's identity compares states that are rounded with their own standard deviation, and
    # the slope in `be` is such a difference divided by the variance.
    smallest = min(v for k, v in params.items() if k != "be")
    rounded = 1e-15 * 20 / smallest
    limit = 1e-8 * (1 + largest) + 50 * LENGTH * (rounded + rounded**2)
    limit = np.where(np.array(sorted(params)) == "be", limit + rounded / smallest, limit)
    assert np.all(np.abs(fisher - expected) < limit)
