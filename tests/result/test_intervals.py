"""Intervals that stay within the bounds of parameters; doubt about a likelihood, in words."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy.special import expit, logit

from ppl_em import EM
from ppl_em.params import flat_bounds
from ppl_em.problem import build_problem
from ppl_em.result.uncertainty import interval

HALF = 0.9


@pytest.mark.parametrize(
    ("bounds", "value", "to", "back"),
    [
        ((-np.inf, np.inf), 0.4, lambda v: v, lambda t: t),
        ((0.0, np.inf), 0.4, np.log, np.exp),
        ((2.0, np.inf), 2.3, lambda v: np.log(v - 2), lambda t: 2 + np.exp(t)),
        ((-np.inf, 1.0), 0.7, lambda v: -np.log(1 - v), lambda t: 1 - np.exp(-t)),
        ((-1.0, 3.0), 0.4, lambda v: logit((v + 1) / 4), lambda t: 4 * expit(t) - 1),
    ],
)
def test_interval_is_symmetric_on_the_scale_without_bounds(bounds, value, to, back):
    """The delta method there: half the width is multiplied by the derivative of the scale."""
    slope = (to(value + 1e-6) - to(value - 1e-6)) / 2e-6
    expected = [back(to(value) - HALF * slope), back(to(value) + HALF * slope)]
    found = interval(np.array([value]), np.array([HALF]), np.array([bounds]))
    np.testing.assert_allclose(np.ravel(found), expected, rtol=1e-8)


def test_interval_at_the_edges():
    """A fixed parameter has no width, an unknown error no interval, a huge one ends at bounds."""
    estimate, half = np.array([0.0, 0.5, 0.5]), np.array([0.0, np.nan, 1e4])
    lower, upper = interval(estimate, half, np.array([(0.0, np.inf), (0.0, 1.0), (0.0, 1.0)]))
    np.testing.assert_array_equal(lower, [0.0, np.nan, 0.0])
    np.testing.assert_array_equal(upper, [0.0, np.nan, 1.0])
    np.testing.assert_array_equal(interval(estimate, half, None)[0], estimate - half)


def test_bounds_of_parameters():
    def model(y):
        weights = numpyro.param("weights", jnp.array([0.2, 0.8]), constraint=constraints.simplex)
        low = numpyro.param("low", jnp.array([3.0]), constraint=constraints.greater_than(2.0))
        chance = numpyro.param("chance", 0.3, constraint=constraints.interval(-1.0, 1.0))
        free = numpyro.param("free", 0.0)
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Normal(free + chance + weights[0], 1.0))
            numpyro.sample("y", dist.Normal(z, low), obs=y)

    problem, params = build_problem(jax.random.key(0), model, (np.zeros(3),), {})
    found = flat_bounds(problem.space, params)
    inf = np.inf
    np.testing.assert_array_equal(found, [(-1, 1), (-inf, inf), (2, inf), (0, 1), (0, 1)])


def test_a_fit_keeps_its_intervals_on_disk(tmp_path):
    from ppl_em import load

    def model(y):
        sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Normal(0.0, sd))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    y = np.array([1.3, -1.6, 0.9])
    result = EM(model, e_step="exact").run(jax.random.key(0), y, progress_bar=False)
    table = result.table()
    assert 1.96 * table["se"][0] > table["estimate"][0]  # Wald's would reach below 0
    assert 0 < table["lower"][0] < table["estimate"][0] < table["upper"][0]
    result.save(tmp_path / "fit.nc")
    np.testing.assert_array_equal(load(tmp_path / "fit.nc").table()["lower"], table["lower"])


def test_float32_is_warned_of_where_it_is_too_coarse(caplog):
    from ppl_em.e_step import NUTS, Exact
    from ppl_em.fit.make_result import _warn_of_float32

    with caplog.at_level("WARNING", "ppl_em"):
        _warn_of_float32(Exact(), -2e5, np.float64)
        _warn_of_float32(NUTS(), -100.0, np.float32)
        assert not caplog.records
        _warn_of_float32(Exact(), -2e5, np.float32)
    assert "differ by 0.02 or more" in caplog.text and "enable_x64" in caplog.text


def test_doubt_about_sick_chains():
    from ppl_em.posterior import LogLikelihood
    from ppl_em.result import EMResult, Status

    def result(status: Status, kind: str) -> EMResult:
        value = LogLikelihood(-1.0, kind)
        return EMResult({}, value, status, 1, {}, None, "nuts", {}, None)

    assert "not to be believed" in result(Status.UNHEALTHY, "estimate").doubt
    assert not result(Status.CONVERGED, "estimate").doubt
