"""Outcomes that a predictor separates: the slope goes to infinity, the rest has a maximum."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED
from scipy import stats

from ppl_em import EM, Direct
from ppl_em.result import Status

TREATED = np.repeat([0.0, 1.0], 24)
SOME = np.tile([1.0, 0, 0, 0], 6)


def logits(y, sign=1.0):
    a = numpyro.param("a", 0.0)
    b = numpyro.param("b", jnp.zeros(1))
    with numpyro.plate("rows", 48):
        numpyro.sample("y", dist.Bernoulli(logits=a + sign * b[0] * TREATED), obs=y)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("algorithm", [EM, Direct])
def test_a_group_of_successes_only(algorithm, sign):
    y = np.r_[SOME, np.ones(24)]
    result = algorithm(logits).run(jax.random.key(SEED), y, sign, progress_bar=False)
    assert result.status is Status.BOUNDARY and result.num_steps <= 60
    assert set(result.boundary) == {"b[0]"} and result.boundary["b[0]"].bound == sign * np.inf
    best = stats.bernoulli(0.25).logpmf(SOME).sum()
    assert result.log_likelihood.value == pytest.approx(best, abs=1e-8)
    assert result.params["a"] == pytest.approx(np.log(1 / 3), abs=1e-7)
    with pytest.warns(UserWarning, match="separates outcomes"):
        errors = result.standard_errors()
    assert errors["a"] == pytest.approx((24 * 0.25 * 0.75) ** -0.5, rel=1e-6)
    assert np.isnan(errors["b"][0])


def test_one_failure_is_enough_for_an_estimate():
    y = np.r_[SOME, np.ones(23), 0.0]
    result = Direct(logits).run(jax.random.key(SEED), y, progress_bar=False)
    assert result.status is Status.CONVERGED and not result.boundary
    assert result.params["b"][0] == pytest.approx(np.log(23) - np.log(1 / 3), abs=1e-6)
