"""Guides beyond independent normals: full rank, weighted draws, stochastic gradients."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED, load_model
from numpyro.infer import autoguide
from numpyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from small_models import POSITIVE

from ppl_em import EM
from ppl_em.e_step import MeanField
from ppl_em.e_step.variational import psis
from ppl_em.stats import pareto_khat, smooth
from ppl_em.util import ModelError

two_latents = load_model("two_latents")
local_level = load_model("local_level")
Y = two_latents.load()["y"]
S = float(np.mean(Y**2))


def fit(model, *args, max_steps=500, **options):
    em = EM(model, e_step=MeanField(**options), max_steps=max_steps)
    return em.run(jax.random.key(SEED), *args, progress_bar=False)


def biased(s: float) -> float:
    """Where mean-field EM ends on `two_latents`."""
    return ((s - 4) + np.sqrt((s - 4) ** 2 + 16 * (s - 1))) / 8


@pytest.fixture(scope="module")
def plain():
    return fit(two_latents.model, Y)


@pytest.fixture(scope="module")
def full():
    return fit(two_latents.model, Y, guide=AutoMultivariateNormal)


@pytest.fixture(scope="module")
def weighted():
    return fit(two_latents.model, Y, correct="psis")


# --- the two latents: mean-field is biased by a known amount, the others are not ---


def test_mean_field_has_the_known_bias(plain):
    for s in (3.0, 9.0):
        scaled = Y * np.sqrt(s / S)
        np.testing.assert_allclose(fit(two_latents.model, scaled).params["v"], biased(s), rtol=1e-5)
    assert plain.converged
    np.testing.assert_allclose(plain.params["v"], biased(S), rtol=1e-5)
    assert plain.params["v"] < 0.7 * two_latents.REFERENCE["params"]["v"]
    assert plain.history["change"].min() > -1e-9


def test_full_rank_is_exact_where_the_posterior_is_gaussian(full):
    reference = two_latents.REFERENCE
    assert full.converged and full.log_likelihood.kind == "lower_bound"
    assert full.history["change"].min() > -1e-9
    np.testing.assert_allclose(full.params["v"], reference["params"]["v"], rtol=1e-6)
    np.testing.assert_allclose(full.log_likelihood.value, reference["log_likelihood"], atol=1e-5)
    se = full.standard_errors()["v"]
    np.testing.assert_allclose(se, reference["standard_errors"]["v"], rtol=1e-5)


def test_weights_take_the_bias_away(weighted):
    reference = two_latents.REFERENCE
    found, se = weighted.log_likelihood, reference["standard_errors"]["v"]
    assert weighted.converged and found.kind == "estimate" and found.pareto_khat < 0.7
    assert weighted.history["change"].min() > -1e-9
    assert abs(weighted.params["v"] - reference["params"]["v"]) < 0.05 * se
    assert abs(found.value - reference["log_likelihood"]) < 5 * found.mcse
    np.testing.assert_allclose(weighted.standard_errors()["v"], se, rtol=0.05)
    assert np.nanmax(weighted.history["uncorrected_blocks"]) == 0
    # The posterior mean of a is v y / (2v + 1): weighted draws of every block by itself.
    v = float(weighted.params["v"])
    error = weighted.posterior.mean()["a"] - v * Y / (2 * v + 1)
    assert np.sqrt(np.mean(error**2)) < 0.05


def test_blocks_with_a_bad_k_hat_stay_variational(monkeypatch, caplog, plain):
    monkeypatch.setattr(psis, "MAX_KHAT", -np.inf)
    with caplog.at_level(logging.WARNING, logger="ppl_em"):
        result = fit(two_latents.model, Y, correct="psis", num_draws=256, max_steps=100)
    assert result.log_likelihood.kind == "lower_bound"
    assert "100 of 100 blocks of latents could not be corrected" in caplog.text
    np.testing.assert_allclose(result.history["uncorrected_blocks"], 100)
    # q was fitted last where the bound was up to 0.01 lower.
    assert abs(result.params["v"] - plain.params["v"]) < 0.1


def test_k_hat_is_that_of_the_worst_block(plain):
    """Jointly the weights of 100 blocks are hopeless, block by block they are what they are.

    The log weight is -ab + const at independent a, b of variance v / (1 + v): k = v / (1 + v).
    """
    v = float(plain.params["v"])
    assert abs(plain.log_likelihood.pareto_khat - v / (1 + v)) < 0.35


def test_linear_response_gives_the_exact_standard_deviations(plain):
    """The posterior covariance of a and b is the inverse of [[1 + 1/v, 1], [1, 1 + 1/v]]."""
    v = float(plain.params["v"])
    expected = np.sqrt(np.linalg.inv(np.ones((2, 2)) + np.eye(2) / v)[0, 0])
    np.testing.assert_allclose(plain.posterior.sd()["a"], expected, rtol=1e-6)
    draws = plain.posterior.sample(jax.random.key(SEED), 2000)["a"]
    np.testing.assert_allclose(np.std(draws, axis=0).mean(), np.sqrt(v / (1 + v)), rtol=0.02)


# --- levels or steps: the sign of the bias depends on the parameterisation ---


@pytest.mark.long
def test_parameterisations_of_a_random_walk_err_in_opposite_directions():
    reference = local_level.REFERENCE
    q, se = reference["params"]["q"], reference["standard_errors"]["q"]
    data = local_level.load()["y"]
    levels = fit(local_level.model, data)
    steps = fit(local_level.noncentered, data)
    for result in (levels, steps):
        assert result.converged and result.history["change"].min() > -1e-9
        bound = result.log_likelihood
        assert bound.value < reference["log_likelihood"] + 4 * bound.mcse
    assert levels.params["q"] > q + 3 * se and levels.params["r"] < reference["params"]["r"]
    assert steps.params["q"] < q - 1.5 * se and steps.params["r"] > reference["params"]["r"]


@pytest.mark.long
@pytest.mark.parametrize("name", ["model", "noncentered"])
@pytest.mark.parametrize("options", [{"correct": "psis"}, {"guide": AutoMultivariateNormal}])
def test_covariances_take_the_bias_of_both_away(name, options):
    reference = local_level.REFERENCE
    result = fit(getattr(local_level, name), local_level.load()["y"], max_steps=1000, **options)
    for key, value in reference["params"].items():
        assert abs(result.params[key] - value) < 0.1 * reference["standard_errors"][key]


# --- stochastic gradients: any guide ---


def by_hand(y):
    """The family of `AutoNormal`, written by hand on the model's own scale."""
    with numpyro.plate("rows", len(y)):
        for name in ("a", "b"):
            loc = numpyro.param(f"{name}_loc", jnp.zeros(len(y)))
            scale = numpyro.param(f"{name}_scale", jnp.full(len(y), 0.5), constraint=POSITIVE)
            numpyro.sample(name, dist.Normal(loc, scale))


