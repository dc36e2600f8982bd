"""Audits of fits whose errors are known: closed forms, and maxima found without the library."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED, load_model
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from small_models import POSITIVE
from toy_models import two_latents

import ppl_em
from ppl_em import EM, ModelError
from ppl_em.e_step import FLAGS, NUTS, Exact
from ppl_em.stats import Health

seeds = load_model("seeds")
Y = np.sqrt(5.0) * np.where(np.arange(20) % 2, 1.0, -1.0)


def fit(model, e_step, *args, max_steps=500, finish="auto", **kwargs):
    em = EM(model, e_step=e_step, max_steps=max_steps, finish=finish)
    return em.run(jax.random.key(SEED), *args, progress_bar=False, **kwargs)


def two_variances(y):
    """Only the sum of the two variances is identified."""
    va = numpyro.param("va", 1.0, constraint=POSITIVE)
    vb = numpyro.param("vb", 0.5, constraint=POSITIVE)
    with numpyro.plate("rows", len(y)):
        a = numpyro.sample("a", dist.Normal(0.0, jnp.sqrt(va)))
        b = numpyro.sample("b", dist.Normal(0.0, jnp.sqrt(vb)))
        numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)


def centered(y):
    q = numpyro.param("q", 0.5, constraint=POSITIVE)
    r = numpyro.param("r", 1.0, constraint=POSITIVE)
    level = numpyro.sample("level", dist.GaussianRandomWalk(jnp.sqrt(q), num_steps=len(y)))
    numpyro.sample("y", dist.Normal(level, jnp.sqrt(r)).to_event(1), obs=y)


def non_centered(y):
    q = numpyro.param("q", 0.5, constraint=POSITIVE)
    r = numpyro.param("r", 1.0, constraint=POSITIVE)
    e = numpyro.sample("e", dist.Normal(0.0, 1.0).expand([len(y)]).to_event(1))
    level = jnp.sqrt(q) * jnp.cumsum(e)
    numpyro.sample("y", dist.Normal(level, jnp.sqrt(r)).to_event(1), obs=y)


@pytest.fixture(scope="module")
def biased():
    return fit(two_latents, "mean_field", Y)


@pytest.fixture(scope="module")
def exact():
    return fit(two_latents, "exact", Y)


def log_likelihood(v):
    """y ~ Normal(0, 1 + 2 v), twenty times, with mean square 5."""
    return -10 * (np.log(2 * np.pi * (1 + 2 * v)) + 5 / (1 + 2 * v))


def test_mean_field_fit_of_two_latents(biased):
    """The maximum is v = 2 with the standard error (1 + 2 v) / sqrt(2 n); mean-field has 1.133."""
    audit = biased.audit(jax.random.key(SEED))
    v, se = float(biased.params["v"]), 5 / np.sqrt(40)
    true_shift = (2 - v) / se
    np.testing.assert_allclose(audit.corrected, [2.0], rtol=1e-5)
    np.testing.assert_allclose(audit.se, [se], rtol=1e-4)
    np.testing.assert_allclose(audit.shift, [true_shift], rtol=1e-4)
    np.testing.assert_allclose(audit.one_step, [true_shift], rtol=0.1)  # 5 % in truth
    assert true_shift > 1 and audit.trusted and np.all(audit.shift_mcse == 0)
    assert (audit.fit, audit.e_step) == ("mean_field", "exact")
    assert audit.log_likelihood.kind == "exact"
    np.testing.assert_allclose(audit.log_likelihood.value, log_likelihood(v), rtol=1e-9)
    assert audit.gap == audit.log_likelihood.value - biased.log_likelihood.value > 3
    assert audit.gap_mcse == biased.log_likelihood.mcse > 0
    assert audit.khat == biased.log_likelihood.pareto_khat
    expected = "`v` is 1.1 standard errors too small under mean_field; use e_step='exact'."
    assert audit.sentence == expected and str(audit).endswith(expected)
    table = audit.table()
    assert list(table.index) == ["v"]
    assert list(table) == ["estimate", "se", "shift", "shift_mcse", "one_step", "corrected"]


def test_exact_fit_has_no_shift(exact):
    audit = exact.audit(jax.random.key(SEED))
    assert abs(audit.shift[0]) < 1e-5 and audit.trusted
    assert abs(audit.gap) < 1e-9 and audit.khat is None
    assert audit.sentence.startswith("Nothing wrong is seen by exact")


def test_a_fit_that_was_cut_short(exact):
    short = fit(two_latents, "exact", Y, max_steps=1)
    audit = short.audit(jax.random.PRNGKey(SEED))
    distance = float(exact.params["v"] - short.params["v"]) / (5 / np.sqrt(40))
    np.testing.assert_allclose(audit.shift, [distance], rtol=1e-5)
    assert "too small under exact: it had not converged" in audit.sentence


@pytest.mark.long
@pytest.mark.parametrize(("model", "sign"), [(centered, -1), (non_centered, 1)])
def test_mean_field_fits_of_a_local_level(model, sign):
    """The sign of mean-field's bias depends on the parameterisation; the maximum does not."""
    rng = np.random.default_rng(3)
    y = np.cumsum(0.5 * rng.normal(size=25)) + rng.normal(size=25)
    times = np.minimum.outer(np.arange(25), np.arange(25)) + 1.0

    def loss(x):
        covariance = np.exp(x[0]) * times + np.exp(x[1]) * np.eye(25)
        return -multivariate_normal(cov=covariance).logpdf(y)

    best = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 0})
    result = fit(model, "mean_field", jnp.asarray(y), max_steps=300)
    audit = result.audit(jax.random.key(SEED))
    np.testing.assert_allclose(audit.corrected, np.exp(best.x), rtol=1e-4)
    q_shift = audit.shift[audit.labels.index("q")]
    assert sign * q_shift > 0.5 and "under mean_field" in audit.sentence
    assert audit.shift[audit.labels.index("r")] * q_shift < 0
    assert audit.log_likelihood.value < -best.fun
    fitted = np.log([float(result.params["q"]), float(result.params["r"])])
    np.testing.assert_allclose(audit.log_likelihood.value, -loss(fitted), rtol=1e-8)


