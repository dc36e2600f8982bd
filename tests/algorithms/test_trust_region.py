"""Starts at zeros and ones: the default gets to the maximum, wherever the data are."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

from ppl_em import EM, Direct
from ppl_em.result import Status

GROUPS, ROWS = 20, 8
RNG = np.random.default_rng(5)
Y = RNG.normal(size=(GROUPS, 1)) + RNG.normal(size=(GROUPS, ROWS))


def intercepts(y):
    b = numpyro.param("b", 0.0)
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    s = numpyro.param("s", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", len(y)):
        u = numpyro.sample("u", dist.Normal(0.0, sd))
        numpyro.sample("y", dist.Normal(b + u[:, None], s).to_event(1), obs=y)


def maximum(y: np.ndarray) -> float:
    """Of the log-likelihood of a balanced one-way layout (Searle et al. 1992, section 3.7)."""
    groups, rows = y.shape
    within = ((y - y.mean(1, keepdims=True)) ** 2).sum() / (groups * (rows - 1))
    between = rows * y.mean(1).var()
    terms = rows * np.log(2 * np.pi) + (rows - 1) * np.log(within) + np.log(between) + rows
    return -0.5 * groups * terms


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("shift", [0.0, 100.0, 1e5])
def test_an_outcome_far_from_its_intercept(shift, scale):
    y = scale * (Y + shift)
    result = EM(intercepts, "exact").run(jax.random.key(0), y, progress_bar=False)
    assert result.status is Status.CONVERGED and result.num_steps <= 60
    assert abs(result.log_likelihood.value - maximum(y)) < 1e-6
    assert abs(float(result.params["b"]) / y.mean() - 1) < 1e-6


def test_plain_em_would_creep():
    em = EM(intercepts, "exact", finish=None)
    result = em.run(jax.random.key(0), Y + 100.0, progress_bar=False)
    assert result.status is Status.MAX_STEPS
    assert result.log_likelihood.value < maximum(Y) - 1.0


def mixture(y):
    weights = numpyro.param("weights", jnp.ones(2) / 2, constraint=constraints.simplex)
    mean = numpyro.param("mean", jnp.zeros(2))
    sd = numpyro.param("sd", jnp.ones(2), constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("y", dist.Normal(mean[z], sd[z]), obs=y)


TWO = np.r_[RNG.normal(-3.0, 1.0, 40), RNG.normal(3.0, 1.0, 40)]


def test_equal_components():
    apart = {"mean": jnp.array([-3.0, 3.0])}
    best = EM(mixture).run(jax.random.key(0), TWO, init_params=apart, progress_bar=False)
    result = EM(mixture).run(jax.random.key(0), TWO, progress_bar=False)
    assert result.converged and result.num_steps <= 60
    assert abs(result.log_likelihood.value - best.log_likelihood.value) < 1e-8


def test_what_was_decided_is_in_the_history():
    result = EM(intercepts, "exact").run(jax.random.key(0), Y + 100.0, progress_bar=False)
    assert any("on by Newton steps" in text for text in result.history["decision"])
    assert set(result.history["phase"]) == {"em", "newton"}
    assert np.all(np.diff(result.history["objective"]) > -1e-9)


def test_direct_has_no_em_steps():
    result = Direct(intercepts, "exact").run(jax.random.key(0), Y + 100.0, progress_bar=False)
    assert result.converged and "em" not in set(result.history["phase"])
