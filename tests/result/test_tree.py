"""The DataTree: parameters from their law, latents given them, and what ArviZ makes of it."""

import json
import warnings

import arviz_plots
import arviz_stats
import h5py
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from conftest import SEED
from numpyro.distributions import constraints
from scipy.special import logsumexp

import ppl_em
from ppl_em import EM, ModelError
from ppl_em.fit.after.draws import draw_params

matplotlib.use("Agg")

Y = np.array([-3.0, 1.0, 2.0, -1.0])
KNOWN = 5
"""Monte Carlo errors within which draws agree with what is known of them."""


def groups(y):
    mu = numpyro.param("mu", 0.0)
    with numpyro.plate("g", len(y)):
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        numpyro.deterministic("twice", 2 * z)
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def rows(x, y):
    """Several rows in a group, a covariate, and a standard deviation with a bound."""
    slope = numpyro.param("slope", 0.0)
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    with numpyro.plate("g", y.shape[1]):
        b = numpyro.sample("b", dist.Normal(0.0, sd))
        with numpyro.plate("each", y.shape[0]):
            numpyro.sample("y", dist.Normal(slope * x + b, 1.0), obs=y)


def mixture(y):
    mu = numpyro.param("mu", jnp.array([-2.0, 2.0]))
    with numpyro.plate("i", len(y)):
        k = numpyro.sample("k", dist.Categorical(jnp.array([0.4, 0.6])))
        numpyro.sample("y", dist.Normal(mu[k], 1.0), obs=y)


def data(spread=1.0):
    rng = np.random.default_rng(SEED)
    x = rng.normal(size=(5, 6))
    noise = rng.normal(size=(5, 6))
    return x, 0.7 * x + spread * rng.normal(size=6) + noise


def fit(model, *args, e_step="exact", **options):
    key = jax.random.key(SEED)
    return EM(model, e_step, **options).run(key, *args, progress_bar=False)


def flat(group, name):
    values = group[name].values
    return values.reshape(-1, *values.shape[2:])


@pytest.fixture(scope="module")
def simple():
    return fit(groups, Y)


@pytest.fixture(scope="module")
def simple_tree(simple):
    return simple.to_datatree()


@pytest.fixture(scope="module")
def nested():
    return fit(rows, *data())


def test_latents_have_the_uncertainty_of_the_parameters(simple_tree):
    """mu ~ N(mean y, 2 / 4); z given mu ~ N((mu + y) / 2, 1 / 2); so cov(z, z') has 1/8 more."""
    mu, z = flat(simple_tree["posterior"], "mu"), flat(simple_tree["posterior"], "z")
    n = len(mu)
    assert z.shape == (2000, 4) and len(np.unique(mu)) == n
    expected = np.full((5, 5), 0.125)
    expected[0], expected[:, 0] = 0.25, 0.25
    expected[0, 0] = 0.5
    expected[1:, 1:] += 0.5 * np.eye(4)
    joint = np.column_stack([mu, z])
    sd = np.sqrt(np.diag(expected))
    means = np.concatenate([[Y.mean()], (Y.mean() + Y) / 2])
    assert np.all(np.abs(joint.mean(0) - means) < KNOWN * sd / np.sqrt(n))
    error = np.sqrt((np.outer(sd**2, sd**2) + expected**2) / n)
    assert np.all(np.abs(np.cov(joint.T) - expected) < KNOWN * error)
    np.testing.assert_array_equal(flat(simple_tree["posterior"], "twice"), 2 * z)


def test_data_are_drawn_anew(simple_tree):
    new = flat(simple_tree["posterior_predictive"], "y")
    assert simple_tree["posterior_predictive"]["y"].dims == ("chain", "draw", "g")
    variance = 0.625 + 1.0
    assert np.all(np.abs(new.mean(0) - (Y.mean() + Y) / 2) < KNOWN * np.sqrt(variance / len(new)))
    assert np.all(np.abs(new.var(0) / variance - 1) < KNOWN * np.sqrt(2 / len(new)))


