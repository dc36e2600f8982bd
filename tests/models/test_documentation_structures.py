"""NumPyro's tutorials on mixtures, missing data and time series, fitted unchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from documentation import (
    check_draws,
    check_exact,
    check_monte_carlo,
    fit,
    flat,
    hermite,
    log_normal_density,
    rng,
)
from jax.scipy.special import logsumexp
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.ops.indexing import Vindex

# --- Gaussian mixture with enumeration

MIXTURE = np.array([0.0, 1.0, 10.0, 11.0, 12.0, 0.3, 9.1, 4.9, 11.7])


def gmm(data, K=2):
    weights = numpyro.sample("weights", dist.Dirichlet(1.5 * jnp.ones(K)))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with numpyro.plate("components", K):
        locs = numpyro.sample("locs", dist.Normal(0.0, 10.0))
    with numpyro.plate("data", len(data)):
        assignment = numpyro.sample(
            "assignment", dist.Categorical(weights), infer={"enumerate": "parallel"}
        )
        numpyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)


def gmm_marginal(params):
    weights = jnp.stack([params["weights"], 1 - params["weights"]])
    terms = dist.Normal(params["locs"], params["scale"]).log_prob(MIXTURE[:, None])
    value = logsumexp(terms + jnp.log(weights), axis=1).sum()
    value += dist.Dirichlet(jnp.array([1.5, 1.5])).log_prob(weights)
    value += dist.Normal(0, 10).log_prob(params["locs"]).sum()
    return value + dist.LogNormal(0, 2).log_prob(params["scale"])


@pytest.mark.parametrize("start", [None, {"locs": np.array([0.0, 10.0])}])
def test_gaussian_mixture(start):
    sites = ["weights", "scale", "locs"]
    result = fit(gmm, "exact", MIXTURE, K=2, map_sites=sites, init_params=start)
    check_exact(result, gmm_marginal, lambda p: {**p, "weights": p["weights"][0]})
    errors = result.standard_errors()["weights"]
    assert errors[0] == pytest.approx(errors[1])
    check_draws(result, {"assignment": (9,)})
    locs, scale = result.params["locs"], result.params["scale"]
    terms = dist.Normal(locs, scale).log_prob(MIXTURE[:, None])
    expected = jax.nn.softmax(terms + jnp.log(result.params["weights"]), axis=1)
    np.testing.assert_allclose(result.posterior.probs()["assignment"], expected, rtol=1e-6)


# --- Missing values: `obs_mask`, and the imputation site of the imputation tutorial


def missing_data():
    draw = rng(3)
    x = draw.normal(1.0, 2.0, 40)
    y = 0.5 + 0.8 * x + draw.normal(0, 0.7, 40)
    x[[1, 5, 8, 13, 21, 33, 34]] = np.nan
    return x, y


def masked_regression(x, y):
    mean = numpyro.param("mean", 0.0)
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    intercept = numpyro.param("intercept", 0.0)
    slope = numpyro.param("slope", 0.0)
    sigma = numpyro.param("sigma", 1.0, constraint=constraints.positive)
    with numpyro.plate("rows", len(x)):
        x = numpyro.sample("x", dist.Normal(mean, sd), obs=x, obs_mask=~np.isnan(x))
        numpyro.sample("y", dist.Normal(intercept + slope * x, sigma), obs=y)


def imputed_regression(x, y=None):
    mean = numpyro.param("mean", 0.0)
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    isnan = np.isnan(x)
    nan_index = np.nonzero(isnan)[0]
    x_impute = numpyro.sample(
        "x_impute", dist.Normal(mean, sd).expand([len(nan_index)]).mask(False)
    )
    x = jnp.asarray(x).at[nan_index].set(x_impute)
    numpyro.sample("x", dist.Normal(mean, sd).expand([len(x)]), obs=x)
    intercept = numpyro.param("intercept", 0.0)
    slope = numpyro.param("slope", 0.0)
    sigma = numpyro.param("sigma", 1.0, constraint=constraints.positive)
    numpyro.sample("y", dist.Normal(intercept + slope * x, sigma), obs=y)


def missing_marginal(params):
    x, y = missing_data()
    seen = ~np.isnan(x)
    var = params["sd"] ** 2
    covariance = jnp.stack(
        [
            jnp.stack([var, params["slope"] * var]),
            jnp.stack([params["slope"] * var, params["slope"] ** 2 * var + params["sigma"] ** 2]),
        ]
    )
    mean_y = params["intercept"] + params["slope"] * params["mean"]
    joint = dist.MultivariateNormal(jnp.stack([params["mean"], mean_y]), covariance)
    value = joint.log_prob(np.stack([x, y], axis=1)[seen]).sum()
    return value + dist.Normal(mean_y, jnp.sqrt(covariance[1, 1])).log_prob(y[~seen]).sum()


@pytest.mark.parametrize(
    ("model", "latent", "shape"),
    [(masked_regression, "x_unobserved", (40,)), (imputed_regression, "x_impute", (7,))],
)
@pytest.mark.long
def test_missing_covariates(model, latent, shape):
    x, y = missing_data()
    result = fit(model, "exact", x, y=y)
    check_exact(result, missing_marginal)
    check_draws(result, {latent: shape})
    # The analytical answer: y from all rows, x given y from the complete ones.
    params, seen = result.params, ~np.isnan(x)
    slope, intercept = np.polyfit(y[seen], x[seen], 1)
    assert params["mean"] == pytest.approx(intercept + slope * y.mean(), rel=1e-5)
    expected_var = slope**2 * y.var() + np.var(x[seen] - intercept - slope * y[seen])
    assert params["sd"] == pytest.approx(np.sqrt(expected_var), rel=1e-5)


# --- Dawid and Skene's annotators: nested plates, one enumerated class per item


def dawid_skene(positions, annotations):
    num_annotators = int(np.max(positions)) + 1
    num_classes = int(np.max(annotations)) + 1
    num_items, num_positions = annotations.shape
    with (
        numpyro.plate("annotator", num_annotators, dim=-2),
        numpyro.plate("class", num_classes),
    ):
        beta = numpyro.sample("beta", dist.Dirichlet(2 * jnp.ones(num_classes)))
    pi = numpyro.sample("pi", dist.Dirichlet(2 * jnp.ones(num_classes)))
    with numpyro.plate("item", num_items, dim=-2):
        c = numpyro.sample("c", dist.Categorical(pi), infer={"enumerate": "parallel"})
        with numpyro.plate("position", num_positions):
            numpyro.sample("y", dist.Categorical(Vindex(beta)[positions, c, :]), obs=annotations)


def annotations(num_items=60):
    draw = rng(4)
    positions = np.array([0, 0, 1, 2])
    truth = draw.choice(3, num_items, p=[0.5, 0.3, 0.2])
    accuracy = np.array([0.85, 0.75, 0.7])[positions]
    correct = draw.random((num_items, 4)) < accuracy
    return positions, np.where(correct, truth[:, None], draw.choice(3, (num_items, 4)))


def dawid_skene_by_hand(positions, labels, beta, pi, num_steps=2000):
    """The closed-form EM of Dawid & Skene (1979) under Dirichlet(2) priors; independent code."""
    onehot = np.eye(3)[labels]
    for _ in range(num_steps):
        log_class = np.log(pi) + np.log(beta)[positions[:, None], :, labels.T].sum(0)
        top = log_class.max(1, keepdims=True)
        value = float((top[:, 0] + np.log(np.exp(log_class - top).sum(1))).sum())
        resp = np.exp(log_class - top)
        resp /= resp.sum(1, keepdims=True)
        pi = resp.sum(0) + 1
        pi /= pi.sum()
        counts = np.ones((3, 3, 3))
        for j, annotator in enumerate(positions):
            counts[annotator] += resp.T @ onehot[:, j]
        beta = counts / counts.sum(-1, keepdims=True)
    return value, beta, pi, resp


@pytest.mark.long
def test_dawid_skene():
    positions, labels = annotations()
    start = {"beta": np.tile(0.2 + 0.4 * np.eye(3), (3, 1, 1)), "pi": np.full(3, 1 / 3)}
    result = fit(
        dawid_skene, "exact", positions, labels, map_sites=["beta", "pi"], init_params=start
    )
    value, beta, pi, resp = dawid_skene_by_hand(positions, labels, start["beta"], start["pi"])
    log_prior = dist.Dirichlet(2 * jnp.ones(3)).log_prob(np.vstack([beta.reshape(9, 3), pi])).sum()
    assert result.converged, result.status
    # What is maximized agrees to second order in what the estimates are off by (a gap of 1e-12 is
    # 1.4e-6 standard errors); the log-likelihood alone has a slope there.
    assert result.penalised == pytest.approx(value + float(log_prior), rel=1e-9)
    assert result.log_likelihood.value == pytest.approx(value, abs=3e-6)
    np.testing.assert_allclose(result.params["pi"], pi, atol=1e-5)
    np.testing.assert_allclose(result.params["beta"], beta, atol=1e-5)
    errors = result.standard_errors()
    assert errors["beta"].shape == (3, 3, 3)
    assert np.all(flat(errors) > 0)
    np.testing.assert_allclose(result.posterior.probs()["c"].reshape(60, 3), resp, atol=1e-5)
    check_draws(result, {"c": (60, 1)})


# --- Time series with `scan`, and a random walk


def latent_ar(y, num_steps):
    """Noisy observations of a stationary AR(1) process, in the style of the AR examples."""
    phi = numpyro.param("phi", 0.5, constraint=constraints.interval(-1.0, 1.0))
    sigma = numpyro.param("sigma", 1.0, constraint=constraints.positive)
    noise = numpyro.param("noise", 1.0, constraint=constraints.positive)

    def transition(carry, obs):
        z = numpyro.sample("z", dist.Normal(phi * carry, sigma))
        numpyro.sample("y", dist.Normal(z, noise), obs=obs)
        return z, None

    z0 = numpyro.sample("z0", dist.Normal(0.0, sigma / jnp.sqrt(1 - phi**2)))
    scan(transition, z0, y, length=num_steps)


def local_level(y):
    scale = numpyro.param("scale", 1.0, constraint=constraints.positive)
    noise = numpyro.param("noise", 1.0, constraint=constraints.positive)
    level = numpyro.sample("level", dist.GaussianRandomWalk(scale=scale, num_steps=len(y)))
    with numpyro.plate("time", len(y)):
        numpyro.sample("y", dist.Normal(level, noise), obs=y)


def ar_data(length=60):
    draw = rng(5)
    z, ys = draw.normal(0, 2), []
    for _ in range(length):
        z = 0.85 * z + draw.normal()
        ys.append(z + 0.8 * draw.normal())
    return np.array(ys)


def ar_marginal(params):
    y = ar_data()
    lag = np.abs(np.arange(len(y))[:, None] - np.arange(len(y)))
    stationary = params["sigma"] ** 2 / (1 - params["phi"] ** 2)
    covariance = stationary * params["phi"] ** lag + params["noise"] ** 2 * jnp.eye(len(y))
    return log_normal_density(y, 0.0, covariance)


def level_marginal(params):
    y = ar_data()
    steps = 1 + np.minimum(np.arange(len(y))[:, None], np.arange(len(y)))
    covariance = params["scale"] ** 2 * steps + params["noise"] ** 2 * jnp.eye(len(y))
    return log_normal_density(y, 0.0, covariance)


@pytest.mark.long
@pytest.mark.usefixtures("optimized")
def test_latent_autoregression_in_scan():
    result = fit(latent_ar, "exact", jnp.asarray(ar_data()), num_steps=60)
    check_exact(result, ar_marginal)
    check_draws(result, {"z0": (), "z": (60,)})


@pytest.mark.long
def test_gaussian_random_walk():
    result = fit(local_level, "exact", ar_data())
    check_exact(result, level_marginal)
    check_draws(result, {"level": (60,)})


# --- Discrete and continuous latents together: zero inflation with a random effect


def zero_inflated(group, y=None):
    psi = numpyro.param("psi", 0.5, constraint=constraints.unit_interval)
    mu = numpyro.param("mu", 0.0)
    sd = numpyro.param("sd", 0.5, constraint=constraints.positive)
    with numpyro.plate("groups", len(np.unique(group))):
        b = numpyro.sample("b", dist.Normal(0.0, sd))
    with numpyro.plate("data", len(group)):
        present = numpyro.sample("present", dist.Bernoulli(psi), infer={"enumerate": "parallel"})
        rate = jnp.where(present == 1, jnp.exp(mu + b[group]), 1e-8)
        numpyro.sample("y", dist.Poisson(rate), obs=y)


def zero_inflated_data():
    draw = rng(9)
    group = np.repeat(np.arange(12), 6)
    rate = np.exp(1.2 + draw.normal(0, 0.6, 12))[group]
    return group, np.where(draw.random(72) < 0.7, draw.poisson(rate), 0)


def zero_inflated_marginal(params):
    _, y = zero_inflated_data()
    nodes, log_weights = hermite(60)
    rate = jnp.exp(params["mu"] + params["sd"] * nodes)
    present = jnp.log(params["psi"]) + dist.Poisson(rate).log_prob(y[:, None])
    absent = jnp.log1p(-params["psi"]) + dist.Poisson(1e-8).log_prob(y[:, None])
    by_group = jnp.logaddexp(present, absent).reshape(12, 6, -1).sum(1)
    return logsumexp(by_group + log_weights, axis=1).sum()


@pytest.mark.long
@pytest.mark.usefixtures("optimized")
def test_zero_inflation_with_random_effects_nuts():
    group, y = zero_inflated_data()
    result = fit(zero_inflated, "nuts", group, y=y)
    check_monte_carlo(result, zero_inflated_marginal)
    check_draws(result, {"b": (12,), "present": (72,)})
    probs = result.posterior.probs()["present"]
    np.testing.assert_allclose(probs[y > 0, 1], 1.0, atol=1e-5)
    assert np.all(probs[y == 0, 1] < 0.9)


# --- Stochastic volatility


def volatility(returns):
    step_size = numpyro.sample("sigma", dist.Exponential(5.0))
    s = numpyro.sample(
        "s", dist.GaussianRandomWalk(scale=step_size, num_steps=jnp.shape(returns)[0])
    )
    nu = numpyro.sample("nu", dist.Exponential(0.1))
    return numpyro.sample("r", dist.StudentT(df=nu, loc=0.0, scale=jnp.exp(s)), obs=returns)


def returns_data(length=50):
    draw = rng(10)
    return np.exp(np.cumsum(draw.normal(0, 0.35, length))) * draw.standard_t(8, length)


def volatility_marginal(params):
    """The forward recursion on a grid of log-volatilities."""
    grid = jnp.linspace(-7, 7, 281)
    move = dist.Normal(grid, params["sigma"]).log_prob(grid[:, None]) + jnp.log(grid[1] - grid[0])

    def forward(log_alpha, r):
        density = dist.StudentT(params["nu"], 0.0, jnp.exp(grid)).log_prob(r)
        return logsumexp(move + log_alpha, axis=1) + density, None

    returns = jnp.asarray(returns_data())
    first = dist.Normal(0, params["sigma"]).log_prob(grid)
    first += dist.StudentT(params["nu"], 0.0, jnp.exp(grid)).log_prob(returns[0])
    last, _ = jax.lax.scan(forward, first, returns[1:])
    value = logsumexp(last) + jnp.log(grid[1] - grid[0])
    value += dist.Exponential(5.0).log_prob(params["sigma"])
    return value + dist.Exponential(0.1).log_prob(params["nu"])


@pytest.mark.long
def test_stochastic_volatility_nuts():
    result = fit(volatility, "nuts", returns_data(), map_sites=["sigma", "nu"])
    check_monte_carlo(result, volatility_marginal)
    check_draws(result, {"s": (50,)})
