"""Chains of states next to variances of zero, against Kalman's filter in 50 digits."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED
from numpyro.contrib.control_flow import scan

from ppl_em import EM, Direct
from ppl_em.e_step import Exact, expectation
from ppl_em.likelihood import held_value_and_score, marginal_information, value_and_score
from ppl_em.problem import build_problem

LENGTH = 9
POSITIVE = dist.constraints.positive
DIGITS = 50


@dataclass(frozen=True)
class Law:
    """s_1 ~ N(mean, spread), s_t = move s_(t-1) + shift + noise, y_t = see s_t + at_t + N(0, se^2).

    `noise` is a root of the covariance of the states' noise.
    """

    mean: list
    spread: list
    move: list
    noise: list
    see: list
    se: Any
    shift: list
    at: list


def filtered(law, y):
    """Log-density of a series `y`, NaN where it is missing."""
    move, see = mp.matrix(law.move), mp.matrix([law.see])
    mean, spread = mp.matrix(law.mean), mp.diag([mp.mpf(v) for v in law.spread])
    noise, total = mp.matrix(law.noise) * mp.matrix(law.noise).T, mp.mpf(0)
    for t, seen in enumerate(y):
        if t:
            mean = move * mean + mp.matrix(law.shift)
            spread = move * spread * move.T + noise
        if np.isnan(seen):
            continue
        scale = (see * spread * see.T)[0] + mp.mpf(law.se) ** 2
        miss, gain = mp.mpf(float(seen)) - (see * mean)[0] - law.at[t], spread * see.T / scale
        total -= (miss**2 / scale + mp.log(2 * mp.pi * scale)) / 2
        mean, spread = mean + gain * miss, spread - gain * see * spread
    return total


def level(y):
    """Local level, its start a site of its own, a covariate, and missing observations."""
    be = numpyro.param("be", -2.0)
    sl = numpyro.param("sl", 1.0, constraint=POSITIVE)
    se = numpyro.param("se", 2.0, constraint=POSITIVE)

    def step(before, inputs):
        y, late = inputs
        now = numpyro.sample("level", dist.Normal(before, sl))
        seen = dist.Normal(now + be * late, se).mask(jnp.isfinite(y))
        numpyro.sample("y", seen, obs=jnp.nan_to_num(y))
        return now, None

    first = numpyro.sample("first", dist.Normal(10.0, 5.0))
    scan(step, first, (y, jnp.arange(LENGTH) >= 4))


def level_law(be, sl, se):
    at = [be * int(t >= 4) for t in range(LENGTH)]
    return Law([10], [25 + sl**2], [[1]], [[sl]], [1], se, [0], at)


def autoregression(y):
    """Stationary around a mean, unless it starts elsewhere."""
    phi = numpyro.param("phi", 0.7)
    mu = numpyro.param("mu", 9.0)
    sl = numpyro.param("sl", 1.0, constraint=POSITIVE)
    se = numpyro.param("se", 2.0, constraint=POSITIVE)

    def step(before, inputs):
        t, y = inputs
        mean = jnp.where(t == 0, 10.0, mu + phi * (before - mu))
        now = numpyro.sample("state", dist.Normal(mean, jnp.where(t == 0, 3.0, sl)))
        numpyro.sample("y", dist.Normal(now, se), obs=y)
        return now, None

    scan(step, jnp.zeros(()), (jnp.arange(LENGTH), y))


def autoregression_law(phi, mu, sl, se):
    return Law([10], [9], [[phi]], [[sl]], [1], se, [mu * (1 - phi)], [0] * LENGTH)


def trend(y):
    """Level and slope, either of which may be without noise."""
    sl = numpyro.param("sl", 1.0, constraint=POSITIVE)
    ss = numpyro.param("ss", 0.5, constraint=POSITIVE)
    se = numpyro.param("se", 2.0, constraint=POSITIVE)
    first = numpyro.sample("l0", dist.Normal(10.0, 5.0)), numpyro.sample("s0", dist.Normal(0, 1.0))

    def step(carry, y):
        now, slope = carry
        slope = numpyro.sample("slope", dist.Normal(slope, ss))
        now = numpyro.sample("level", dist.Normal(now + slope, sl))
        numpyro.sample("y", dist.Normal(now, se), obs=y)
        return (now, slope), None

    scan(step, first, y)


def trend_law(sl, ss, se):
    # From (l0, s0) on, of which nothing is seen.
    move = [[1, 1], [0, 1]]
    law = Law([10, 0], [25, 1], move, [[sl, ss], [0, ss]], [1, 0], se, [0, 0], [0] * (LENGTH + 1))
    return law, True


def pair(y):
    """Two correlated states, one site, of which sums are seen."""
    sl = numpyro.param("sl", 1.0, constraint=POSITIVE)
    sr = numpyro.param("sr", 0.5, constraint=POSITIVE)
    se = numpyro.param("se", 2.0, constraint=POSITIVE)
    move = jnp.array([[0.9, 0.2], [0.0, 0.8]])

    def step(before, inputs):
        t, y = inputs
        scale = jnp.where(t == 0, 3.0, jnp.stack([sl, sr]))
        mean = jnp.where(t == 0, jnp.array([10.0, 1.0]), move @ before)
        now = numpyro.sample("states", dist.MultivariateNormal(mean, scale_tril=jnp.diag(scale)))
        numpyro.sample("y", dist.Normal(now.sum(), se), obs=y)
        return now, None

    scan(step, jnp.zeros(2), (jnp.arange(LENGTH), y))


def pair_law(sl, sr, se):
    move = [[mp.mpf(0.9), mp.mpf(0.2)], [0, mp.mpf(0.8)]]
    return Law([10, 1], [9, 9], move, [[sl, 0], [0, sr]], [1, 1], se, [0, 0], [0] * LENGTH)


def seasonal(y):
    """Level and three seasons that sum to noise."""
    sl = numpyro.param("sl", 1.0, constraint=POSITIVE)
    sw = numpyro.param("sw", 0.5, constraint=POSITIVE)
    se = numpyro.param("se", 2.0, constraint=POSITIVE)
    first = numpyro.sample("first", dist.Normal(jnp.array([10.0, 1.0, -1.0]), 3.0).to_event(1))

    def step(carry, y):
        now, season, last = carry
        season, last = numpyro.sample("season", dist.Normal(-season - last, sw)), season
        now = numpyro.sample("level", dist.Normal(now, sl))
        numpyro.sample("y", dist.Normal(now + season, se), obs=y)
        return (now, season, last), None

    scan(step, (first[0], first[1], first[2]), y)


def seasonal_law(sl, sw, se):
    move = [[1, 0, 0], [0, -1, -1], [0, 1, 0]]
    noise = [[sl, 0], [0, sw], [0, 0]]
    law = Law([10, 1, -1], [9] * 3, move, noise, [1, 1, 0], se, [0] * 3, [0] * (LENGTH + 1))
    return law, True


def plates(y):
    """Three series with parameters in common."""
    sl = numpyro.param("sl", 1.0, constraint=POSITIVE)
    se = numpyro.param("se", 2.0, constraint=POSITIVE)
    with numpyro.plate("series", 3):
        first = numpyro.sample("first", dist.Normal(10.0, 5.0))

    def step(before, y):
        with numpyro.plate("series", 3):
            now = numpyro.sample("level", dist.Normal(before, sl))
            seen = dist.Normal(now, se).mask(jnp.isfinite(y))
            numpyro.sample("y", seen, obs=jnp.nan_to_num(y))
        return now, None

    scan(step, first, y)


def loop(y):
    """No scan."""
    sl = numpyro.param("sl", 1.0, constraint=POSITIVE)
    se = numpyro.param("se", 2.0, constraint=POSITIVE)
    now = numpyro.sample("first", dist.Normal(10.0, 5.0))
    for t in range(4):
        now = numpyro.sample(f"level_{t}", dist.Normal(now, sl))
        numpyro.sample(f"y_{t}", dist.Normal(now, se), obs=y[t])


def plain_law(sl, se):
    return Law([10], [25 + sl**2], [[1]], [[sl]], [1], se, [0], [0] * LENGTH)


MODELS = {
    "level": (level, level_law, {"be": -1.5}),
    "autoregression": (autoregression, autoregression_law, {"phi": 0.8, "mu": 9.5}),
    "trend": (trend, trend_law, {"ss": 0.5}),
    "pair": (pair, pair_law, {"sr": 0.5}),
    "seasonal": (seasonal, seasonal_law, {"sw": 0.5}),
    "plates": (plates, plain_law, {}),
    "loop": (loop, plain_law, {}),
}
SMALL = [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-9, 1e-12]
CASES = [
    *({"sl": s} for s in SMALL),
    *({"se": s} for s in (1e-3, 1e-6)),
    *({"sl": 1e-6, "ss": s, "sr": s, "sw": s} for s in (1e-3, 1e-9)),
]


def data(name):
    rng = np.random.default_rng(SEED)
    y = 10 + rng.normal(size=(LENGTH, 3)).cumsum(0) + rng.normal(size=(LENGTH, 3))
    if name in ("level", "plates"):
        y[2, 0] = y[3, 0] = y[-1, 1] = np.nan
    return y if name == "plates" else y[:4, 0] if name == "loop" else y[:, 0]


def log_likelihood(name, y, params):
    with mp.workdps(DIGITS):
        law = MODELS[name][1](**params)
        if isinstance(law, tuple):
            law, y = law[0], np.concatenate([[np.nan], y])
        return sum(filtered(law, series) for series in np.reshape(y, (len(y), -1)).T)


def derivatives(name, y, x, curvature):
    """Score and Hessian in 50 digits, scales by their logarithms; `x` has exact parameters."""
    keys = sorted(x)

    def at(moves):
        moved = {
            k: v + moves.get(k, 0) if k in ("be", "phi", "mu") else v * mp.exp(moves.get(k, 0))
            for k, v in x.items()
        }
        return log_likelihood(name, y, moved)

    with mp.workdps(DIGITS):
        h = mp.mpf(10) ** -15
        score = [(at({k: h}) - at({k: -h})) / (2 * h) for k in keys]
        if not curvature:
            return np.array(score, float), None
        h, here = mp.mpf(10) ** -11, at({})
        hessian = np.zeros((len(keys), len(keys)))
        for i, a in enumerate(keys):
            hessian[i, i] = (at({a: h}) - 2 * here + at({a: -h})) / h**2
            for j, b in enumerate(keys[:i]):
                corners = [s * r * at({a: s * h, b: r * h}) for s in (1, -1) for r in (1, -1)]
                hessian[i, j] = hessian[j, i] = sum(corners) / (4 * h * h)
    return np.array(score, float), hessian


MARKS = {"level": pytest.mark.slow, "loop": pytest.mark.long}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=MARKS.get(name, pytest.mark.long)) for name in MODELS],
)
def fitted(request):
    jax.clear_caches()
    name = request.param
    y = data(name)
    problem, params = build_problem(jax.random.key(0), MODELS[name][0], (y,), {})
    e_step = Exact().resolve(jax.random.key(1), problem, params)
    return name, y, problem, e_step, e_step.init(jax.random.key(2), problem, params)


def exact(problem, x):
    """The parameters as the model sees them."""
    return {k: mp.mpf(float(v)) for k, v in problem.space.constrain(x).items()}


def sites(name, case):
    free = {"sl": 1.0, "se": 2.0, **MODELS[name][2]}
    return {**free, **{k: v for k, v in case.items() if k in free}}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_score(fitted, case):
    name, y, problem, e_step, state = fitted
    params = sites(name, case)
    x = problem.unconstrain({k: jnp.asarray(v) for k, v in params.items()})
    places = exact(problem, x)
    value, score = float(log_likelihood(name, y, places)), derivatives(name, y, places, False)[0]
    # As the direct method, a Newton step and EM take them.
    found, gradient, after = value_and_score(e_step, problem, x, state)
    held = held_value_and_score(e_step, problem, x, after)
    objective = expectation(e_step, problem, x, state)[2].objective
    for number in (found, held[0], objective):
        assert abs(float(number) - value) < 1e-9 * (1 + abs(value))
    scale = 1 + np.max(np.abs(score))
    np.testing.assert_allclose(gradient, score, rtol=1e-9, atol=1e-9 * scale)
    np.testing.assert_allclose(held[1], score, rtol=1e-9, atol=1e-9 * scale)


@pytest.mark.long
@pytest.mark.parametrize("case", [CASES[i] for i in (0, 2, 4, 8)], ids=str)
def test_curvature(fitted, case):
    name, y, problem, e_step, state = fitted
    params = sites(name, case)
    x = problem.unconstrain({k: jnp.asarray(v) for k, v in params.items()})
    hessian = derivatives(name, y, exact(problem, x), True)[1]
    found = marginal_information(e_step, problem, x, state)
    assert np.max(np.abs(found.matrix + hessian)) < 1e-8 * np.max(np.abs(hessian))
    if case["sl"] > 1e-3:  # its own curvature is the square of this, of terms that are about 1
        np.testing.assert_allclose(found.matrix, -hessian, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", [EM, Direct])
def test_maximum_at_zero(method):
    """What a run reports at a variance of exactly zero is the log-likelihood there."""
    y = np.random.default_rng(SEED).normal(10.0, 2.0, LENGTH)
    result = method(level).run(jax.random.key(0), y, progress_bar=False)
    assert result.status.name == "BOUNDARY" and float(result.params["sl"]) == 0.0
    places = {k: mp.mpf(float(v)) for k, v in result.params.items()}
    expected = float(log_likelihood("level", y, places))
    assert abs(result.log_likelihood.value - expected) < 1e-9 * abs(expected)
    places["sl"] = mp.mpf(10) ** -30
    score, hessian = derivatives("level", y, places, True)
    assert np.max(np.abs(score)) < 1e-4
    wanted = np.sqrt(np.diag(np.linalg.inv(-hessian[:2, :2]))) * [1, float(places["se"])]
    with pytest.warns(UserWarning, match="`sl` is at its boundary 0"):
        errors = result.standard_errors()
    np.testing.assert_allclose([errors["be"], errors["se"]], wanted, rtol=1e-6)


@pytest.mark.long
def test_single_precision():
    """In float32 the same, as far as its digits go."""
    y = data("level").astype(np.float32)
    with jax.enable_x64(False):
        problem, params = build_problem(jax.random.key(0), level, (y,), {})
        e_step = Exact().resolve(jax.random.key(1), problem, params)
        state = e_step.init(jax.random.key(2), problem, params)
        for sl in (1.0, 1e-2, 1e-3, 1e-6):
            params = sites("level", {"sl": sl})
            x = problem.unconstrain({k: jnp.float32(v) for k, v in params.items()})
            assert x.dtype == np.float32
            places = exact(problem, x)
            value = float(log_likelihood("level", y.astype(float), places))
            score = derivatives("level", y.astype(float), places, False)[0]
            found, gradient, _ = value_and_score(e_step, problem, x, state)
            assert abs(float(found) - value) < 1e-5 * abs(value)
            assert np.max(np.abs(gradient - score)) < 1e-4 * (1 + np.max(np.abs(score)))