def test_log_likelihood_by_group_has_no_latents(simple_tree):
    mu = flat(simple_tree["posterior"], "mu")
    found = flat(simple_tree["marginal_log_likelihood"], "data")
    expected = scipy.stats.norm.logpdf(Y, mu[:, None], np.sqrt(2))
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(flat(simple_tree["sample_stats"], "lp"), expected.sum(1), rtol=1e-9)
    # Each row is a group: `loo` leaves out a row, with all that only that row tells of.
    np.testing.assert_array_equal(flat(simple_tree["log_likelihood"], "y"), found)


@pytest.mark.slow
def test_log_likelihood_by_group_and_row(nested):
    tree, (x, y) = nested.to_datatree(), data()
    posterior = tree["posterior"]
    for i in (0, 77):
        slope, sd = flat(posterior, "slope")[i], flat(posterior, "sd")[i]
        covariance = np.eye(5) + sd**2
        by_group = [
            scipy.stats.multivariate_normal(slope * x[:, g], covariance).logpdf(y[:, g])
            for g in range(6)
        ]
        there = flat(tree["marginal_log_likelihood"], "data")[i]
        np.testing.assert_allclose(there, by_group, rtol=1e-9)
        by_row = scipy.stats.norm.logpdf(y, slope * x + flat(posterior, "b")[i], 1.0)
        np.testing.assert_allclose(flat(tree["log_likelihood"], "y")[i], by_row, rtol=1e-9)
    assert tree["marginal_log_likelihood"]["data"].dims == ("chain", "draw", "g")
    swapped = nested.to_datatree(log_likelihood="groups")["log_likelihood"]["data"]
    assert swapped.shape == (4, 500, 6)


@pytest.mark.slow
def test_discrete_latents_are_summed_out_for_loo():
    y = np.random.default_rng(SEED).normal(size=30) + np.where(np.arange(30) < 12, -2, 2)
    tree = fit(mixture, y).to_datatree()
    mu = flat(tree["posterior"], "mu")
    terms = np.log([0.4, 0.6]) + scipy.stats.norm.logpdf(y[:, None], mu[:, None])
    np.testing.assert_allclose(
        flat(tree["log_likelihood"], "y"), logsumexp(terms, axis=2), rtol=1e-9
    )
    shares = np.exp(terms - logsumexp(terms, axis=2)[..., None]).mean(0)[:, 1]
    drawn = flat(tree["posterior"], "k").mean(0)
    assert np.all(np.abs(drawn - shares) < KNOWN * np.sqrt(shares * (1 - shares) / 2000) + 1e-3)


def test_draws_are_normal_where_nothing_is_held(rng_key):
    root = np.array([[2.0, 0.0, 0.0], [1e-6, 3e-6, 0.0], [0.0, 0.0, 0.0]])
    x = jnp.array([1.0, -2.0, 3.0])
    draws = np.asarray(draw_params(rng_key, x, root @ root.T, 4000))
    np.testing.assert_array_equal(draws[:, 2], 3.0)
    standard = (draws - np.asarray(x))[:, :2] @ np.linalg.inv(root[:2, :2]).T
    assert np.all(np.abs(standard.mean(0)) < KNOWN / np.sqrt(4000))
    assert np.all(np.abs(np.cov(standard.T) - np.eye(2)) < KNOWN * np.sqrt(2 / 4000))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # R-hat of a constant
def test_what_is_at_a_boundary_or_fixed_is_held():
    x, y = data(0.0)
    y = y - (y - 0.7 * x).mean(0)  # no variance between groups
    result = fit(rows, x, y, fixed={"slope": 0.7})
    assert "sd" in result.boundary
    posterior = result.to_datatree()["posterior"]
    assert np.all(posterior["sd"] == 0) and np.all(posterior["slope"] == 0.7)
    assert posterior.attrs["held"] == "sd, slope"
    assert len(arviz_stats.summary(posterior.to_dataset())) == 8


