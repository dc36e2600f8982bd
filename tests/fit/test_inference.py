"""Model choice and uncertainty after a fit, against other software and by hand."""

import grouped_models as models
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import load_model, load_reference
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from scipy.optimize import minimize
from scipy.stats import chi2, f, kstest

from ppl_em import EM, ModelError, load
from ppl_em.fit.after.bootstrap import _climbed
from ppl_em.fit.after.resample import Resampler

PEERS = load_reference("profiles")


def fitted(model, data, key=0, **options):
    return EM(model, **options).run(jax.random.key(key), **data, progress_bar=False)


@pytest.fixture(scope="module")
def data():
    return models.rows()


@pytest.fixture(scope="module")
def fit(data):
    return fitted(models.gaussian, data)


# Counts


@pytest.fixture(scope="module")
def sleepstudy():
    module = load_model("sleepstudy")
    return fitted(module.model, module.load())


def test_sizes_and_criteria_of_sleepstudy(sleepstudy, tmp_path):
    assert (sleepstudy.num_params, sleepstudy.num_obs, sleepstudy.num_groups) == (6, 180, 18)
    assert abs(sleepstudy.aic - PEERS["sleepstudy"]["aic"]) < 1e-6
    assert abs(sleepstudy.bic - PEERS["sleepstudy"]["bic"]) < 1e-6
    by_group = 6 * np.log(18) - 2 * sleepstudy.log_likelihood.value
    assert abs(sleepstudy.bic_for("num_groups") - by_group) < 1e-9
    with pytest.raises(ModelError, match="number"):
        sleepstudy.bic_for(-1.0)


def test_what_counts_as_an_observation(rng_key):
    def model(y, mask, counts, weights):
        loc = numpyro.param("loc", 0.0)
        share = numpyro.param("share", np.full(3, 1 / 3), constraint=constraints.simplex)
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Normal(loc, 1.0))
            with numpyro.handlers.mask(mask=mask):
                numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
        with numpyro.plate("tables", 2), numpyro.handlers.scale(scale=weights):
            numpyro.sample("counts", dist.Multinomial(10, share), obs=counts)

    y = np.array([0.3, np.nan, 1.2, np.nan, -0.4])
    counts = np.array([[3, 3, 4], [1, 5, 4]])
    mask = np.isfinite(y)
    args = {"mask": mask, "counts": counts, "weights": np.array([2.0, 1.0])}
    fit = EM(model).run(rng_key, y, progress_bar=False, **args)
    assert fit.num_params == 3  # a simplex of three has two
    assert fit.num_obs == 3 + 2 * (2 + 1)  # of three counts that add up, twice and once
    assert fit.num_groups == 3 + 2


@pytest.mark.slow
def test_subsampled_rows_and_rank(rng_key):
    def model(x, y):
        beta = numpyro.param("beta", np.zeros(3))
        with numpyro.plate("rows", 40, subsample_size=10) as rows:
            mean = x[rows] @ beta
            z = numpyro.sample("z", dist.Normal(mean, 1.0))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])

    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(40), rng.normal(size=40)])
    x = np.column_stack([x, x @ [1.0, 2.0]])  # of rank 2
    fit = EM(model).run(rng_key, x, x[:, 1] + rng.normal(size=40), progress_bar=False)
    assert (fit.num_params, fit.num_obs, fit.num_groups) == (2, 40, 40)


# The likelihood ratio


def test_a_variance_of_zero(fit, data):
    without = fitted(models.line, data)
    test = fit.lrt(without)
    statistic = 2 * (fit.log_likelihood.value - without.log_likelihood.value)
    assert test.weights == {0: 0.5, 1: 0.5} and test.boundary == ("sd",) and test.df == 1
    assert abs(test.p_value - 0.5 * chi2.sf(statistic, 1)) < 1e-12
    assert without.lrt(fit) == test
    none = fitted(models.gaussian, models.rows(9, sd=0.0))
    assert none.status.name == "BOUNDARY"
    assert none.lrt(fitted(models.line, models.rows(9, sd=0.0))).p_value == 1.0


@pytest.mark.slow
def test_an_effect_and_a_fixed_value(fit, data):
    rest = fitted(models.gaussian, data | {"x": data["x"][:, :1]}, fixed={"beta": np.ones(1)})
    small = fitted(models.gaussian, data, fixed={"beta": np.array([1.0, 0.0])})
    test = fit.lrt(small)
    assert test.weights == {2: 1.0} and not test.boundary
    assert abs(test.p_value - chi2.sf(test.statistic, 2)) < 1e-12
    with pytest.raises(ModelError, match="entries in one model"):
        fit.lrt(rest)


