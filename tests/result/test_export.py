"""The DataTree, files, and what they hold."""

import arviz_base
import arviz_stats
import jax
import numpy as np
import pytest
import xarray
from conftest import SEED, load_model

import ppl_em
from ppl_em import EM
from ppl_em.algorithms import Stopping
from ppl_em.e_step import NUTS


@pytest.fixture(scope="module")
def seeds_fit():
    module = load_model("seeds")
    em = EM(module.model, e_step=NUTS(num_warmup=150), stopping=Stopping(mcse_fraction=0.1))
    return em.run(jax.random.key(SEED), progress_bar=False, **module.load())


@pytest.fixture(scope="module")
def faithful_fit():
    module = load_model("faithful")
    return EM(module.model, e_step="exact").run(
        jax.random.key(SEED), progress_bar=False, **module.load()
    )


def test_groups_and_dimensions(seeds_fit):
    tree = seeds_fit.to_datatree()
    groups = {"posterior", "sample_stats", "em_trace", "observed_data", "log_likelihood", "params"}
    assert groups <= set(tree.children)
    assert tree["posterior"]["b"].dims == ("chain", "draw", "plates")
    assert tree["posterior"]["b"].shape[0] == 4
    assert tree["log_likelihood"]["r"].dims == ("chain", "draw", "plates")
    assert tree["observed_data"]["r"].dims == ("plates",)
    assert tree["em_trace"]["objective"].dims == ("iteration",)
    assert tree["em_trace"].sizes["iteration"] == seeds_fit.num_steps
    assert {"acceptance_rate", "diverging", "lp"} <= set(tree["sample_stats"].data_vars)


def test_pointwise_log_likelihood_belongs_to_the_draw(seeds_fit):
    tree, data = seeds_fit.to_datatree(), load_model("seeds").load()
    alpha = tree["posterior"]["alpha"].values[1, 7]
    design = np.stack([np.ones(21), data["x1"], data["x2"], data["x1"] * data["x2"]])
    eta = alpha @ design + tree["posterior"]["b"].values[1, 7]
    r, n = data["r"], data["n"]
    by_hand = jax.scipy.stats.binom.logpmf(r, n, jax.nn.sigmoid(eta))
    np.testing.assert_allclose(tree["log_likelihood"]["r"].values[1, 7], by_hand, rtol=1e-9)


@pytest.mark.long
def test_discrete_latents_are_drawn_from_their_responsibilities(faithful_fit):
    tree = faithful_fit.to_datatree()
    probs = faithful_fit.posterior.probs()["component"]
    assert probs.shape == (272, 2)
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(tree["responsibilities"]["component"].values, probs)
    draws = tree["posterior_at_estimate"]["component"].values
    count = draws.shape[0] * draws.shape[1]
    error = np.sqrt(probs[:, 1] * probs[:, 0] / count)
    assert np.all(np.abs(draws.mean(axis=(0, 1)) - probs[:, 1]) < 5 * error + 1 / count)


@pytest.mark.parametrize("which", ["seeds_fit", "faithful_fit"])
def test_save_and_load(which, request, tmp_path):
    result = request.getfixturevalue(which)
    path = tmp_path / "fit.nc"
    result.save(path)
    again = ppl_em.load(path)
    for name, value in result.params.items():
        np.testing.assert_array_equal(again.params[name], value)
        np.testing.assert_array_equal(again.standard_errors()[name], result.standard_errors()[name])
        np.testing.assert_array_equal(again.history[name], result.history[name])
    assert again.log_likelihood == result.log_likelihood
    assert again.status is result.status and again.converged == result.converged
    assert str(again.summary()) == str(result.summary())
    shapes = {k: v.shape for k, v in result.posterior.sample(jax.random.key(1), 3).items()}
    assert {k: v.shape for k, v in again.posterior.sample(jax.random.key(1), 3).items()} == shapes
    again.save(tmp_path / "copy.nc")
    plain = xarray.open_datatree(path)
    assert "posterior" in plain.children
    plain.close()
    opened = arviz_base.convert_to_datatree(str(path))
    assert "em_trace" in opened.children
    opened.close()


def test_arviz_reads_the_tree(seeds_fit):
    table = arviz_stats.summary(seeds_fit.to_datatree())
    assert len(table) == 5 + 21
    assert np.all(table["r_hat"].astype(float) < 1.05)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.nc"
    xarray.Dataset({"a": 1}).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(ppl_em.ModelError, match="not a fit saved by ppl_em"):
        ppl_em.load(path)


def test_covariance_is_labelled(faithful_fit):
    covariance = faithful_fit.covariance()
    assert covariance.dims == ("parameter", "parameter_")
    assert "weights[0]" in covariance.coords["parameter"].values
    one, two = "weights[0]", "weights[1]"
    # The weights sum to one, so they vary exactly against each other.
    np.testing.assert_allclose(
        covariance.sel(parameter=one, parameter_=two),
        -covariance.sel(parameter=one, parameter_=one),
        rtol=1e-9,
    )