@pytest.mark.slow
def test_without_standard_errors_all_is_held_and_nothing_is_left_to_loo():
    def unidentified(y):
        a, b = numpyro.param("a", 0.0), numpyro.param("b", 0.0)
        with numpyro.plate("g", len(y)):
            z = numpyro.sample("z", dist.Normal(a + b, 1.0))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    result = fit(unidentified, Y)
    assert result.uncertainty.reason
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = result.to_datatree()
    assert "held at their estimates" in tree["posterior"].attrs["parameters"]
    assert np.all(tree["posterior"]["a"] == result.params["a"])
    assert "log_likelihood" not in tree and "marginal_log_likelihood" not in tree


def test_at_the_estimates(simple, tmp_path):
    simple.save(tmp_path / "fit.nc")
    for one in (simple, ppl_em.load(tmp_path / "fit.nc")):
        tree = one.to_datatree(parameters="estimate")
        assert set(tree["posterior"].data_vars) == {"z", "twice"}
        z = flat(tree["posterior"], "z")
        assert np.all(np.abs(z.var(0) - 0.5) < KNOWN * 0.5 * np.sqrt(2 / len(z)))
        assert "log_likelihood" not in tree and "posterior_predictive" not in tree
    with pytest.raises(ModelError, match="Option `parameters`"):
        simple.to_datatree("draws")


def same(one, other):
    assert set(one.children) == set(other.children)
    for name, group in one.children.items():
        loaded, own = other[name].to_dataset(), group.to_dataset()
        assert set(own.variables) == set(loaded.variables), name
        for key, variable in own.variables.items():
            assert variable.dims == loaded[key].dims
            np.testing.assert_array_equal(variable.values, loaded[key].values)


@pytest.mark.slow
def test_a_loaded_fit_gives_the_same_tree(nested, tmp_path):
    names = {"coords": {"g": list("abcdef")}, "dims": {"y": ["time"]}}
    nested.save(tmp_path / "fit.nc")
    loaded = ppl_em.load(tmp_path / "fit.nc")
    tree = nested.to_datatree(**names)
    same(tree, loaded.to_datatree(**names))
    assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "time", "g")
    assert list(tree["latent_mean"]["g"].values) == list("abcdef")
    assert list(tree["constant_data"].data_vars) == ["x"]
    assert tree["constant_data"]["x"].dims == ("each", "g")
    assert tree.attrs["inference_library"] == "ppl_em"
    information = tree["observed_information"]["information"].values
    np.testing.assert_allclose(
        np.linalg.inv(information), tree["observed_information"]["covariance"], rtol=1e-8
    )
    np.testing.assert_array_equal(loaded.uncertainty.free.score, nested.uncertainty.free.score)
    loaded.save(tmp_path / "again.nc")
    same(loaded.to_datatree(), ppl_em.load(tmp_path / "again.nc").to_datatree())


def test_a_file_of_version_2_has_latents_at_the_estimates(simple, tmp_path):
    """Its log-likelihood, with the parameters held, would mislead `loo`."""
    simple.save(tmp_path / "fit.nc")
    with h5py.File(tmp_path / "fit.nc", "r+") as file:
        record = json.loads(file.attrs["ppl_em"]) | {"version": 2}
        file.attrs["ppl_em"] = json.dumps(record)
        del file["posterior"], file["uncertainty/repeated"], file["observed_information"]
        file.move("posterior_at_estimate", "posterior")
    loaded = ppl_em.load(tmp_path / "fit.nc")
    tree = loaded.to_datatree()
    assert "log_likelihood" not in tree and "mu" not in tree["posterior"]
    assert loaded.uncertainty.free is None and len(loaded.summary()) == 1
    np.testing.assert_allclose(loaded.latents()["sd"], np.sqrt(0.5), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "text"),
    [
        ({"coords": {"h": [1]}}, "Option `coords`"),
        ({"coords": {"g": [1]}}, "'g' has 6 elements, and there are 1 labels"),
        ({"dims": {"w": ["g"]}}, "Site 'w': `dims`"),
        ({"dims": {"b": ["g", "h"]}}, "'b' has 1 dimensions, and 2 names"),
        ({"dims": {"y": ["g"]}}, "called alike"),
    ],
)
def test_names_that_do_not_fit(nested, names, text):
    with pytest.raises(ModelError, match=text):
        nested.to_datatree(**names)


