"""Models that ask for random numbers: one key serves the whole fit."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import trace

from ppl_em import EM, ModelError
from ppl_em.problem import build_problem

Y = np.array([1.2, 0.7, 2.9, 1.9])


def _jittered(y):
    mu = numpyro.param("mu", 0.0)
    first = jax.random.normal(numpyro.prng_key(), (4,))
    second = jax.random.normal(numpyro.prng_key(), (4,))
    shift = numpyro.deterministic("shift", first + 0.1 * second)
    with numpyro.plate("n", 4):
        b = numpyro.sample("b", dist.Normal(mu + shift, 1.0))
        numpyro.sample("y", dist.Normal(b, 1.0), obs=y)


def test_one_key_for_the_whole_fit(caplog):
    with caplog.at_level(logging.INFO, logger="ppl_em"):
        r = EM(_jittered, "exact").run(jax.random.key(0), Y, progress_bar=False)
    assert sum("asks for random numbers" in record.message for record in caplog.records) == 1
    problem = r.posterior.problem
    program = numpyro.handlers.seed(problem.at(r.params), 7)  # another seed changes nothing
    shift = np.asarray(trace(program).get_trace(Y)["shift"]["value"])
    assert len(np.unique(shift)) == 4
    assert abs(float(r.params["mu"]) - np.mean(Y - shift)) < 1e-7
    again = EM(_jittered, "exact").run(jax.random.key(0), Y, progress_bar=False)
    other = EM(_jittered, "exact").run(jax.random.key(1), Y, progress_bar=False)
    assert float(again.params["mu"]) == float(r.params["mu"])
    assert abs(float(other.params["mu"]) - float(r.params["mu"])) > 1e-3


def test_a_key_in_a_scan_is_refused():
    def model(y):
        mu = numpyro.param("mu", 0.0)

        def step(b, now):
            noise = jax.random.normal(numpyro.prng_key())
            b = numpyro.sample("b", dist.Normal(b + mu + noise, 1.0))
            numpyro.sample("y", dist.Normal(b, 1.0), obs=now)
            return b, None

        scan(step, jnp.zeros(()), y)

    with pytest.raises(ModelError, match="asks for a key in a `scan` or a `cond`"):
        build_problem(jax.random.key(0), model, (Y,), {})
