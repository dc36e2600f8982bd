"""Priors of maximised sites and penalties are told apart from the log-likelihood."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from scipy.optimize import minimize_scalar

import ppl_em
from ppl_em import EM
from ppl_em.cli import commands as cli

Y = np.random.default_rng(11).normal(size=30) * 1.5
RATE = 3.0


def fit(model, *args, e_step="auto", **options):
    return EM(model, e_step, **options).run(jax.random.key(SEED), *args, progress_bar=False)


def groups(tau, y):
    with numpyro.plate("groups", len(y)):
        z = numpyro.sample("z", dist.Normal(0.0, tau))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def with_prior(y):
    groups(numpyro.sample("tau", dist.Gamma(2.0, RATE)), y)


def with_factor(y):
    tau = numpyro.param("tau", 1.0, constraint=constraints.positive)
    numpyro.factor("avoid_zero", dist.Gamma(2.0, RATE).log_prob(tau))
    groups(tau, y)


def marginal(tau):
    """Marginally y ~ Normal(0, sqrt(1 + tau^2))."""
    variance = 1 + tau**2
    return -0.5 * (len(Y) * np.log(2 * np.pi * variance) + np.sum(Y**2) / variance)


def gamma(tau):
    return 2 * np.log(RATE) + np.log(tau) - RATE * tau


@pytest.fixture(scope="module", params=["prior", "factor"])
def gamma_fit(request):
    if request.param == "prior":
        return "tau", fit(with_prior, Y, map_sites=["tau"])
    return "avoid_zero", fit(with_factor, Y)


def test_gamma_prior_on_a_scale(gamma_fit):
    """The maximum over one number, and both values there, by scipy."""
    name, result = gamma_fit
    best = minimize_scalar(lambda t: -marginal(t) - gamma(t), bracket=(0.3, 1.0), tol=1e-12)
    tau = float(result.params["tau"])
    assert result.converged
    assert tau == pytest.approx(best.x, rel=1e-6)
    assert result.log_likelihood.value == pytest.approx(marginal(tau), rel=1e-12)
    assert result.log_likelihood.kind == "exact"
    assert list(result.penalties) == [name]
    assert result.penalty == pytest.approx(gamma(tau), rel=1e-12)
    assert result.penalised == pytest.approx(-best.fun, rel=1e-12)
    assert f"penalised {result.penalised:.6f}" in str(result)
    assert "penalised" in result.uncertainty.method


def test_ascent_and_curvature_are_those_of_the_penalised_value(gamma_fit):
    _, result = gamma_fit
    objective = result.history["objective"]
    assert np.all(np.diff(objective) > -1e-12) and len(objective) > 2
    assert objective[-1] == pytest.approx(result.penalised, rel=1e-13)
    tau, h = float(result.params["tau"]), 1e-3
    value = lambda s: marginal(np.exp(s)) + gamma(np.exp(s))  # noqa: E731
    s = np.log(tau)  # the delta method from the log scale
    curvature = -(value(s + h) - 2 * value(s) + value(s - h)) / h**2
    assert result.standard_errors()["tau"] == pytest.approx(tau / np.sqrt(curvature), rel=1e-4)


def test_penalties_are_saved(gamma_fit, tmp_path):
    _, result = gamma_fit
    result.save(tmp_path / "fit.nc")
    again = ppl_em.load(tmp_path / "fit.nc")
    assert again.penalties == result.penalties and again.penalised == result.penalised


def test_audit_compares_like_with_like():
    result = fit(with_prior, Y, map_sites=["tau"], e_step="laplace")
    audit = result.audit(jax.random.key(SEED), "exact")
    assert abs(audit.gap) < 1e-8  # Laplace is exact here
    assert audit.log_likelihood.value == pytest.approx(marginal(float(result.params["tau"])))


def test_ridge():
    """y ~ Normal(X b, S) with S = 1 + Z Z': b = (X' S^-1 X + penalty)^-1 X' S^-1 y."""
    draw = np.random.default_rng(5)
    group = np.repeat(np.arange(10), 4)
    x = draw.normal(size=(40, 3))
    y = x @ [1.0, -2.0, 0.5] + draw.normal(size=10)[group] + draw.normal(size=40)

    def ridge(x, y, strength):
        b = numpyro.param("b", jnp.zeros(3))
        numpyro.factor("ridge", -0.5 * strength * jnp.sum(b**2))
        with numpyro.plate("groups", 10):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", 40):
            numpyro.sample("y", dist.Normal(x @ b + z[group], 1.0), obs=y)

    for strength in (7.0, jnp.array(7.0)):
        result = fit(ridge, x, y, strength)
        covariance = np.eye(40) + (group[:, None] == group)
        weighted = np.linalg.solve(covariance, x)
        precision = weighted.T @ x + 7.0 * np.eye(3)
        b = np.linalg.solve(precision, weighted.T @ y)
        errors = np.sqrt(np.diag(np.linalg.inv(precision)))
        assert np.max(np.abs(result.params["b"] - b) / errors) < 3e-6  # a gain of 1e-12 is left
        b = np.asarray(result.params["b"])
        residual = y - x @ b
        value = -0.5 * (
            residual @ np.linalg.solve(covariance, residual)
            + np.linalg.slogdet(2 * np.pi * covariance)[1]
        )
        assert result.log_likelihood.value == pytest.approx(value, rel=1e-10)
        assert result.penalties == {"ridge": pytest.approx(-3.5 * b @ b)}
        np.testing.assert_allclose(result.covariance(), np.linalg.inv(precision), rtol=1e-5)


