"""Maxima at a bound of the parameters, against closed forms and SciPy; and maxima close to one."""

import json
from dataclasses import replace
from functools import partial

import boundary_models as models
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from boundary_models import GROUPS
from conftest import SEED, load_reference
from numpyro.distributions import constraints
from scipy import stats

import ppl_em
from ppl_em import EM, EMResult
from ppl_em.algorithms import Stopping
from ppl_em.cli import catalog
from ppl_em.cli import commands as cli
from ppl_em.e_step import Quadrature
from ppl_em.e_step.quadrature_refinement import Rule
from ppl_em.params import AtBounds, ends, within_reach
from ppl_em.problem import build_problem
from ppl_em.result import Status

SCALE = 3e-8
"""Error of log-likelihoods at a bound: they are computed a little way inside."""


def fit(model, data: dict, e_step: str = "exact", **options) -> EMResult:
    run = options.pop("run", {})
    em = EM(model, e_step=e_step, **options)
    return em.run(jax.random.key(SEED), progress_bar=False, **data, **run)


def check_boundary(result: EMResult, labels: set[str]) -> None:
    """What holds wherever a fit ends at bounds: they are exact, named, without errors."""
    assert result.status is Status.BOUNDARY and result.converged
    assert result.num_steps <= 100
    assert set(result.boundary) == labels
    assert np.min(result.history["change"]) > -1e-8
    assert result.history["phase"][-1] == "boundary"
    with pytest.warns(UserWarning, match="is at its boundary"):
        table = result.summary()
    for label in result.labels:
        at = label in labels
        assert np.isnan(table.loc[label, "se"]) == at
        assert not at or table.loc[label, "estimate"] == result.boundary[label].bound
    assert all(where.score < 0 for where in result.boundary.values())


@pytest.fixture(scope="module")
def schools() -> EMResult:
    return fit(catalog.find("eight_schools").model, catalog.find("eight_schools").load(), "auto")


def test_eight_schools_end_at_zero(schools):
    reference = load_reference("eight_schools")["reference"]
    check_boundary(schools, {"tau"})
    assert schools.log_likelihood.kind == "exact"
    assert schools.log_likelihood.value == pytest.approx(reference["loglik"], abs=SCALE)
    assert schools.params["tau"] == 0.0 == schools.history["tau"][-1]
    data = catalog.find("eight_schools").load()
    precision = data["sigma"] ** -2
    mu = np.sum(precision * data["y"]) / np.sum(precision)
    se = np.sum(precision) ** -0.5
    assert abs(schools.params["mu"] - mu) < 1e-5 * se
    assert float(schools.history["mu"][-1]) == float(schools.params["mu"])
    score = 0.5 * np.sum((data["y"] - mu) ** 2 * precision**2 - precision)
    where = schools.boundary["tau"]
    assert (where.bound, where.power) == (0.0, 2)
    assert where.score == pytest.approx(score, rel=1e-4)
    with pytest.warns(UserWarning, match="half the p-value"):
        assert schools.standard_errors()["mu"] == pytest.approx(se, rel=1e-5)
        assert "`tau` is at its boundary 0" in str(schools)
    # The latents are there as well: all of them at mu.
    np.testing.assert_allclose(schools.posterior.mean()["theta"], mu, atol=1e-4)
    draws = schools.posterior.sample(jax.random.key(1), 50)["theta"]
    assert np.all(np.isfinite(draws)) and np.ptp(draws) < 0.1


def test_a_boundary_is_kept_on_disk(schools, tmp_path):
    path = tmp_path / "fit.nc"
    schools.save(path)
    again = ppl_em.load(path)
    assert again.boundary == schools.boundary and again.converged
    assert again.params["tau"] == 0.0 and again.status is Status.BOUNDARY
    assert again.uncertainty.note == schools.uncertainty.note


def test_the_command_line_says_so(capsys):
    assert cli.main(["fit", "eight_schools", "--json"]) == cli.OK
    found = json.loads(capsys.readouterr().out)
    assert found["converged"] and found["params"]["tau"] == 0
    assert found["boundary"]["tau"]["power"] == 2
    assert found["standard_errors"]["tau"] is None
    assert cli.main(["fit", "eight_schools", "--reference"]) == cli.OK
    assert "`tau` is at its boundary 0 " in capsys.readouterr().out


def test_plain_em_can_be_asked_for():
    entry = catalog.find("eight_schools")
    result = fit(entry.model, entry.load(), stopping=Stopping(gap=0.0), max_steps=60)
    assert result.status is Status.MAX_STEPS and not result.boundary
    assert result.params["tau"] > 1.5  # k**-1/2 after k steps


INTERVAL = partial(models.intercepts, constraint=constraints.interval(0.0, 100.0))
SOFTPLUS = partial(models.intercepts, constraint=constraints.softplus_positive)