@pytest.mark.slow
def test_what_cannot_be_compared(fit, data):
    other = fitted(models.line, data | {"y": data["y"] + 1.0})
    with pytest.raises(ModelError, match="different data"):
        fit.lrt(other)
    with pytest.raises(ModelError, match="both models have 4 parameters"):
        fit.lrt(fit)
    bound = fitted(models.gaussian, data, e_step="mean_field", fixed={"sd": 0.5})
    with pytest.raises(ModelError, match="'lower_bound'"):
        fit.lrt(bound)


# Covariances


def sandwich_by_hand(fit, data, by_hand, clusters):
    """Scores by differences on the model's own scale; the information likewise."""
    flat, unravel = jax.flatten_util.ravel_pytree(fit.params)
    flat = np.asarray(flat)

    def value(flat):
        return by_hand(unravel(jax.numpy.asarray(flat)), data)

    width = 1e-4 * np.eye(len(flat))
    scores = np.array([(value(flat + e) - value(flat - e)) / 2e-4 for e in width]).T
    hessian = np.array(
        [
            [
                (
                    value(flat + e + f).sum()
                    - value(flat + e - f).sum()
                    - value(flat - e + f).sum()
                    + value(flat - e - f).sum()
                )
                / 4e-8
                for e in width
            ]
            for f in width
        ]
    )
    inverse = np.linalg.inv(-hessian)
    sums = np.array([scores[clusters == c].sum(axis=0) for c in np.unique(clusters)])
    return inverse @ (sums.T @ sums) @ inverse


def test_robust_and_clustered(fit, data):
    groups = np.arange(data["number"])
    robust = fit.covariance("robust")
    expected = sandwich_by_hand(fit, data, models.gaussian_by_group, groups)
    np.testing.assert_allclose(robust, expected, rtol=1e-4, atol=1e-8)
    labels = np.array(["a", "b", "c"])[data["group"] % 3]
    clustered = fit.covariance("clustered", clusters=labels)
    expected = sandwich_by_hand(fit, data, models.gaussian_by_group, groups % 3)
    np.testing.assert_allclose(clustered, expected, rtol=1e-4, atol=1e-8)
    assert "12 independent groups" in robust.attrs["method"]
    assert "3 clusters" in clustered.attrs["method"]
    assert "Hessian" in fit.covariance().attrs["method"]
    with pytest.raises(ModelError, match="two clusters"):
        fit.covariance("clustered", clusters=np.arange(len(data["y"])))
    with pytest.raises(ModelError, match="goes with"):
        fit.covariance("clustered")


def test_least_squares_without_latents(data):
    """Robust errors of least squares are White's, clustered ones Liang and Zeger's."""
    fit = fitted(models.line, data)
    x = data["x"]
    left = data["y"] - x @ np.asarray(fit.params["beta"])
    bread = np.linalg.inv(x.T @ x)
    for kind, clusters in (("robust", np.arange(len(x))), ("clustered", data["group"])):
        scores = np.array([(x * left[:, None])[clusters == c].sum(0) for c in np.unique(clusters)])
        expected = bread @ scores.T @ scores @ bread
        given = {} if kind == "robust" else {"clusters": clusters}
        found = fit.covariance(kind, **given)[:2, :2]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


# Intervals


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sleepstudy", "seeds"])
def test_limits_and_errors_of_lme4(name, request):
    module, peer = load_model(name), PEERS[name]
    options = {} if name == "sleepstudy" else {"e_step": "quadrature"}
    fit = fitted(module.model, module.load(), **options)
    found = fit.conf_int("profile")
    for label, limits in peer["limits"].items():
        width = limits[1] - limits[0]
        own = found.loc[label, ["lower", "upper"]].to_numpy(float)
        np.testing.assert_allclose(own, limits, atol=1e-4 * width, rtol=0)
    errors = fit.summary()["se"]
    for label, error in peer["standard_errors"].items():
        # vcov of glmer leaves out that the variance is estimated: 1e-2 in small data.
        assert abs(errors[label] / error - 1) < (1e-3 if name == "sleepstudy" else 2e-2)
    if name == "seeds":
        assert "open" in found.loc["sd", "note"]
    else:
        assert not any(found["note"])