@pytest.mark.parametrize(
    ("e_step", "max_steps"),
    [
        ("mean_field", 15),
        pytest.param("mean_field", 500, marks=pytest.mark.long),
        pytest.param("nuts", 500, marks=pytest.mark.long),
    ],
)
def test_seeds_by_draws(e_step, max_steps):
    """Against the reference maximum and its standard errors, within the audit's own error.

    Mean-field finds nearly the maximum here, so a run cut short gives the audit more to see.
    """
    result = fit(seeds.model, e_step, max_steps=max_steps, **seeds.load())
    audit = result.audit(jax.random.key(SEED), "nuts")
    reference = seeds.REFERENCE
    se = ravel_pytree(reference["standard_errors"])[0]
    true_shift = (ravel_pytree(reference["params"])[0] - ravel_pytree(result.params)[0]) / se
    error = np.abs(audit.shift - true_shift)
    assert np.all(error < 3.5 * audit.shift_mcse + 0.2 * np.abs(true_shift))
    assert np.all((audit.shift_mcse > 0) & (audit.shift_mcse < 0.06)) and audit.trusted
    assert audit.e_step == "nuts" and audit.log_likelihood.kind == "estimate"
    assert audit.sentence.startswith("Nothing wrong is seen by nuts") == result.converged
    gap = reference["log_likelihood"] - result.log_likelihood.value
    assert abs(audit.gap - gap) < 4 * audit.gap_mcse + 0.005


@pytest.mark.long
def test_audit_by_draws_of_a_fit_far_off(biased):
    audit = biased.audit(jax.random.key(SEED), NUTS(num_samples=100))
    true_shift = (2 - float(biased.params["v"])) / (5 / np.sqrt(40))
    assert abs(audit.shift[0] - true_shift) < 4 * audit.shift_mcse[0]
    assert "too small under mean_field; use e_step='nuts'" in audit.sentence


def test_singular_information_is_said():
    result = fit(two_variances, "mean_field", Y, max_steps=30, finish=None)
    audit = result.audit(jax.random.key(SEED))
    assert not audit.trusted and np.all(np.isnan(audit.shift))
    assert "not to be trusted" in audit.sentence and "not positive definite" in audit.sentence
    assert "va" in audit.reason and "vb" in audit.reason


def test_sick_chains_are_said(biased, monkeypatch):
    sick = Health(1000, 1.0, {}, ("7 of 1000 transitions diverged",), "Reparameterise.")
    monkeypatch.setattr(NUTS, "diagnose", lambda self, stats, scores: sick)
    audit = biased.audit(jax.random.key(SEED), NUTS(2, num_samples=20, num_warmup=40))
    assert not audit.trusted and np.all(np.isnan(audit.corrected))
    assert "not to be trusted" in audit.sentence and "7 of 1000 transitions" in audit.sentence


def test_auto_takes_the_strongest_that_applies(biased, monkeypatch):
    """A stand-in for quadrature, after an exact E-step that refuses, and before NUTS."""

    class Quadrature(Exact):
        pass

    class Refusing(Exact):
        def resolve(self, rng_key, problem, params):
            raise ModelError("Site 'a': not for me.")

    monkeypatch.setitem(FLAGS, "exact", Refusing)
    monkeypatch.setitem(FLAGS, "quadrature", Quadrature)
    audit = biased.audit(jax.random.key(SEED))
    assert audit.e_step == "quadrature" and audit.sentence.endswith("use e_step='quadrature'.")


def test_what_cannot_be_audited(biased, exact, tmp_path):
    with pytest.raises(ModelError, match=r"no stronger than the 'exact'"):
        exact.audit(jax.random.key(SEED), "nuts")
    with pytest.raises(ModelError, match=r"no stronger than the 'mean_field'.*'nuts'"):
        biased.audit(jax.random.key(SEED), "mean_field")
    with pytest.raises(ModelError, match="Valid flags"):
        biased.audit(jax.random.key(SEED), "magic")
    with pytest.raises(ModelError, match="rng_key"):
        biased.audit(0)
    exact.save(tmp_path / "fit.nc")
    with pytest.raises(ModelError, match="does not hold the model"):
        ppl_em.load(tmp_path / "fit.nc").audit(jax.random.key(SEED))


def test_the_same_e_step_may_look_again_but_no_weaker_one():
    em = EM(two_variances, "laplace", fixed={"vb": 1.0})
    result = em.run(jax.random.key(SEED), Y, progress_bar=False)
    audit = result.audit(jax.random.key(SEED), "laplace")
    assert audit.trusted and audit.e_step == audit.fit == "laplace"
    assert np.all(np.abs(audit.shift) < 0.01)
    with pytest.raises(ModelError, match=r"no stronger .* 'nuts', 'quadrature', 'exact', 'auto'"):
        result.audit(jax.random.key(SEED), "mean_field")
