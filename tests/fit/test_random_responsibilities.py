"""Starts from responsibilities drawn at random."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

from ppl_em import EM
from ppl_em.e_step import Exact
from ppl_em.problem import build_problem

RNG = np.random.default_rng(3)
Y = np.r_[RNG.normal(54.0, 6.0, 40), RNG.normal(80.0, 6.0, 70)]


def mixture(y, start=(0.0, 1.0)):
    weights = numpyro.param("weights", jnp.ones(2) / 2, constraint=constraints.simplex)
    mean = numpyro.param("mean", jnp.array(start))
    sd = numpyro.param("sd", jnp.ones(2), constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("y", dist.Normal(mean[z], sd[z]), obs=y)


def chain(y):
    moves = numpyro.param("moves", jnp.ones((2, 2)) / 2, constraint=constraints.simplex)
    rate = numpyro.param("rate", jnp.array([1.0, 2.0]), constraint=constraints.positive)

    def step(z, y):
        allowed = jnp.stack([moves[0], jnp.array([0.0, 1.0])])  # no way back
        z = numpyro.sample("z", dist.Categorical(allowed[z]))
        return z, numpyro.sample("y", dist.Poisson(rate[z]), obs=y)

    scan(step, 0, y)


def drawn(model, y, seed=0, per_state=0, **options):
    key = jax.random.key(seed)
    problem, params = build_problem(key, model, (y,), {})
    e_step = Exact(**options).resolve(key, problem, params)
    state = e_step.init(key, problem, params)
    return e_step.at_random(key, problem, params, state, per_state)


def test_rows_are_shared_out():
    marginals = drawn(mixture, Y).marginals
    table = np.asarray(marginals["y"])
    table = table if table.shape[0] == len(Y) else table.T
    np.testing.assert_allclose(table.sum(axis=1), 1.0, rtol=1e-12)
    assert np.mean(np.max(table, axis=1) > 0.9) > 0.2  # one state mostly has most of a row
    other = np.asarray(drawn(mixture, Y, 1).marginals["y"])
    assert np.max(np.abs(other.reshape(table.shape) - table)) > 0.5


def test_few_rows_count():
    table = np.asarray(drawn(mixture, Y, per_state=2).marginals["y"])
    table = table if table.shape[0] == len(Y) else table.T
    assert np.sum(table.sum(axis=1) > 0.5) == 4  # two for each state
    assert table.sum() == pytest.approx(4 + 1e-3 * (len(Y) - 4))


def test_one_row_for_each_state():
    table = np.asarray(drawn(mixture, Y, per_state=1).marginals["y"])
    table = table if table.shape[0] == len(Y) else table.T
    rows = table[table.sum(axis=1) > 0.5]
    np.testing.assert_allclose(np.sort(rows, axis=0)[::-1], np.eye(2)[:, [0, 0]], atol=1e-12)
    assert np.all(rows.argmax(axis=1) != rows.argmax(axis=1)[::-1])


def test_condensed_rows_have_the_same_law():
    y = np.repeat(Y, 10)
    marginals = drawn(mixture, y, min_rows=100).marginals
    assert marginals["y"].size < len(y)  # points, not rows
    assert np.all(np.isfinite(marginals["y"]))


def test_what_is_impossible_stays_so():
    y = np.random.default_rng(0).poisson(3.0, 30).astype(float)
    for name, table in drawn(chain, y).marginals.items():
        if name.startswith("z") and np.ndim(table) == 3:
            steps = np.moveaxis(np.asarray(table), np.argmax(np.array(table.shape) > 2), 0)
            np.testing.assert_array_equal(np.minimum(steps[:, 0, 1], steps[:, 1, 0]), 0.0)


def test_restarts_reach_the_maximum():
    result = EM(mixture, num_restarts=10).run(jax.random.key(0), Y, progress_bar=False)
    apart = {"mean": jnp.array([54.0, 80.0]), "sd": jnp.array([6.0, 6.0])}
    best = EM(mixture).run(jax.random.key(0), Y, init_params=apart, progress_bar=False)
    assert abs(result.log_likelihood.value - best.log_likelihood.value) < 1e-8
    assert result.restarts.optima[0].share >= 0.9