def test_a_profile_by_another_optimizer(fit, data):
    names = ["beta[0]", "beta[1]", "sd", "sigma"]

    def loss(free, place, value):
        full = np.insert(free, place, value)
        params = {"beta": full[:2], "sd": np.exp(full[2]), "sigma": np.exp(full[3])}
        return -models.gaussian_by_group(params, data).sum()

    best = np.array([*fit.params["beta"], np.log(fit.params["sd"]), np.log(fit.params["sigma"])])
    top = fit.log_likelihood.value
    limits = fit.conf_int("profile", 0.9)
    for place in (1, 3):
        for end in ("lower", "upper"):
            value = limits.loc[names[place], end]
            own = np.log(value) if place > 1 else value
            found = minimize(loss, np.delete(best, place), (place, own), method="BFGS")
            assert abs(2 * (top + found.fun) - chi2.ppf(0.9, 1)) < 1e-4
    with pytest.raises(ModelError, match="no free parameter"):
        fit.conf_int(parameters=["gamma"])


def test_an_interval_from_a_bound():
    data = models.rows(9, sd=0.0)
    fit = fitted(models.gaussian, data)
    found = fit.conf_int("profile", parameters="sd").loc["sd"]
    assert found["lower"] == 0 and "at the bound" in found["note"]
    top = fit.log_likelihood.value

    def loss(free):
        params = {"beta": free[:2], "sd": found["upper"], "sigma": np.exp(free[2])}
        return -models.gaussian_by_group(params, data).sum()

    start = [*fit.params["beta"], np.log(fit.params["sigma"])]
    assert abs(2 * (top + minimize(loss, start).fun) - chi2.ppf(0.95, 1)) < 1e-4


def test_the_curve(fit):
    curve = fit.profile("sd", level=0.9, num_points=7)
    assert np.all(np.diff(curve["value"]) >= 0) and np.all(np.diff(curve["root"]) >= -1e-7)
    ends = fit.conf_int("profile", 0.9).loc["sd"]
    assert abs(np.interp(ends["lower"], curve["value"], curve["deviance"]) - 2.7055) < 1e-2


def test_the_delta_method(fit):
    found = fit.derive(lambda p: p["sd"] ** 2 / (p["sd"] ** 2 + p["sigma"] ** 2))
    sd, sigma = float(fit.params["sd"]), float(fit.params["sigma"])
    total = sd**2 + sigma**2
    slope = np.array([0, 0, 2 * sd * sigma**2, -2 * sigma * sd**2]) / total**2
    se = np.sqrt(slope @ fit.covariance().values @ slope)
    assert abs(found.value - sd**2 / total) < 1e-12 and abs(found.se - se) < 1e-10
    assert abs(found.upper - found.value - 1.959964 * se) < 1e-6
    several = fit.derive(lambda p: p["beta"] * 2)
    np.testing.assert_allclose(several.se, 2 * fit.standard_errors()["beta"])
    with pytest.raises(ModelError, match="fails on"):
        fit.derive(lambda p: p["gamma"])


@pytest.mark.slow
def test_influence_predicts_deletion(fit, data):
    table = fit.influence()
    group = int(table["distance"].idxmax())
    cells = fit.parts.inquiry("").by_group.groups.cells["y"]
    kept = cells != group
    rest = data | {name: data[name][kept] for name in ("x", "group", "y")}
    rest["group"] = np.unique(rest["group"], return_inverse=True)[1]
    without = fitted(models.gaussian, rest | {"number": data["number"] - 1})
    change = np.asarray(without.params["beta"]) - np.asarray(fit.params["beta"])
    found = table.loc[group, ["beta[0]", "beta[1]"]].to_numpy()
    np.testing.assert_allclose(found, change, rtol=0.35, atol=0.02)  # the first order


@pytest.mark.slow
def test_bootstrap(fit, data):
    """Both kinds have the spread of the normal law, within their noise."""
    errors = np.asarray(fit.summary()["se"])[:2]
    for kind in ("parametric", "groups"):
        refits = fit.bootstrap(jax.random.key(1), 150, kind, progress_bar=False)
        spread = np.std(refits.draws, axis=0, ddof=1)[:2]
        np.testing.assert_allclose(spread, errors, rtol=0.35)
        assert len(refits.draws) + refits.num_failed == 150 and refits.num_failed < 8
        limits = fit.conf_int("bootstrap", bootstrap=refits)
        assert np.all(limits["lower"] < limits["upper"])


