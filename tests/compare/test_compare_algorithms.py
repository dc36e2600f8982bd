"""Accelerated EM, the direct method, hybrids, and their comparison."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray
from conftest import SEED, load_model
from numpyro.distributions import constraints
from toy_models import logit_normal, normal_normal, two_latents

from ppl_em import EM, Constraint, Direct, ModelError, Status, Stopping, compare_algorithms
from ppl_em.algorithms import rounding
from ppl_em.algorithms.acceleration import Anderson, Squarem
from ppl_em.cli import commands as cli
from ppl_em.e_step import MeanField

nile = load_model("nile")
NAMES = ("em", "gem", "squarem", "anderson", "direct", "lbfgs", "newton", "hybrid", "default")
AT_MOST = {"em": 412, "squarem": 34, "anderson": 16, "direct": 12, "lbfgs": 11, "hybrid": 20}
"""E-steps or gradients to within 1e-8 of the maximum of the Nile model from variances of 10^4: a
fifth more than other implementations of the same methods need."""


@pytest.fixture(scope="module")
def comparison():
    start = {"sigma2_eps": 1e4, "sigma2_eta": 1e4}
    data = nile.load()
    em = EM(nile.model, "exact", max_steps=600)
    key = jax.random.key(SEED)
    return compare_algorithms(
        em, NAMES, key, **data, tol=1e-8, init_params=start, progress_bar=False
    )


def test_all_algorithms_reach_the_reference(comparison):
    reference = nile.REFERENCE
    for name, result in comparison.results.items():
        assert result.converged, name
        for site, value in reference["params"].items():
            error = float(result.params[site] - value) / reference["standard_errors"][site]
            assert abs(error) < 1e-5, name
        assert abs(result.log_likelihood.value - reference["log_likelihood"]) < 1e-9, name


def test_no_algorithm_lowers_the_likelihood(comparison):
    for name, result in comparison.results.items():
        floor = rounding(result.log_likelihood.value, np.dtype(float))
        assert np.all(result.history["change"] >= -floor), name


@pytest.mark.parametrize("name", AT_MOST)
def test_work(comparison, name):
    assert comparison.table().loc[name, "to_tol"] <= AT_MOST[name]


def test_evaluations_are_counted(comparison):
    em, newton = comparison.results["em"].history, comparison.results["newton"].history
    np.testing.assert_array_equal(em["evaluations"], np.arange(len(em["objective"])) + 2)
    assert np.all(np.diff(newton["evaluations"]) >= 3)  # a gradient, and a Hessian of two columns
    assert set(comparison.results["direct"].history["phase"]) <= {"direct", "newton"}


def test_decisions_are_in_the_history(comparison):
    decisions = list(filter(None, comparison.results["hybrid"].history["decision"]))
    assert "at the observed rate 0." in decisions[0] and "on by Newton steps" in decisions[0]
    assert not any(comparison.results["em"].history["decision"])


def test_comparison_as_table_text_tree_and_picture(comparison, tmp_path):
    table = comparison.table()
    assert list(table.index) == list(NAMES) and table["gap"].max() < 1e-9
    assert abs(table.loc["em", "rate"] - 0.974) < 0.001 and np.isnan(table.loc["direct", "rate"])
    assert "Plain EM needs" in str(comparison) and "97 % of the information" in str(comparison)
    comparison.to_datatree().to_netcdf(tmp_path / "found.nc", engine="h5netcdf")
    tree = xarray.open_datatree(tmp_path / "found.nc", engine="h5netcdf")
    np.testing.assert_allclose(tree["comparison"]["to_tol"], table["to_tol"])
    assert tree["em"]["gap"].size == comparison.results["em"].num_steps
    comparison.plot().savefig(tmp_path / "found.png")


def linear_map(rate):
    """x -> x* + A (x - x*) with eigenvalues up to `rate`, as EM near its limit."""
    directions = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    matrix = directions @ np.diag([0.1, 0.3, 0.6, rate]) @ directions.T
    limit = np.arange(4.0)
    return lambda x: limit + matrix @ (x - limit), limit


@pytest.mark.parametrize("make", [Squarem, Anderson])
def test_accelerators_on_a_linear_map(make):
    em_map, limit = linear_map(0.99)
    method, x, scale = make(), np.zeros(4), np.ones(4)
    for _ in range(34):
        proposal = method.propose(em_map, x, em_map(x), scale)
        x = proposal.x
    assert np.linalg.norm(x - limit) < 1e-6  # 100 plain steps leave a third of the distance


def test_anderson_sees_the_rate():
    em_map, _ = linear_map(0.99)
    method, x = Anderson(), np.zeros(4)
    for _ in range(6):
        proposal = method.propose(em_map, x, em_map(x), np.ones(4))
        x = proposal.x
    assert abs(proposal.rate - 0.99) < 1e-3


def test_a_coordinate_at_a_boundary_is_left_to_em():
    def em_map(x):
        return np.array([0.9 * x[0], x[1] - 5.0])  # the second runs off, and matters nowhere

    proposal = Squarem(bound=100.0).propose(
        em_map, np.array([1.0, -30.0]), np.array([0.9, -35.0]), np.array([1.0, 1e9])
    )
    assert abs(proposal.x[0]) < 1e-12 and proposal.x[1] == -45.0


@pytest.mark.long
def test_direct_maximises_the_bound_of_mean_field():
    y = np.sqrt(5.0) * np.where(np.arange(20) % 2, 1.0, -1.0)
    result = Direct(two_latents, "mean_field").run(jax.random.key(SEED), y, progress_bar=False)
    assert result.converged and result.log_likelihood.kind == "lower_bound"
    s = 5.0
    biased = ((s - 4) + np.sqrt((s - 4) ** 2 + 16 * (s - 1))) / 8
    np.testing.assert_allclose(result.params["v"], biased, rtol=1e-5)


@pytest.mark.parametrize("e_step", ["laplace", pytest.param("quadrature", marks=pytest.mark.long)])
def test_direct_and_em_agree_on_approximations(e_step):
    toy = logit_normal()
    fits = [
        kind(toy.model, e_step).run(jax.random.key(SEED), progress_bar=False, **toy.data)
        for kind in (EM, Direct)
    ]
    errors = fits[0].standard_errors()
    for name, error in errors.items():
        assert abs(fits[0].params[name] - fits[1].params[name]) < 1e-4 * error
    assert fits[1].converged and set(fits[1].history["phase"]) <= {"direct", "newton"}


@pytest.mark.long
def test_direct_by_draws():
    toy = normal_normal()
    result = Direct(toy.model, "nuts").run(jax.random.key(SEED), progress_bar=False, **toy.data)
    assert result.converged and set(result.history["phase"]) == {"polish"}
    np.testing.assert_allclose(result.params["theta"], toy.reference["params"]["theta"], atol=0.01)


def means(y):
    """Two means; the maximum is at them, unless something holds it back."""
    mu = numpyro.param("mu", jnp.array([0.3, 0.1]))
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Normal(mu, 1.0).to_event(1))
        numpyro.sample("y", dist.Normal(z, sd).to_event(1), obs=y)


ROWS = np.array([2.0, 1.0]) + 1.7 * np.random.default_rng(1).normal(size=(50, 2))


@pytest.mark.long
def test_direct_keeps_constraints():
    inside = {"disc": Constraint(lambda p: jnp.sum(p["mu"] ** 2), upper=1.0)}
    em, direct = (
        kind(means, "exact", constraints=inside).run(jax.random.key(SEED), ROWS, progress_bar=False)
        for kind in (EM, Direct)
    )
    assert direct.converged
    mean = ROWS.mean(axis=0)
    for result in (em, direct):  # the nearest point of the disc, by symmetry
        np.testing.assert_allclose(result.params["mu"], mean / np.linalg.norm(mean), atol=1e-6)
    (price,), (same,) = em.active_constraints, direct.active_constraints
    assert price.multiplier > 0
    np.testing.assert_allclose(price.multiplier, same.multiplier, rtol=1e-5)


@pytest.mark.parametrize(
    "fit",
    [
        EM(means, "exact", fixed={"sd": 1.234}, acceleration="squarem"),
        EM(means, "exact", fixed={"sd": 1.234}, acceleration="anderson"),
        EM(means, "exact", fixed={"sd": 1.234}, finish="direct", stopping=Stopping(gap=1e-14)),
        EM(means, "exact", fixed={"sd": 1.234}, finish="auto"),
        Direct(means, fixed={"sd": 1.234}),
        Direct(means, fixed={"sd": 1.234}, method="nelder-mead"),
    ],
    ids=["squarem", "anderson", "finish", "auto", "direct", "nelder-mead"],
)
def test_fixed_parameters_stay(fit):
    result = fit.run(jax.random.key(SEED), ROWS, progress_bar=False)
    assert result.params["sd"] == np.float64(1.234)
    assert np.all(result.history["sd"] == np.float64(1.234))
    np.testing.assert_allclose(result.params["mu"], ROWS.mean(axis=0), atol=1e-5)


def test_budgets_of_the_direct_method():
    short = Direct(nile.model, max_steps=3)
    result = short.run(jax.random.key(SEED), progress_bar=False, **nile.load())
    assert result.status is Status.MAX_STEPS and result.num_steps == 3
    hurried = Direct(nile.model, stopping=Stopping(max_seconds=0.0))
    result = hurried.run(jax.random.key(SEED), progress_bar=False, **nile.load())
    assert result.status is Status.MAX_SECONDS


def test_budgets_hold_when_em_is_left():
    hybrid = EM(nile.model, "exact", finish="auto", max_steps=7)
    result = hybrid.run(jax.random.key(SEED), progress_bar=False, **nile.load())
    assert result.status is Status.MAX_STEPS and result.num_steps == 7
    assert "newton" in result.history["phase"]


def test_gaps_are_those_of_what_is_maximised():
    def pulled(y):
        sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
        numpyro.factor("pull", -3.0 * sd)
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Normal(0.0, sd))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    key, names = jax.random.key(SEED), ["em", "direct"]
    found = compare_algorithms(pulled, names, key, ROWS[:, 0], progress_bar=False)
    assert all(result.penalty < -1 for result in found.results.values())
    assert np.all(np.abs(found.table()["gap"]) < 1e-9)


@pytest.mark.parametrize(
    ("run", "match"),
    [
        (lambda: EM(means, acceleration="warp"), "Option `acceleration`: found 'warp'"),
        (lambda: EM(means, finish="soon"), "Option `finish`: found 'soon'"),
        (lambda: Direct(means, method="sgd"), "Option `method`: found 'sgd'"),
        (
            lambda: EM(means, "nuts", acceleration="squarem").run(jax.random.key(0), ROWS),
            "Option `acceleration`: 'squarem' would multiply Monte Carlo noise",
        ),
        (
            lambda: Direct(
                means, method="bfgs", constraints={"low": Constraint("mu", upper=1.0)}
            ).run(jax.random.key(0), ROWS),
            r"Option `method`: 'bfgs' does not take bounds on single parameters \('low'\)",
        ),
        (
            lambda: Direct(means, MeanField(mode="stochastic")).run(jax.random.key(0), ROWS),
            "Option `e_step`: a guide fitted by stochastic gradients moves",
        ),
        (
            lambda: compare_algorithms(means, ["em", "magic"], jax.random.key(0), ROWS),
            "Option `algorithms`: found 'magic'",
        ),
        (
            lambda: compare_algorithms(EM(means, "nuts"), ["default"], jax.random.key(0), ROWS),
            "Option `e_step`: 'nuts' has no log-likelihood without noise",
        ),
    ],
)
def test_errors(run, match):
    with pytest.raises(ModelError, match=match):
        run()


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "_configure_jax", lambda: None)
    picture, table = tmp_path / "race.png", tmp_path / "race.nc"
    names = ["compare", "linkage", "--algorithms", "em,direct,hybrid", "--json"]
    assert cli.main([*names, "--plot", str(picture), "--out", str(table)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["em"]["to_tol"] >= report["direct"]["to_tol"] > 0 and "sentence" in report
    assert picture.exists() and table.exists()
    for more in (
        ["--algorithm", "direct"],
        ["--algorithm", "hybrid"],
        ["--acceleration", "squarem"],
    ):
        assert cli.main(["fit", "linkage", "--json", *more]) == 0
        assert abs(json.loads(capsys.readouterr().out)["params"]["pi"] - 0.6268214980) < 1e-7
    assert cli.main(["fit", "linkage", "--method", "lbfgs"]) == 2
    assert "--method: it belongs to --algorithm direct" in capsys.readouterr().err
