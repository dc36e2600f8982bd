"""Planted illnesses are found, each by its name; healthy fits are left in peace."""

import dataclasses
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import load_model
from small_models import POSITIVE

from ppl_em import EM, Constraint, EMResult, LogLikelihood, Stopping, load
from ppl_em.e_step import NUTS
from ppl_em.result import Uncertainty

Y = np.random.default_rng(3).normal(size=(30, 4)) + np.random.default_rng(4).normal(size=(30, 1))


def groups(y):
    """Random intercepts."""
    mean = numpyro.param("mean", 0.0)
    between = numpyro.param("between", 1.0, constraint=POSITIVE)
    within = numpyro.param("within", 1.0, constraint=POSITIVE)
    with numpyro.plate("groups", len(y)):
        z = numpyro.sample("z", dist.Normal(mean, between))
        with numpyro.plate("rows", y.shape[1], dim=-2):
            numpyro.sample("y", dist.Normal(z, within), obs=y.T)


def two_normals(y):
    weight = numpyro.param("weight", 0.5, constraint=dist.constraints.unit_interval)
    mean = numpyro.param("mean", jnp.array([0.0, 1.0]))
    sd = numpyro.param("sd", jnp.array([1.0, 1e-3]), constraint=POSITIVE)
    with numpyro.plate("rows", len(y)):
        k = numpyro.sample("k", dist.Bernoulli(weight))
        numpyro.sample("y", dist.Normal(mean[k], sd[k]), obs=y)


def fit(model, y=Y, **options) -> EMResult:
    with warnings.catch_warnings(action="ignore"):
        return EM(model, **options).run(jax.random.key(0), y, progress_bar=False)


@pytest.fixture(scope="module")
def healthy() -> EMResult:
    return fit(groups)


def topics(result: EMResult, *args) -> list[str]:
    with warnings.catch_warnings(action="ignore"):
        found = result.diagnose(*args)
    assert all(finding.evidence and str(finding).startswith(finding.topic) for finding in found)
    assert str(found).count("\n") == max(len(found) - 1, 0)
    return [finding.topic for finding in found]


def changed(result: EMResult, uncertainty: Uncertainty | None = None, **fields) -> EMResult:
    """The fit with other facts planted in it."""
    found = uncertainty or result.uncertainty
    return dataclasses.replace(
        result, parts=types.SimpleNamespace(uncertainty=lambda: found), **fields
    )


def test_nothing_speaks_against_a_healthy_fit(healthy, tmp_path):
    assert topics(healthy) == []
    assert str(healthy.diagnose()) == "Nothing speaks against this fit."
    healthy.save(tmp_path / "fit.nc")
    assert topics(load(tmp_path / "fit.nc")) == []
    assert topics(healthy, healthy.audit(jax.random.key(1))) == []


def test_no_variance_between_groups():
    found = fit(groups, Y - Y.mean(1, keepdims=True)).diagnose()
    assert [f.topic for f in found] == ["boundary"]
    assert "between" in found[0].evidence and not found[0].serious


def test_two_intercepts_for_one():
    (found,) = fit(sum_of_two).diagnose()
    assert found.topic == "standard errors" and "a" in found.evidence and "b" in found.evidence


def sum_of_two(y):
    mean = numpyro.param("a", 0.0) + numpyro.param("b", 0.0)
    with numpyro.plate("groups", len(y)):
        z = numpyro.sample("z", dist.Normal(mean, 1.0))
        with numpyro.plate("rows", y.shape[1], dim=-2):
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y.T)


def test_a_component_on_one_observation():
    y = np.append(np.random.default_rng(5).normal(size=40), 1.0)
    found = fit(two_normals, y, finish=None).diagnose()
    assert [f.topic for f in found] == ["degenerate"] and found[0].serious


def test_a_budget_that_is_spent():
    (found,) = fit(groups, max_steps=1, finish=None).diagnose()
    assert found.topic == "max steps" and found.serious and "init_params" in found.next_step


def test_a_constraint_that_holds():
    capped = Constraint(lambda params: params["mean"], upper=float(Y.mean()) - 0.1)
    assert "constraint" in topics(fit(groups, constraints=(capped,)))


