"""Tables: latents with names, each parameter once, text for papers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED
from numpyro.distributions import constraints
from scipy.stats import gamma, norm

import ppl_em
from ppl_em import EM, ModelError
from ppl_em.params import ParamSpace, make_site, repeated_entries

Y = np.array([-3.0, 1.0, 2.0, -1.0])


def model(y):
    mu = numpyro.param("mu_a|b", 0.0)
    with numpyro.plate("g", 4):
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def mixture(y):
    mu = numpyro.param("mu", jnp.array([-2.0, 2.0]))
    with numpyro.plate("i", len(y)):
        k = numpyro.sample("k", dist.Categorical(jnp.array([0.4, 0.6])))
        numpyro.sample("y", dist.Normal(mu[k], 1.0), obs=y)


def rates(y):
    scale = numpyro.param("scale", 1.0, constraint=constraints.positive)
    with numpyro.plate("g", len(y)):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 2.0 / scale))
        numpyro.sample("y", dist.Poisson(rate), obs=y)


def fit(model, y):
    return EM(model, "exact").run(jax.random.key(SEED), y, progress_bar=False)


@pytest.fixture(scope="module")
def result():
    return fit(model, Y)


def both(result, path):
    result.save(path)
    return result, ppl_em.load(path)


def test_latents_are_a_table_with_names(result, tmp_path):
    mean = (Y.mean() + Y) / 2
    for one in both(result, tmp_path / "fit.nc"):
        table = one.latents(0.9, coords={"who": ["a", "b", "c", "d"]}, dims={"z": ["who"]})
        assert list(table.columns) == ["site", "element", "mean", "sd", "lower", "upper"]
        assert list(table["element"]) == ["a", "b", "c", "d"] and set(table["site"]) == {"z"}
        np.testing.assert_allclose(table["mean"], mean, atol=1e-5)
        np.testing.assert_allclose(table["sd"], np.sqrt(0.5), rtol=1e-9)
        half = norm.ppf(0.95) * np.sqrt(0.5)
        np.testing.assert_allclose(table["upper"] - table["mean"], half, rtol=1e-9)
    result.save(tmp_path / "named.nc", coords={"g": ["a", "b", "c", "d"]})
    assert list(ppl_em.load(tmp_path / "named.nc").latents()["element"]) == ["a", "b", "c", "d"]
    for names, text in (
        ({"coords": {"h": [1]}}, "Option `coords`"),
        ({"coords": {"g": [1]}}, "4 elements, and there are 1 labels"),
        ({"dims": {"y": ["g"]}}, "Site 'y': `dims`"),
    ):
        with pytest.raises(ModelError, match=text):
            result.latents(**names)


@pytest.mark.slow
def test_latents_with_bounds_have_quantiles(tmp_path):
    y = np.array([0.0, 1.0, 5.0, 2.0, 4.0])
    result = fit(rates, y)
    law = [2 + y, 1 / (2 / result.params["scale"] + 1)]
    for one in both(result, tmp_path / "fit.nc"):
        table = one.latents()
        for name, q in (("lower", 0.025), ("upper", 0.975)):
            expected = gamma.ppf(q, law[0], scale=law[1])
            error = np.sqrt(q * (1 - q) / 1000) / gamma.pdf(expected, law[0], scale=law[1])
            assert np.all(np.abs(table[name] - expected) < 6 * error)


@pytest.mark.slow
def test_discrete_latents_have_states(tmp_path):
    y = np.array([-3.0, -2.0, 1.0, 2.5, -1.0, 3.0])
    result = fit(mixture, y)
    probs = result.posterior.probs()["k"]
    for one in both(result, tmp_path / "fit.nc"):
        table = one.latents()
        np.testing.assert_array_equal(table["state"], probs.argmax(1))
        np.testing.assert_allclose(table["probability"], probs.max(1), rtol=1e-9)
        np.testing.assert_allclose(table["sd"] ** 2, probs[:, 0] * probs[:, 1], atol=1e-9)
        assert table["lower"].isna().all()


def test_matrices_are_told_by_what_is_below_the_diagonal():
    tril = jnp.eye(3)
    params = {"corr": tril, "cov": tril, "full": tril, "tril": jnp.stack([tril, tril])}
    supports = {
        "corr": constraints.corr_cholesky,
        "cov": constraints.positive_definite,
        "full": constraints.real,
        "tril": constraints.lower_cholesky,
    }
    sites = tuple(make_site(k, params[k], supports[k], False) for k in params)
    shown = ~repeated_entries(ParamSpace(sites), params)
    sizes = {name: 9 for name in ("corr", "cov", "full")} | {"tril": 18}
    ends = np.cumsum([sizes[name] for name in sorted(sizes)])
    parts = dict(zip(sorted(sizes), np.split(shown, ends[:-1]), strict=True))
    assert {k: int(v.sum()) for k, v in parts.items()} == {
        "corr": 3,
        "cov": 6,
        "tril": 12,
        "full": 9,
    }
    np.testing.assert_array_equal(parts["corr"].reshape(3, 3), np.tri(3, k=-1, dtype=bool))


def test_text_for_papers(result):
    estimate, se, *ends = (f"{v:.3g}" for v in result.summary().iloc[0, :4])
    cells = [estimate, se, *ends]
    assert result.to_markdown(digits=3).splitlines() == [
        "| parameter | estimate | se | lower | upper |",
        "|:---|---:|---:|---:|---:|",
        rf"| mu_a\|b | {' | '.join(cells)} |",
    ]
    lines = result.to_latex(digits=3).splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrr}" and lines[-1] == r"\end{tabular}"
    assert lines[4] == rf"mu\_a|b & {' & '.join(cells)} \\"
