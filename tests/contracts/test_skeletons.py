"""The skeletons of an E-step, an E-step by draws and an M-step do all that the shipped ones do.

One latent, y_i ~ Normal(z, sigma), z ~ Normal(mu, 1). Marginally the n observations have the
covariance sigma^2 I + 1 1', whose eigenvalue is sigma^2 + n along the mean and sigma^2 elsewhere.
So mu is their mean, with variance 1 + sigma^2 / n, and v = sigma^2 solves
(n - 1) / v + 1 / (v + n) = S / v^2, with S the sum of squares about the mean.
"""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED
from numpyro.distributions import constraints
from skeleton_draws import SIR
from skeleton_grid import Grid
from skeleton_m_step import Uphill

from ppl_em import EM, Stopping, compare_e_steps, load

Y = np.array([0.3, 1.9, -0.4, 1.1, 0.8, 2.3])
KEY = jax.random.key(SEED)

E_STEPS = {"grid": Grid(), "sir": SIR()}


def model(y):
    mu = numpyro.param("mu", 0.0)
    sigma = numpyro.param("sigma", 1.0, constraint=constraints.positive)
    z = numpyro.sample("z", dist.Normal(mu, 1.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(z, sigma), obs=y)


N, MU = len(Y), Y.mean()
S = np.sum((Y - MU) ** 2)
V = (S - N * (N - 1) + np.sqrt((S - N * (N - 1)) ** 2 + 4 * N**2 * S)) / (2 * N)
SIGMA, INFORMATION = np.sqrt(V), S / V**3 - (N - 1) / (2 * V**2) - 1 / (2 * (V + N) ** 2)
SE = np.sqrt([1 + V / N, 1 / (4 * V * INFORMATION)])
COVARIANCE = SIGMA**2 * np.eye(len(Y)) + 1
VALUE = -0.5 * (
    (Y - MU) @ np.linalg.solve(COVARIANCE, Y - MU) + np.linalg.slogdet(2 * np.pi * COVARIANCE)[1]
)


@pytest.fixture(scope="module")
def fits():
    return {
        name: EM(model, e_step).run(KEY, Y, progress_bar=False) for name, e_step in E_STEPS.items()
    }


@pytest.mark.parametrize("name", E_STEPS)
def test_fit_and_errors(name, fits):
    result = fits[name]
    assert result.converged and result.e_step == name
    draws = name == "sir"
    found = np.array([result.params["mu"], result.params["sigma"]], float)
    assert np.all(np.abs(found - [MU, SIGMA]) < (0.1 if draws else 1e-5) * SE)
    value, kind, mcse, _ = result.log_likelihood
    assert kind == ("estimate" if draws else "quadrature")
    assert abs(value - VALUE) < (4 * mcse + 0.01 if draws else 1e-8)
    errors = result.standard_errors()
    np.testing.assert_allclose([errors["mu"], errors["sigma"]], SE, rtol=0.25 if draws else 1e-5)
    if draws:  # confirmed on fresh draws, whose health went to the history
        assert result.history["phase"][-1] == "polish"
        assert result.history["rhat"][-1] < 1.05
    mean, sd = float(result.posterior.mean()["z"]), float(result.posterior.sd()["z"])
    expected = 1 / (1 + len(Y) / SIGMA**2)
    assert abs(sd - np.sqrt(expected)) < 0.1 * sd
    assert abs(mean - MU) < 0.1


@pytest.mark.parametrize("name", E_STEPS)
def test_audit(name, fits):
    audit = fits[name].audit(KEY)
    assert audit.trusted and audit.e_step == "exact" and audit.fit == name
    assert np.all(np.abs(audit.shift) < 0.15)


@pytest.mark.parametrize("name", E_STEPS)
def test_restarts(name):
    stopping = Stopping(mcse_fraction=0.1)
    em = EM(model, E_STEPS[name], num_restarts=2, stopping=stopping)
    result = em.run(KEY, Y, progress_bar=False)
    assert result.restarts.optima[0].share == 1.0


def test_comparison():
    found = compare_e_steps(model, {**E_STEPS, "exact": "exact"}, KEY, Y, progress_bar=False)
    assert set(found.results) == {"grid", "sir", "exact"} and not found.refused
    assert np.all(found.table()["shift"].abs().dropna() < 0.15)


@pytest.mark.parametrize("name", E_STEPS)
def test_datatree_and_file(name, fits, tmp_path):
    tree = fits[name].to_datatree()
    assert tree["posterior"]["z"].dims[:2] == ("chain", "draw")
    fits[name].save(tmp_path / "fit.nc")
    again = load(tmp_path / "fit.nc")
    assert again.e_step == name and again.params == fits[name].params


def test_direct_and_hybrid():
    """Methods that take the objective for a function of the parameters."""
    for options in ({"finish": "direct"}, {"acceleration": "squarem"}):
        result = EM(model, Grid(), **options).run(KEY, Y, progress_bar=False)
        assert result.converged
        assert abs(result.params["mu"] - MU) < 1e-5


def test_m_step():
    result = EM(model, Grid(), Uphill(0.5)).run(KEY, Y, progress_bar=False)
    assert result.converged
    assert abs(result.params["sigma"] - SIGMA) < 1e-4 * SIGMA


def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="e_step='grid' is for one latent"):
        EM(two, Grid()).run(KEY, Y, progress_bar=False)


def two(y):
    mu = numpyro.param("mu", 0.0)
    with numpyro.plate("pair", 2):
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
    numpyro.sample("y", dist.Normal(z.sum(), 1.0).expand([len(y)]).to_event(1), obs=y)