@pytest.mark.parametrize(
    ("model", "power"),
    [
        (models.centred_on_alpha, 2),
        (partial(models.intercepts, parameter="variance"), 1),
        pytest.param(models.intercepts, 2, marks=pytest.mark.long),
        pytest.param(partial(models.intercepts, parameter="noncentred"), 2, marks=pytest.mark.long),
        pytest.param(INTERVAL, 2, marks=pytest.mark.long),
        pytest.param(SOFTPLUS, 2, marks=pytest.mark.long),
    ],
)
def test_a_random_intercept_without_variance(model, power):
    data = models.rows(0.2)
    design = np.eye(7)[GROUPS]
    value, (variance, sigma2) = models.maximum(data, [design])
    assert variance == 0.0
    result = fit(model, data)
    check_boundary(result, {"tau"})
    assert result.log_likelihood.value == pytest.approx(value, abs=SCALE)
    expected = models.marginal(data, [], np.sqrt(sigma2))[1]
    found = np.array([result.params[name] for name in ("alpha", "beta")])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert result.params["sigma"] == pytest.approx(np.sqrt(sigma2), rel=1e-5)
    # The score in the variance, by its formula for a multivariate normal.
    residual = data["y"] - expected[0] - expected[1] * data["x"]
    score = 0.5 * (np.sum((design.T @ residual) ** 2) / sigma2**2 - len(residual) / sigma2)
    where = result.boundary["tau"]
    assert where.power == power and where.score == pytest.approx(score, rel=1e-3)


@pytest.mark.parametrize("spread", [0.39, pytest.param(0.42, marks=pytest.mark.long)])
@pytest.mark.parametrize("start", [0.8, pytest.param(5.0, marks=pytest.mark.long)])
def test_a_small_variance_is_not_taken_for_zero(spread, start):
    data = models.rows(spread)
    value, (variance, _) = models.maximum(data, [np.eye(7)[GROUPS]])
    assert 0 < variance < 0.03
    result = fit(models.centred_on_alpha, data, run={"init_params": {"tau": start}})
    assert result.status is Status.CONVERGED and not result.boundary
    assert result.log_likelihood.value == pytest.approx(value, abs=1e-9)
    assert result.params["tau"] == pytest.approx(np.sqrt(variance), rel=1e-3)


@pytest.mark.parametrize(
    ("sds", "labels"),
    [
        pytest.param((1.0, 0.0), {"sd[1]"}, marks=pytest.mark.long),
        pytest.param((0.0, 1.0), {"sd[0]"}, marks=pytest.mark.long),
        pytest.param((0.0, 0.0), {"sd[0]", "sd[1]"}, marks=pytest.mark.long),
        pytest.param((1.0, 1.0), set(), marks=pytest.mark.long),
    ],
)
def test_one_of_two_crossed_variances(sds, labels):
    data = models.crossed_rows(*sds)
    value, variances = models.maximum(data, [np.eye(6)[data["a"]], np.eye(5)[data["b"]]])
    result = fit(partial(models.crossed, parameter="vector"), data)
    if labels:
        check_boundary(result, labels)
    else:
        assert result.status is Status.CONVERGED
    assert result.log_likelihood.value == pytest.approx(value, abs=SCALE)
    np.testing.assert_allclose(result.params["sd"], np.sqrt(variances[:2]), rtol=1e-4)


@pytest.mark.long
def test_a_bound_of_the_users_own_is_one_as_well():
    data = models.rows(0.2)
    design = np.eye(7)[GROUPS]
    narrow = {"tau": constraints.interval(0.05, 10.0)}
    result = fit(models.intercepts, data, constraints=narrow)
    check_boundary(result, {"tau"})
    sigma = float(result.params["sigma"])
    low, at, high = (
        models.marginal(data, [(design, t**2)], sigma)[0] for t in (0.049, 0.05, 0.051)
    )
    assert result.log_likelihood.value == pytest.approx(at, abs=SCALE)
    where = result.boundary["tau"]
    assert (where.bound, where.power) == (0.05, 1)
    assert where.score == pytest.approx((high - low) / 0.002, rel=1e-3)
    assert low > at > high


@pytest.mark.parametrize("flag", ["laplace", pytest.param("quadrature", marks=pytest.mark.long)])
@pytest.mark.parametrize("family", ["poisson", pytest.param("binomial", marks=pytest.mark.long)])
def test_counts_that_vary_less_than_their_law(flag, family):
    rows = {"poisson": [1.0, 2, 2, 3, 1, 2], "binomial": [5.0, 4, 6, 5, 4, 5]}[family]
    y = np.tile(rows, (10, 1))
    result = fit(partial(models.counts, parameter=family), {"y": y}, flag)
    check_boundary(result, {"tau"})
    law = stats.poisson(y.mean()) if family == "poisson" else stats.binom(10, y.mean() / 10)
    assert result.log_likelihood.value == pytest.approx(law.logpmf(y).sum(), abs=2e-7)
    eta = np.log(y.mean()) if family == "poisson" else np.log(y.mean() / (10 - y.mean()))
    assert result.params["alpha"] == pytest.approx(eta, abs=1e-5)
    # The score in the variance: half of squared scores and curvatures, summed by group.
    away, spread = np.sum(y - y.mean(), axis=1), law.var() * y.shape[1]
    assert result.boundary["tau"].score == pytest.approx(0.5 * np.sum(away**2 - spread), rel=2e-3)