FLOW = functools.partial(AutoIAFNormal, num_flows=1)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"mode": "stochastic"}, marks=pytest.mark.long),
        pytest.param({"guide": by_hand, "num_steps": 50}, marks=pytest.mark.long),
        pytest.param(
            {"guide": functools.partial(AutoIAFNormal, num_flows=1)}, marks=pytest.mark.long
        ),
    ],
    ids=["auto_normal", "by_hand", "flow"],
)
def test_stochastic_gradients_agree_with_fixed_draws(options):
    """To within the errors of both: that of a bound over draws, and that of the window's end."""
    y = Y[:20]
    fixed, found = fit(two_latents.model, y), fit(two_latents.model, y, **options)
    assert found.converged and found.log_likelihood.kind == "lower_bound"
    assert found.history["change"].min() > -1e-9, "a guide that lowers the bound was taken"
    rise, error = (found.history[f"window_{key}"][-1] for key in ("rise", "error"))
    assert rise <= error
    gap = fixed.log_likelihood.value - found.log_likelihood.value
    noise = np.hypot(fixed.log_likelihood.mcse, found.log_likelihood.mcse)
    assert gap < 4 * noise + 4 * error
    if options.get("guide") in (None, by_hand):  # the same family: the same fixed point
        assert gap > -4 * noise
        se = fixed.standard_errors()["v"]
        assert abs(found.params["v"] - fixed.params["v"]) < se * np.sqrt(2 * 4 * error)


# --- pieces ---


@pytest.mark.parametrize("power", [0.0, 0.05, 0.3, 0.6, 0.9])
def test_smoothing_is_that_of_arviz(power):
    from arviz_stats.base import array_stats

    uniform = np.random.default_rng(SEED).uniform(size=2000)
    log_ratios = -power * np.log(uniform) + 3.0
    change, khat = jax.jit(smooth)(jnp.asarray(log_ratios))
    if power == 0:
        assert np.all(change == 0) and khat <= 0.5
        return
    np.testing.assert_allclose(khat, pareto_khat(log_ratios), atol=1e-8)
    if not np.any(change):  # no weight matters much: left alone
        assert np.exp(log_ratios).max() < 10 * np.mean(np.exp(log_ratios)) or khat < -0.5
        return
    smoothed, _ = array_stats.psislw(-log_ratios)  # minus the log ratios in, log weights out
    ours = log_ratios + np.asarray(change)
    np.testing.assert_allclose(jax.nn.softmax(ours), np.exp(smoothed), rtol=1e-6, atol=1e-12)


def wrong_sites(y):
    numpyro.sample("c", dist.Normal(0.0, 1.0))


def without_gradients(y):
    with numpyro.plate("rows", len(y)):
        numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("b", dist.Poisson(2.0))


def shared_parameter(y):
    v = numpyro.param("v", 1.0, constraint=POSITIVE)
    with numpyro.plate("rows", len(y)):
        for name in ("a", "b"):
            numpyro.sample(name, dist.Normal(0.0, v))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "quick"}, "Option `mode`: found 'quick'"),
        ({"correct": "is"}, "Option `correct`: found 'is'"),
        ({"guide": AutoIAFNormal, "mode": "deterministic"}, "Use mode='stochastic'"),
        ({"guide": AutoIAFNormal, "correct": "psis"}, "needs a guide fitted on fixed draws"),
        ({"guide": autoguide.AutoDelta}, "AutoDelta is not a law"),
        ({"guide": autoguide.AutoLaplaceApproximation}, "AutoLaplaceApproximation is not a law"),
        ({"guide": AutoNormal(two_latents.model)}, "not an object of it"),
        ({"guide": wrong_sites}, "Site 'a': the guide does not sample it"),
        ({"guide": without_gradients}, "Site 'b': .* no reparameterised draws"),
        ({"guide": shared_parameter}, "Site 'v': a parameter of both model and guide"),
    ],
)
def test_what_cannot_be_used_is_refused(options, message):
    with pytest.raises(ModelError, match=message):
        fit(two_latents.model, Y[:5], **options)