PLOTS = {
    "forest": lambda tree, names: arviz_plots.plot_forest(tree),
    "dist": lambda tree, names: arviz_plots.plot_dist(tree, var_names=names),
    "pair": lambda tree, names: arviz_plots.plot_pair(tree, var_names=names),
    "ppc": lambda tree, names: arviz_plots.plot_ppc_dist(tree, num_samples=20),
}


def used_by_arviz(result, path):
    """Every function that users of ArviZ begin with, on a fresh fit and on a loaded one."""
    result.save(path)
    for one in (result, ppl_em.load(path)):
        tree = one.to_datatree()
        table = arviz_stats.summary(tree)
        assert {"slope", "sd", "b[0]", "b[5]"} <= {*table.index}
        assert np.all(table["r_hat"].astype(float) < 1.1)
        assert arviz_stats.loo(tree).n_data_points == 30
        assert len(arviz_stats.compare({"a": tree, "b": tree})) == 2
        for plot in PLOTS.values():
            plot(tree, ["slope", "sd"])
            matplotlib.pyplot.close("all")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("e_step", ["exact", "laplace", "quadrature", "mean_field", "nuts"])
def test_arviz_on_fits_of_each_flag(e_step, tmp_path):
    result = fit(rows, *data(), e_step=e_step)
    used_by_arviz(result, tmp_path / "fit.nc")
    posterior = result.to_datatree()["posterior"]
    se = np.sqrt(np.diag(result.uncertainty.covariance))[result.labels.index("slope")]
    draws = flat(posterior, "slope")
    assert abs(draws.std() / se - 1) < KNOWN / np.sqrt(2 * len(draws))
    assert f"e_step='{e_step}'" in posterior.attrs["latents"]


@pytest.mark.slow
def test_latents_of_a_sampler_follow_the_parameters(nested):
    """Given each draw of the parameters, b is normal with known mean and variance."""
    tree, (x, y) = fit(rows, *data(), e_step="nuts").to_datatree(), data()
    slope, sd, b = (flat(tree["posterior"], name) for name in ("slope", "sd", "b"))
    precision = 5 + sd**-2
    mean = (y - slope[:, None, None] * x).sum(1) / precision[:, None]
    z = (b - mean) * np.sqrt(precision)[:, None]
    assert np.all(np.abs(z.mean(0)) < KNOWN / np.sqrt(len(z)))
    assert np.all(np.abs(z.var(0) - 1) < KNOWN * np.sqrt(2 / len(z)))


def covariates(x, g, y):
    beta = numpyro.param("beta", jnp.zeros(x.shape[1]))
    mu = numpyro.param("mu", 0.0)
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    s = numpyro.param("s", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", 20):
        b = numpyro.sample("b", dist.Normal(0.0, sd))
    with numpyro.plate("rows", len(g)):
        numpyro.sample("y", dist.Normal(mu + x @ beta + b[g], s), obs=y)


def wins(count: int, log_likelihood: str) -> int:
    """Data sets in which the model without 25 columns of noise comes first."""
    found, g = 0, np.repeat(np.arange(20), 4)
    for i in range(count):
        rng = np.random.default_rng(SEED + i)
        x, noise = rng.normal(size=(80, 1)), rng.normal(size=(80, 25))
        y = 0.5 + 0.8 * x[:, 0] + 0.7 * rng.normal(size=20)[g] + rng.normal(size=80)
        trees = {
            name: fit(covariates, columns, g, y).to_datatree(log_likelihood=log_likelihood)
            for name, columns in (("noise", np.column_stack([x, noise])), ("true", x))
        }
        found += arviz_stats.compare(trees).index[0] == "true"
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compare_does_not_prefer_noise():
    assert wins(3, "rows") == 3


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("log_likelihood", ["rows", "groups"])
def test_compare_prefers_the_model_without_noise_in_95_of_100(log_likelihood):
    assert wins(100, log_likelihood) >= 95