def from_latents(y):
    """A prior and a factor that depend on latents are part of the model."""
    with numpyro.plate("groups", len(y)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    m = numpyro.sample("m", dist.Normal(z[0], 1.0))
    numpyro.factor("tie", -0.5 * jnp.sum((z - m) ** 2))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(m + z, 1.0), obs=y)


def of_data(y):
    """A factor on the data is a likelihood."""
    mu = numpyro.param("mu", 0.0)
    numpyro.factor("rows", jnp.sum(dist.Normal(mu, 2.0).log_prob(y)))
    groups(1.0, y)


def of_captured_data():
    """So is the only one that there is."""
    mu = numpyro.param("mu", 0.0)
    numpyro.factor("rows", jnp.sum(dist.Normal(mu, 2.0).log_prob(Y)))


def of_closed_over_data(y):
    """Or one beside an argument that cannot be traced."""
    np.unique(np.asarray(y))
    of_data(y)


@pytest.mark.parametrize(
    ("model", "args", "sites"),
    [
        (from_latents, (Y,), ["m"]),
        (of_data, (Y,), []),
        (of_captured_data, (), []),
        (of_closed_over_data, (Y,), []),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_belongs_to_the_model_stays(model, args, sites):
    result = fit(model, *args, map_sites=sites, max_steps=3)
    assert result.penalties == {} and result.penalty == 0
    assert result.penalised == result.log_likelihood.value
    assert result.history["objective"][-1] == pytest.approx(result.penalised, rel=1e-12)


def chain(y):
    """Discrete states along a scan, in which a penalty stands."""
    stay = numpyro.sample("stay", dist.Beta(8.0, 2.0))
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    with numpyro.plate("states", 2):
        numpyro.factor("shrink", -0.1 * mu**2)
    rows = jnp.stack([jnp.stack([stay, 1 - stay]), jnp.stack([1 - stay, stay])])

    def step(before, y):
        state = numpyro.sample("state", dist.Categorical(rows[before]))
        numpyro.sample("y", dist.Normal(mu[state], 1.0), obs=y)
        return state, None

    scan(step, 0, y)


@pytest.mark.long
def test_beside_a_chain_of_states():
    """The forward recursion by hand at the fitted parameters."""
    result = fit(chain, Y, map_sites=["stay"], max_steps=5)
    stay, mu = float(result.params["stay"]), np.asarray(result.params["mu"])
    move = np.array([[stay, 1 - stay], [1 - stay, stay]])
    log_prob, state = 0.0, np.array([1.0, 0.0])
    for value in Y:
        state = state @ move * np.exp(-0.5 * (value - mu) ** 2) / np.sqrt(2 * np.pi)
        log_prob += np.log(state.sum())
        state /= state.sum()
    assert result.log_likelihood.value == pytest.approx(log_prob, rel=1e-10)
    prior = float(dist.Beta(8.0, 2.0).log_prob(stay))
    assert result.penalties == pytest.approx({"stay": prior, "shrink": -0.1 * mu @ mu})


def test_from_the_command_line(tmp_path, capsys):
    path = tmp_path / "shrunk.py"
    path.write_text(
        "import jax.numpy as jnp, numpyro, numpyro.distributions as dist\n"
        "def model():\n"
        "    mu = numpyro.sample('mu', dist.Normal(0.0, 1.0))\n"
        "    z = numpyro.sample('z', dist.Normal(mu, 1.0))\n"
        "    numpyro.sample('y', dist.Normal(z, 1.0), obs=jnp.array(3.0))\n"
        "def load():\n    return {}\n"
    )
    command = ["fit", str(path), "--map-sites", "mu", "--no-progress"]
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # y ~ Normal(mu, variance 2) and mu ~ Normal(0, 1): mu = 3 / 3
    assert found["params"]["mu"] == pytest.approx(1.0)
    value = -1.0 - 0.5 * np.log(4 * np.pi)
    assert found["log_likelihood"]["value"] == pytest.approx(value)
    assert found["penalties"] == {"mu": pytest.approx(-0.5 - 0.5 * np.log(2 * np.pi))}
    assert found["penalised"] == pytest.approx(value + found["penalties"]["mu"])
    assert cli.main(command) == 0
    assert f", penalised {found['penalised']:.6f}" in capsys.readouterr().out
