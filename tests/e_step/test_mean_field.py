"""The mean-field E-step where its answer, biased as it is, is known."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED, load_model
from numpyro import handlers
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from scipy.special import digamma, gammaln
from small_models import POSITIVE

from ppl_em import EM
from ppl_em.e_step import expectation

pump = load_model("pump")


def fit(model, *args, **kwargs):
    em = EM(model, e_step="mean_field")
    return em.run(jax.random.key(SEED), *args, progress_bar=False, **kwargs)


@pytest.fixture(scope="module")
def pump_fit():
    return fit(pump.model, **pump.load())


def two_latents(y):
    v = numpyro.param("v", 1.0, constraint=POSITIVE)
    with numpyro.plate("rows", len(y)):
        a = numpyro.sample("a", dist.Normal(0.0, jnp.sqrt(v)))
        b = numpyro.sample("b", dist.Normal(0.0, jnp.sqrt(v)))
        numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)


@pytest.mark.parametrize("s", [5.0, pytest.param(9.0, marks=pytest.mark.slow)])
def test_correlated_latents_give_the_known_biased_variance(s):
    """y = a + b + e: the exact v is (s - 1) / 2, the mean-field one the root of a quadratic."""
    result = fit(two_latents, jnp.sqrt(s) * jnp.array([1.0, -1.0, 1.0, -1.0]))
    expected = ((s - 4) + np.sqrt((s - 4) ** 2 + 16 * (s - 1))) / 8
    assert result.converged and result.log_likelihood.kind == "lower_bound"
    np.testing.assert_allclose(result.params["v"], expected, rtol=1e-5)


def test_bound_of_gaussians_has_a_closed_form():
    """n times: E log N(y; a + b, 1) + E log N(a; 0, v) + E log N(b; 0, v) + entropy, at q."""
    y = jnp.sqrt(5.0) * jnp.array([1.0, -1.0, 1.0, -1.0])
    result = fit(two_latents, y)
    v = float(result.params["v"])
    scale2 = v / (1 + v)  # variance of q: the inverse of the precision 1 + 1 / v
    mean = v / (1 + 2 * v) * np.sqrt(5.0)  # of a and of b, where y > 0
    log_y = -0.5 * np.log(2 * np.pi) - 0.5 * ((np.sqrt(5.0) - 2 * mean) ** 2 + 2 * scale2)
    log_z = -0.5 * np.log(2 * np.pi * v) - 0.5 * (mean**2 + scale2) / v
    entropy = 0.5 * np.log(2 * np.pi * np.e * scale2)
    expected = 4 * (log_y + 2 * log_z + 2 * entropy)
    np.testing.assert_allclose(result.history["objective"][-1], expected, rtol=1e-7)
    reported = result.log_likelihood
    assert abs(reported.value - expected) < 5 * reported.mcse


def test_pump_reaches_the_lognormal_fixed_point(pump_fit):
    """q_i: E theta = a / b, E log theta = log(a / b) - 1 / (2 a), a = alpha + x, b = beta + t."""
    data = pump.load()
    alpha, beta = 1.0, 1.0
    for _ in range(3000):
        a, b = alpha + data["x"], beta + data["t"]
        mean, mean_log = np.mean(a / b), np.mean(np.log(a / b) - 0.5 / a)
        for _ in range(50):  # digamma(alpha) - log(alpha) = mean log - log mean
            step = digamma(alpha) - np.log(alpha) - mean_log + np.log(mean)
            alpha *= np.exp(-step / (alpha * _trigamma(alpha) - 1))
        beta = alpha / mean
    np.testing.assert_allclose([alpha, beta], [0.834158, 1.280641], rtol=2e-6)
    found = [pump_fit.params["alpha"], pump_fit.params["beta"]]
    np.testing.assert_allclose(found, [alpha, beta], rtol=2e-3)


def _trigamma(value):
    return (digamma(value + 1e-5) - digamma(value - 1e-5)) / 2e-5


def test_bound_is_below_the_likelihood(pump_fit):
    bound = pump_fit.log_likelihood
    assert bound.value < pump.REFERENCE["log_likelihood"] + 4 * bound.mcse
    assert pump_fit.history["change"].min() > -1e-9
    assert 0 < bound.pareto_khat < 0.7


@pytest.mark.slow
def test_bound_is_numpyros_elbo_at_the_same_guide(pump_fit):
    """`AutoNormal` and `Trace_ELBO` with our guide's loc and scale, and the closed form.

    With u = log theta ~ N(loc, scale^2): E u = loc and E theta = exp(loc + scale^2 / 2).
    """
    parts, data = pump_fit.parts, pump.load()
    posterior, _, info = expectation(parts.e_step, parts.problem, parts.x, parts.e_state)
    loc, scale = np.asarray(posterior.loc), np.asarray(posterior.scale)
    alpha, beta = float(pump_fit.params["alpha"]), float(pump_fit.params["beta"])
    x, t, mean = data["x"], data["t"], np.exp(loc + scale**2 / 2)
    log_joint = alpha * np.log(beta) - gammaln(alpha) + alpha * loc - beta * mean
    log_joint += x * (loc + np.log(t)) - mean * t - gammaln(x + 1)
    exact = np.sum(log_joint + np.log(scale) + 0.5 * np.log(2 * np.pi * np.e))

    guide = AutoNormal(pump.model)
    with handlers.seed(rng_seed=0), handlers.trace():
        guide(**data)
    values = {**pump_fit.params, "theta_auto_loc": loc, "theta_auto_scale": scale}

    @jax.jit
    def elbos(keys: jax.Array) -> jax.Array:
        def loss(key: jax.Array) -> jax.Array:
            return Trace_ELBO().loss(key, values, pump.model, guide, **data)

        return -jax.vmap(loss)(keys)

    draws = np.asarray(elbos(jax.random.split(jax.random.key(SEED), 20_000)))
    assert abs(draws.mean() - exact) < 4 * draws.std() / np.sqrt(len(draws))
    reported = pump_fit.log_likelihood
    assert abs(reported.value - exact) < 4 * reported.mcse
    # The objective of the fit averages over few, fixed draws: stratified, so this is generous.
    assert abs(float(info.objective) - exact) < 2 * draws.std() / np.sqrt(len(posterior.base))