def test_a_probability_of_zero():
    y = np.array([1.0, 2, 2, 3, 1, 2, 0, 4, 3, 2, 1, 2])
    result = fit(models.inflated, {"y": y})
    check_boundary(result, {"zero"})
    law = stats.poisson(y.mean())
    assert result.log_likelihood.value == pytest.approx(law.logpmf(y).sum(), abs=SCALE)
    ratio = np.where(y == 0, 1 / law.pmf(0), 0.0)
    assert result.boundary["zero"].power == 1
    assert result.boundary["zero"].score == pytest.approx(np.sum(ratio - 1), rel=1e-4)
    np.testing.assert_allclose(result.posterior.mean()["z"], 0, atol=1e-6)


@pytest.mark.long
def test_a_correlation_of_one():
    rng = np.random.default_rng(3)
    group, x = np.repeat(np.arange(6), 4), np.tile(np.arange(4) - 1.5, 6)
    u = rng.normal(size=6)[group]
    y = 1 + 0.5 * x + u * (1 + 0.5 * x) + 0.5 * rng.normal(size=24)
    result = fit(models.lines, {"x": x, "group": group, "y": y})
    check_boundary(result, {"corr"})
    assert result.params["corr"] == 1.0
    found = result.params
    design = np.eye(6)[group] * (found["s0"] + found["s1"] * x)[:, None]
    value, _ = models.marginal({"x": x, "y": y}, [(design, 1.0)], float(found["sigma"]))
    # Rounding grows with the inverse of the distance from a singular covariance.
    assert result.log_likelihood.value == pytest.approx(value, abs=1e-6)


@pytest.mark.long
def test_more_nodes_at_a_bound(monkeypatch):
    """A quadrature that turns out too coarse at the end goes to the bound again."""
    refined, calls = Quadrature.refined, []

    def coarse(self, problem, params, state):
        calls.append(float(params["tau"]))
        if len(calls) == 2:
            return replace(self, rule=Rule(91, sinh=True))
        return refined(self, problem, params, state)

    monkeypatch.setattr(Quadrature, "refined", coarse)
    y = np.tile([1.0, 2, 2, 3, 1, 2], (10, 1))
    result = fit(models.counts, {"y": y}, "quadrature")
    assert len(calls) > 2 and calls[1] < 0.01
    check_boundary(result, {"tau"})
    assert result.log_likelihood.value == pytest.approx(
        stats.poisson(y.mean()).logpmf(y).sum(), abs=2e-7
    )


def test_ends_of_supports():
    def model(y):
        loc = numpyro.param("a", 1.0, constraint=constraints.positive)
        loc += numpyro.param("b", 1.0, constraint=constraints.less_than(3.0))
        upper = jnp.array([100.0, 2.0])
        loc += numpyro.param("c", jnp.ones(2), constraint=constraints.interval(0, upper)).sum()
        loc += numpyro.param("d", 0.0)
        loc += (numpyro.param("e", jnp.ones(3) / 3, constraint=constraints.simplex) ** 2).sum()
        loc += numpyro.param("f", 1.0, constraint=constraints.circular)
        numpyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    problem, params = build_problem(
        jax.random.key(0),
        model,
        (1.0,),
        {},
        map_sites=(),
        fixed=None,
        constraints=None,
        init_params=None,
    )
    space, nan = problem.space, np.nan
    found = ends(space)
    np.testing.assert_array_equal(
        found,
        [[0, np.inf], [3, -np.inf], [0, 100], [0, 2], [nan, nan], [-1, 1], [-1, 1], [nan, nan]],
    )
    errors = np.array([1.1, 1.9, 0.6, 1.6, 0.6, 9, 9, 9, 9])  # a, b, c, c, d, e, e, e, f
    reach = within_reach(space, {**params, "c": np.array([0.5, 0.5])}, errors)
    assert reach == {"a": 0.0, "c[0]": 0.0, "c[1]": 2.0}
    bounds = np.array([nan, 3, nan, 2, nan, nan, nan, nan])
    moved = AtBounds(space, bounds, {}).exactly(params)
    assert moved["b"] == 3 and moved["a"] == 1
    np.testing.assert_array_equal(moved["c"], [1, 2])
    np.testing.assert_array_equal(AtBounds(space, bounds, {}).towards, [0, -1, 0, 1, 0, 0, 0, 0])
