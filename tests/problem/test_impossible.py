"""Data of probability zero are refused with site, row and value, or reported as minus infinity."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

from ppl_em import ModelError
from ppl_em.discrete import LOG_ZERO, true_zero
from ppl_em.problem import build_problem


def mixture(law):
    def model(y):
        w = numpyro.param("w", 0.5, constraint=constraints.unit_interval)
        a = numpyro.param("a", jnp.array([0.4, 0.6]), constraint=constraints.unit_interval)
        with numpyro.plate("n", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(w))
            numpyro.sample("y", law(a[z], z), obs=y)

    return model


CASES = {
    "coded 1 and 2": (lambda a, z: dist.Bernoulli(a), [1, 0, 1, 2], r"row 3, which is 2"),
    "negative count": (lambda a, z: dist.Poisson(a), [3, -1, 2], r"row 1, which is -1"),
    "fraction": (lambda a, z: dist.Poisson(a), [3.0, 1.0, 2.5], r"row 2, which is 2.5"),
    "zero": (lambda a, z: dist.Gamma(a, 1.0), [0.4, 0.0, 2.5], r"row 1, which is 0"),
    "no component": (lambda a, z: dist.Uniform(2.0 * z, 2.0 * z + a), [0.1, 1.5], "row 1"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_row_is_named(name):
    law, y, message = CASES[name]
    with pytest.raises(ModelError, match=rf"Site 'y'.*-inf.*{message}"):
        build_problem(jax.random.key(0), mixture(law), (np.array(y),), {})


def test_a_component_may_be_impossible():
    def boxes(y):
        w = numpyro.param("w", 0.25, constraint=constraints.unit_interval)
        with numpyro.plate("n", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(w))
            numpyro.sample("y", dist.Uniform(2.0 * z, 2.0 * z + 1.0), obs=y)

    problem, params = build_problem(jax.random.key(0), boxes, (np.array([0.1, 2.5]),), {})
    right = np.log(0.75) + np.log(0.25)
    np.testing.assert_allclose(problem.log_joint(params, {}), right, rtol=1e-6)


def test_impossible_parameters_give_minus_infinity():
    def boxes(y):
        top = numpyro.param("top", 3.0)
        with numpyro.plate("n", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Uniform(-1.0 * z, top), obs=y)

    problem, params = build_problem(jax.random.key(0), boxes, (np.array([0.5, 2.5]),), {})
    assert np.isfinite(problem.log_joint(params, {}))
    assert np.isneginf(problem.log_joint({"top": jnp.asarray(2.0)}, {}))


def test_true_zero():
    found = true_zero(jnp.array([-5.0, LOG_ZERO - 3.0, 2 * LOG_ZERO, jnp.nan]))
    np.testing.assert_array_equal(found, [-5.0, -np.inf, -np.inf, np.nan])