def test_refits_to_groups_are_fits_to_repeated_rows(fit, data):
    """The maximum of the weighted sum, against EM on the rows of the groups that were drawn."""
    inquiry = fit.parts.inquiry("")
    cells, rng = inquiry.by_group.groups.cells["y"], np.random.default_rng(5)
    weights = rng.multinomial(12, np.full(12, 1 / 12))
    found = _climbed(inquiry.by_group, np.asarray(fit.parts.x), inquiry.information, weights)
    rows = [np.flatnonzero(cells == g) for g in np.repeat(np.arange(12), weights)]
    again = {name: data[name][np.concatenate(rows)] for name in ("x", "y")}
    again["group"] = np.repeat(np.arange(12), [len(r) for r in rows])
    other = fitted(models.gaussian, again | {"number": 12})
    expected = np.asarray(other.parts.x)
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.slow
def test_lags_are_no_data_to_draw(rng_key):
    def lagged(before, y):
        slope = numpyro.param("slope", 0.1)
        sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Normal(slope * before, sd))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    y = np.random.default_rng(0).normal(size=30) * 2
    fit = EM(lagged).run(rng_key, y, y, progress_bar=False)
    with pytest.raises(ModelError, match="elsewhere"):
        fit.bootstrap(rng_key, 3, progress_bar=False)


def test_what_is_in_files(fit, tmp_path):
    fit.save(tmp_path / "fit.nc")
    loaded = load(tmp_path / "fit.nc")
    assert loaded.counts == fit.counts and loaded.aic == fit.aic
    assert loaded.num_groups == fit.num_groups == 12
    half = fit.derive(lambda p: p["sd"] / 2)
    assert loaded.derive(lambda p: p["sd"] / 2).se == pytest.approx(half.se)
    for ask in (
        lambda: loaded.conf_int("profile"),
        lambda: loaded.covariance("robust"),
        lambda: loaded.leave_one_out(),
        lambda: loaded.bootstrap(jax.random.key(0)),
        lambda: loaded.influence(),
    ):
        with pytest.raises(ModelError, match="loaded from a file"):
            ask()


# Simulations


@pytest.mark.long
@pytest.mark.parametrize("first", [0, 500])
def test_p_values_of_a_variance_of_zero(optimized, first):
    """About half of them 1, the others uniform.

    The estimate is positive if the ratio of mean squares is above 20 / 19, which it is with a
    probability that goes to 1/2 with the number of groups.
    """
    values = []
    for seed in range(first, first + 500):
        data = models.rows(seed, number=20, size=5, sd=0.0)
        test = fitted(models.gaussian, data).lrt(fitted(models.line, data))
        values.append(test.p_value)
    values = np.array(values)
    positive = values[values < 1]
    share = len(positive) / 500
    assert abs(share - f.sf(20 / 19, 19, 79)) < 4 * np.sqrt(0.25 / 500)
    assert kstest(positive, "uniform", args=(0, 0.5)).pvalue > 0.005


@pytest.mark.long
def test_coverage_of_a_random_intercept_logistic(optimized):
    inside, beta = [], np.array([0.5, 1.0])
    for seed in range(200):
        data = models.rows(seed, number=60, size=8)
        rng = np.random.default_rng(1000 + seed)
        logits = data["x"] @ beta + rng.normal(size=60)[data["group"]]
        data["y"] = (rng.random(len(logits)) < 1 / (1 + np.exp(-logits))).astype(float)
        fit = fitted(models.logistic, data, e_step="quadrature")
        limits = fit.conf_int(parameters="beta")
        inside.append((limits["lower"] < beta) & (beta < limits["upper"]))
    assert 0.93 <= np.mean(inside) <= 0.97


@pytest.mark.slow
def test_data_drawn_along_a_scan(rng_key):
    """Values within a scan are replaced step by step: a fit to given data is the fit to them."""

    def level(y):
        move = numpyro.param("move", 1.0, constraint=constraints.positive)
        noise = numpyro.param("noise", 1.0, constraint=constraints.positive)

        def step(state, y):
            state = numpyro.sample("state", dist.Normal(state, move))
            numpyro.sample("y", dist.Normal(state, noise), obs=y)
            return state, None

        scan(step, 0.0, y)

    rng = np.random.default_rng(0)
    y = np.cumsum(rng.normal(size=40)) + rng.normal(size=40)
    fit = EM(level).run(rng_key, y, progress_bar=False)
    resampler = Resampler.of(fit.parts.problem, fit.parts.x)
    drawn = resampler.draw(rng_key, 400)
    values = np.array([one["y"] for one in drawn])
    move, noise = float(fit.params["move"]), float(fit.params["noise"])
    expected = move**2 * np.arange(1, 41) + noise**2
    np.testing.assert_allclose(values.var(axis=0), expected, rtol=5 * np.sqrt(2 / 400))
    other = EM(level).run(rng_key, values[0], progress_bar=False)
    problem = resampler.problem(drawn[0])
    u, x = problem.start, other.parts.x
    same = other.parts.problem.log_joint_unconstrained(problem.constrain(x), u)
    assert problem.log_joint_unconstrained(problem.constrain(x), u) == pytest.approx(float(same))