def test_a_bound_that_nobody_has_looked_at():
    bound = fit(groups, e_step="mean_field")
    assert topics(bound)[-1] == "bias"
    audit = bound.audit(jax.random.key(1))
    assert topics(bound, audit) == []  # groups are independent: the bound is sharp
    far = dataclasses.replace(audit, shift=audit.shift + 0.5)
    assert topics(bound, far) == ["bias"]


def test_weights_with_heavy_tails(healthy):
    sick = LogLikelihood(-170.0, "estimate", mcse=0.7, pareto_khat=0.9)
    assert topics(changed(healthy, log_likelihood=sick)) == ["k-hat", "too few draws"]


def test_noise_that_hides_an_estimate(healthy):
    known = healthy.uncertainty
    noisy = dataclasses.replace(known, mcse=0.4 * np.sqrt(np.diag(known.covariance)))
    assert topics(changed(healthy, noisy)) == ["too few draws"]


def test_divergences(healthy):
    history = healthy.history | {"divergences": np.array([30.0, 0.0, 2.0])}
    assert topics(changed(healthy, history=history)) == ["divergences"]
    history["divergences"] = np.array([30.0, 2.0, 0.0])
    assert topics(changed(healthy, history=history)) == []


def test_chains_in_mirrored_places(healthy, rng_key):
    draws = np.asarray(jax.random.normal(rng_key, (4, 100, 30)))
    inner = types.SimpleNamespace(by_draws=True, draws=draws)
    posterior = types.SimpleNamespace(inner=inner, problem=healthy.posterior.problem)
    assert topics(changed(healthy, posterior=posterior)) == []
    inner.draws = draws + 4 * np.array([1.0, -1, 1, -1])[:, None, None]
    assert topics(changed(healthy, posterior=posterior)) == ["labels or signs"]


def test_float32_that_is_too_coarse(healthy):
    single = {name: np.asarray(value, np.float32) for name, value in healthy.params.items()}
    small = changed(healthy, params=single)
    assert topics(small) == []
    large = changed(healthy, params=single, log_likelihood=LogLikelihood(-2e5, "exact"))
    assert topics(large) == ["float32"]


def test_an_optimum_that_few_starts_find(healthy):
    optimum = types.SimpleNamespace(note="", starts=(3,))
    record = types.SimpleNamespace(optima=[optimum, optimum], cluster=np.zeros(20))
    assert topics(changed(healthy, restarts=record)) == ["several optima"]
    optimum.note = "component 2 is empty"
    assert topics(changed(healthy, restarts=record)) == ["components", "several optima"]


def test_what_is_serious_comes_first(healthy):
    one = fit(groups, max_steps=1, finish=None)
    sick = LogLikelihood(-170.0, "estimate", mcse=0.1, pareto_khat=0.9)
    assert topics(changed(one, log_likelihood=sick)) == ["max steps", "k-hat"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("seeds", "laplace"),
        ("seeds", "quadrature"),
        ("seeds", "nuts"),
        ("sleepstudy", "exact"),
        ("nile", "exact"),
        ("faithful", "exact"),
        ("pump", "exact"),
        ("epil", "quadrature"),
        ("lsat", "quadrature"),
        ("earthquakes", "exact"),
    ],
)
def test_models_at_their_maximum_are_healthy(name, flag):
    module = load_model(name)
    result = EM(module.model, flag).run(jax.random.key(0), progress_bar=False, **module.load())
    assert topics(result) == []


@pytest.mark.long
def test_a_funnel_by_nuts():
    """Centered effects with next to no variance: NUTS does not get along with them."""
    y = 0.02 * np.random.default_rng(6).normal(size=(8, 1))
    sick = fit(groups, y, e_step=NUTS(num_samples=50, num_warmup=50), max_steps=20)
    assert not sick.converged and topics(sick)


@pytest.mark.long
def test_too_few_draws_by_nuts():
    stopping = Stopping(max_draws=200)
    sick = fit(groups, Y, e_step=NUTS(num_samples=10, num_chains=2), stopping=stopping)
    assert {*topics(sick)} & {"noise limited", "too few draws", "chains", "standard errors"}
