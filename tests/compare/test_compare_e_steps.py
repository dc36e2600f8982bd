"""One model under several E-steps: the table, the picture, the DataTree, the command line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray
from conftest import SEED, load_model
from small_models import POSITIVE
from toy_models import two_latents

from ppl_em import EM, ModelError, compare_e_steps
from ppl_em.cli import commands as cli
from ppl_em.e_step import Exact, MeanField

MODEL = '''
import jax.numpy as jnp, numpyro, numpyro.distributions as dist
from numpyro.distributions import constraints

def model(y):
    """Two latents that only their sum tells about."""
    v = numpyro.param("v", 1.0, constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        a = numpyro.sample("a", dist.Normal(0.0, jnp.sqrt(v)))
        b = numpyro.sample("b", dist.Normal(0.0, jnp.sqrt(v)))
        numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)
'''
Y = np.sqrt(5.0) * np.where(np.arange(20) % 2, 1.0, -1.0)


@pytest.fixture(scope="module")
def comparison():
    named = {"bound": "mean_field", "exact": Exact()}
    return compare_e_steps(two_latents, named, jax.random.key(SEED), Y, progress_bar=False)


def test_table_and_fits(comparison):
    table, fits = comparison.table(), comparison.fits()
    assert list(table.index) == [("v", "bound"), ("v", "exact")]
    np.testing.assert_allclose(table["estimate"], [1.13278, 2.0], atol=1e-4)
    np.testing.assert_allclose(table["corrected"], [2.0, 2.0], rtol=1e-5)
    np.testing.assert_allclose(table["shift"], [1.09695, 0.0], atol=1e-4)
    assert list(fits["kind"]) == ["lower_bound", "exact"] and fits["converged"].all()
    assert fits["gap"]["bound"] > 3 and abs(fits["gap"]["exact"]) < 1e-9
    assert fits["khat"]["bound"] > 0 and np.isnan(fits["khat"]["exact"])
    assert (fits["seconds"] > 0).all()


def test_each_fit_is_the_one_that_em_makes(comparison):
    alone = EM(two_latents, e_step="mean_field").run(jax.random.key(SEED), Y, progress_bar=False)
    assert alone.params["v"] == comparison.results["bound"].params["v"]


def test_text(comparison):
    text = str(comparison)
    assert "2.0000 ± 0.7906" in text and "v shift (se)" in text and "lower bound" in text
    assert "bound: `v` is 1.1 standard errors too small under mean_field; use e_step=" in text
    assert "exact: Nothing wrong is seen by exact" in text


def test_datatree_and_file(comparison, tmp_path):
    comparison.to_datatree().to_netcdf(tmp_path / "both.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "both.nc", engine="h5netcdf") as tree:
        found = tree["comparison"].to_dataset().load()
    assert dict(found.sizes) == {"e_step": 2, "parameter": 1}
    assert float(found["shift"].sel(e_step="bound", parameter="v")) > 1
    assert str(found["kind"].sel(e_step="exact").values) == "exact"
    assert float(found["log_likelihood_mcse"].sel(e_step="exact")) == 0


def test_forest_plot(comparison, tmp_path):
    figure = comparison.plot({"params": {"v": 2.0}})
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["bound", "exact"]
    assert axes.get_title() == "v"
    rings = axes.collections[-1].get_offsets()
    np.testing.assert_allclose(rings, [[2.0, 0], [2.0, 1]], rtol=1e-4)
    figure.savefig(tmp_path / "forest.png")
    assert (tmp_path / "forest.png").stat().st_size > 5000


def test_refusals_are_kept_and_options_hold():
    linkage = load_model("linkage")
    em = EM(linkage.model, max_steps=3)
    found = compare_e_steps(
        em, ["exact", "mean_field"], jax.random.key(SEED), progress_bar=False, **linkage.load()
    )
    assert list(found.results) == ["exact"] and found.results["exact"].num_steps <= 4
    assert "discrete latents only" in found.refused["mean_field"]
    assert "mean_field: not run. Option `e_step`" in str(found)
    assert "not_run_mean_field" in found.to_datatree()["comparison"].attrs


@pytest.mark.parametrize(
    ("e_steps", "text"),
    [(["mean_field"], "discrete latents only"), ([], "found none"), (["magic"], "Valid flags")],
)
def test_nothing_to_compare(e_steps, text):
    linkage = load_model("linkage")
    with pytest.raises(ModelError, match=text):
        compare_e_steps(linkage.model, e_steps, jax.random.key(SEED), **linkage.load())


def test_names_of_configurations():
    def model(y):
        sd = numpyro.param("sd", 1.0, constraint=POSITIVE)
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Normal(0.0, sd))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    found = compare_e_steps(
        model, [MeanField(num_particles=32)], jax.random.key(SEED), jnp.asarray(Y),
        audit=False, progress_bar=False,
    )  # fmt: skip
    assert list(found.results) == ["MeanField(num_particles=32)"]
    assert found.table()["shift"].isna().all() and "shift" not in str(found)


def test_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "two.py").write_text(MODEL)
    (tmp_path / "y.csv").write_text("y\n" + "\n".join(map(str, Y)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_configure_jax", lambda: None)
    common = ["two.py", "--data", "y.csv", "--json", "--no-progress"]
    files = ["--plot", "forest.png", "--out", "both.nc"]
    flags = ["--e-steps", "mean_field, exact"]
    assert cli.main(["compare", *common, *flags, *files]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert list(report) == ["mean_field", "exact"]
    audit = report["mean_field"]["audit"]
    assert 1.09 < audit["shift"]["v"] < 1.1 and audit["log_likelihood"]["kind"] == "exact"
    assert "Table saved in both.nc" in printed.err and (tmp_path / "both.nc").exists()
    assert (tmp_path / "forest.png").read_bytes()[:4] == b"\x89PNG"

    assert cli.main(["fit", *common, "--e-step", "mean_field", "--audit"]) == 0
    assert json.loads(capsys.readouterr().out)["audit"]["sentence"] == audit["sentence"]
    arguments = ["fit", *common, "--e-step", "exact", "--audit"]
    arguments.remove("--json")
    assert cli.main(arguments) == 0
    assert "Audit by exact" in capsys.readouterr().out
