"""Models written the way NumPyro's tutorials and examples write them, fitted unchanged.

Each is compared with an independent answer: `marginal(params)`, the log-likelihood with the latents
integrated out by hand (a Gaussian formula, a sum, or Gauss-Hermite quadrature), plus the log-prior
of the sites that `map_sites` names. At a maximum its gradient is zero, so the Newton step there is
the error of the estimate, and its inverse Hessian is the covariance.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from conftest import SEED
from jax.flatten_util import ravel_pytree
from jax.scipy.special import betaln, gammaln, logsumexp
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.distributions.transforms import AffineTransform, ExpTransform
from numpyro.infer.reparam import LocScaleReparam, TransformReparam
from numpyro.ops.indexing import Vindex

import ppl_em
from ppl_em import EM

NUTS = ppl_em.e_step.NUTS(num_warmup=150)
COARSE = ppl_em.Stopping(mcse_fraction=0.1)


def rng(seed=0):
    """Data do not change with the seed of the tests."""
    return np.random.default_rng(20240 + seed)


def fit(
    model, e_step, *args, stopping=None, map_sites=(), init_params=None, max_steps=500, **kwargs
):
    """Fit without a progress bar; Monte Carlo E-steps to a coarse tolerance."""
    if e_step == "nuts":
        e_step, stopping = NUTS, stopping or COARSE
    em = EM(model, e_step=e_step, map_sites=map_sites, stopping=stopping, max_steps=max_steps)
    key = jax.random.key(SEED)
    return em.run(key, *args, init_params=init_params, progress_bar=False, **kwargs)


def newton(marginal, params):
    """Value, Newton step and standard errors of `marginal` at `params`, the latter two flat."""
    x, unravel = ravel_pytree(params)

    @jax.jit
    def derivatives(x):
        objective = lambda x: marginal(unravel(x))  # noqa: E731
        return objective(x), jax.grad(objective)(x), jax.hessian(objective)(x)

    value, gradient, hessian = jax.device_get(derivatives(x))
    covariance = np.linalg.inv(-hessian)
    return float(value), covariance @ gradient, np.sqrt(np.diag(covariance))


def check_exact(result, marginal, free=dict):
    """The fit is the maximum of `marginal`, and reports its value and curvature.

    `free` picks the free numbers of the parameters, where their sites hold dependent ones.
    """
    value, step, errors = newton(marginal, free(result.params))
    assert result.converged, result.status
    assert result.log_likelihood.kind == "exact"
    assert result.log_likelihood.value == pytest.approx(value, rel=1e-9)
    assert np.max(np.abs(step) / errors) < 1e-4
    np.testing.assert_allclose(flat(free(result.standard_errors())), errors, rtol=1e-4)


def check_monte_carlo(result, marginal, free=dict):
    """The fit is within Monte Carlo error of the maximum of `marginal`, as is its value."""
    value, step, errors = newton(marginal, free(result.params))
    assert result.converged, result.status
    assert result.log_likelihood.kind == "estimate"
    mcse = flat(free(result.mcse()))
    assert np.all(mcse < 0.2 * errors)
    assert np.max(np.abs(step) / mcse) < 5
    np.testing.assert_allclose(flat(free(result.standard_errors())), errors, rtol=0.25)
    assert result.log_likelihood.mcse < 0.1
    assert abs(result.log_likelihood.value - value) < 5 * result.log_likelihood.mcse + 1e-6


def flat(params):
    return np.asarray(ravel_pytree(params)[0])


def check_draws(result, shapes):
    """Draws of the posterior have the sites' names and shapes, and are finite."""
    draws = result.posterior.sample(jax.random.key(SEED + 1), 7)
    assert {name: value.shape for name, value in draws.items()} == {
        name: (7, *shape) for name, shape in shapes.items()
    }
    assert all(np.all(np.isfinite(value)) for value in draws.values())


def log_normal_density(y, mean, covariance):
    """log N(y; mean, covariance), any mean that broadcasts."""
    return dist.MultivariateNormal(jnp.broadcast_to(mean, y.shape), covariance).log_prob(y)


def hermite(num_points=40):
    """Nodes and log-weights of a quadrature under the standard normal density."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_points)
    return jnp.asarray(nodes), jnp.log(weights / weights.sum())


# --- Hierarchical linear regression: groups counted in the model, data frame columns as arguments


def fvc_model(patient, weeks, fvc=None):
    mu_a = numpyro.sample("mu_a", dist.Normal(0.0, 50.0))
    sigma_a = numpyro.sample("sigma_a", dist.HalfNormal(10.0))
    mu_b = numpyro.sample("mu_b", dist.Normal(0.0, 5.0))
    sigma_b = numpyro.sample("sigma_b", dist.HalfNormal(3.0))
    num_patients = len(np.unique(patient))
    with numpyro.plate("patients", num_patients):
        a = numpyro.sample("a", dist.Normal(mu_a, sigma_a))
        b = numpyro.sample("b", dist.Normal(mu_b, sigma_b))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
    expected = numpyro.deterministic("expected", a[patient] + b[patient] * weeks)
    with numpyro.plate("visits", len(patient)):
        numpyro.sample("fvc", dist.Normal(expected, sigma), obs=fvc)


FVC_SITES = ["mu_a", "sigma_a", "mu_b", "sigma_b", "sigma"]


def fvc_data(num_patients=12, num_visits=6):
    draw = rng()
    patient = np.repeat(np.arange(num_patients), num_visits)
    weeks = np.tile(np.linspace(-1.5, 1.5, num_visits), num_patients)
    a, b = draw.normal(20, 5, num_patients), draw.normal(-2, 1.5, num_patients)
    fvc = a[patient] + b[patient] * weeks + draw.normal(0, 1.5, len(patient))
    return pd.DataFrame({"patient": patient, "weeks": weeks, "fvc": fvc})


def fvc_marginal(params):
    data = {name: jnp.asarray(column.values) for name, column in fvc_data().items()}
    same = data["patient"][:, None] == data["patient"]
    weeks = data["weeks"]
    covariance = same * (
        params["sigma_a"] ** 2 + params["sigma_b"] ** 2 * weeks[:, None] * weeks
    ) + params["sigma"] ** 2 * jnp.eye(len(weeks))
    value = log_normal_density(data["fvc"], params["mu_a"] + params["mu_b"] * weeks, covariance)
    value += dist.Normal(0, 50).log_prob(params["mu_a"])
    value += dist.Normal(0, 5).log_prob(params["mu_b"])
    value += dist.HalfNormal(3).log_prob(params["sigma_b"])
    return value + sum(dist.HalfNormal(10).log_prob(params[k]) for k in ("sigma_a", "sigma"))


def fvc_frame_model(data):
    fvc_model(data["patient"].to_numpy(), data["weeks"].to_numpy(), data["fvc"].to_numpy())


def as_arrays(data):
    return (data["patient"].values, data["weeks"].values), {"fvc": data["fvc"].values}


def as_columns(data):
    """Data frame columns wherever JAX takes them; it cannot index by one."""
    return (data["patient"].values, data["weeks"]), {"fvc": data["fvc"]}


@pytest.mark.parametrize("give", [as_arrays, as_columns])
def test_hierarchical_regression_exact(give):
    args, kwargs = give(fvc_data())
    result = fit(fvc_model, "exact", *args, **kwargs, map_sites=FVC_SITES)
    check_exact(result, fvc_marginal)
    check_draws(result, {"a": (12,), "b": (12,)})


def test_hierarchical_regression_on_a_data_frame():
    result = fit(fvc_frame_model, "exact", fvc_data(), map_sites=FVC_SITES)
    check_exact(result, fvc_marginal)


@pytest.mark.slow
def test_hierarchical_regression_nuts():
    data = fvc_data()
    columns = {name: data[name].values for name in data}
    result = fit(fvc_model, "nuts", **columns, map_sites=FVC_SITES)
    check_monte_carlo(result, fvc_marginal)


# --- Eight schools: centred, and reparameterised in the two ways the documentation shows

EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(J, sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    # A Gamma prior keeps the mode of tau off 0, where HalfCauchy would leave it.
    tau = numpyro.sample("tau", dist.Gamma(2.0, 0.1))
    with numpyro.plate("J", J):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("obs", dist.Normal(theta, sigma), obs=y)


def eight_schools_noncentered(J, sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.Gamma(2.0, 0.1))
    with numpyro.plate("J", J):
        with handlers.reparam(config={"theta": TransformReparam()}):
            theta = numpyro.sample(
                "theta",
                dist.TransformedDistribution(dist.Normal(0.0, 1.0), AffineTransform(mu, tau)),
            )
        numpyro.sample("obs", dist.Normal(theta, sigma), obs=y)


def schools_marginal(params):
    scale = jnp.sqrt(params["tau"] ** 2 + ERRORS**2)
    value = dist.Normal(params["mu"], scale).log_prob(EFFECTS).sum()
    value += dist.Normal(0, 5).log_prob(params["mu"])
    return value + dist.Gamma(2.0, 0.1).log_prob(params["tau"])


@pytest.mark.parametrize(
    ("model", "latent"),
    [
        (eight_schools, "theta"),
        (eight_schools_noncentered, "theta_base"),
        (handlers.reparam(eight_schools, config={"theta": LocScaleReparam(0)}), "theta_decentered"),
    ],
    ids=["centred", "TransformReparam", "LocScaleReparam"],
)
def test_eight_schools_does_not_depend_on_the_parameterisation(model, latent):
    result = fit(model, "exact", 8, ERRORS, y=EFFECTS, map_sites=["mu", "tau"])
    check_exact(result, schools_marginal)
    check_draws(result, {latent: (8,)})


def test_eight_schools_with_a_learned_centering():
    """The likelihood does not depend on how far theta is centred: no standard errors."""
    centering = handlers.reparam(eight_schools, config={"theta": LocScaleReparam()})
    result = fit(centering, "exact", 8, ERRORS, y=EFFECTS, map_sites=["mu", "tau"])
    assert result.converged, result.status
    value, step, errors = newton(schools_marginal, {k: result.params[k] for k in ("mu", "tau")})
    assert result.log_likelihood.value == pytest.approx(value, rel=1e-9)
    assert np.max(np.abs(step) / errors) < 1e-4
    with pytest.warns(UserWarning, match="theta_centered: not identified"):
        assert np.all(np.isnan(flat(result.standard_errors())))


# --- Baseball: binomial successes with beta, and with logit-normal, chances

AT_BATS = np.full(18, 45)
HITS = np.array([22, 20, 7, 17, 16, 25, 12, 15, 9, 14, 8, 12, 18, 6, 9, 10, 13, 4])


def partially_pooled(at_bats, hits=None):
    m = numpyro.sample("m", dist.Uniform(0, 1))
    kappa = numpyro.sample("kappa", dist.Pareto(1, 1.5))
    num_players = at_bats.shape[0]
    with numpyro.plate("num_players", num_players):
        phi = numpyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
        return numpyro.sample("obs", dist.Binomial(at_bats, probs=phi), obs=hits)


def partially_pooled_with_logit(at_bats, hits=None):
    loc = numpyro.sample("loc", dist.Normal(-1, 1))
    scale = numpyro.sample("scale", dist.HalfCauchy(1))
    num_players = at_bats.shape[0]
    with numpyro.plate("num_players", num_players):
        alpha = numpyro.sample("alpha", dist.Normal(loc, scale))
        return numpyro.sample("obs", dist.Binomial(at_bats, logits=alpha), obs=hits)


def log_choose(n, k):
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def pooled_marginal(params):
    a, b = params["m"] * params["kappa"], (1 - params["m"]) * params["kappa"]
    terms = betaln(a + HITS, b + AT_BATS - HITS) - betaln(a, b) + log_choose(AT_BATS, HITS)
    return terms.sum() + dist.Pareto(1, 1.5).log_prob(params["kappa"])


def logit_marginal(params):
    nodes, log_weights = hermite(60)
    logits = params["loc"] + params["scale"] * nodes
    terms = dist.Binomial(AT_BATS[:, None], logits=logits).log_prob(HITS[:, None])
    value = logsumexp(terms + log_weights, axis=1).sum()
    value += dist.Normal(-1, 1).log_prob(params["loc"])
    return value + dist.HalfCauchy(1).log_prob(params["scale"])


BASEBALL = [
    (partially_pooled, ["m", "kappa"], pooled_marginal, "phi"),
    (partially_pooled_with_logit, ["loc", "scale"], logit_marginal, "alpha"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "sites", "marginal", "latent"), BASEBALL)
def test_baseball_nuts(model, sites, marginal, latent):
    result = fit(model, "nuts", AT_BATS, hits=HITS, map_sites=sites)
    check_monte_carlo(result, marginal)
    check_draws(result, {latent: (18,)})


@pytest.mark.slow
@pytest.mark.parametrize(("model", "sites", "marginal", "latent"), BASEBALL)
def test_baseball_mean_field_bounds_the_likelihood(model, sites, marginal, latent):
    result = fit(model, "mean_field", AT_BATS, hits=HITS, map_sites=sites)
    value, step, errors = newton(marginal, result.params)
    assert result.converged, result.status
    assert result.log_likelihood.kind == "lower_bound"
    gap = value - result.log_likelihood.value
    assert -5 * result.log_likelihood.mcse < gap < 2
    assert (
        np.max(np.abs(step) / errors) < 1
    )  # biased, but one-dimensional posteriors bias it little
    assert np.all(np.isfinite(flat(result.standard_errors())))
    check_draws(result, {latent: (18,)})


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


def test_dawid_skene():
    positions, labels = annotations()
    start = {"beta": np.tile(0.2 + 0.4 * np.eye(3), (3, 1, 1)), "pi": np.full(3, 1 / 3)}
    result = fit(
        dawid_skene, "exact", positions, labels, map_sites=["beta", "pi"], init_params=start
    )
    value, beta, pi, resp = dawid_skene_by_hand(positions, labels, start["beta"], start["pi"])
    log_prior = dist.Dirichlet(2 * jnp.ones(3)).log_prob(np.vstack([beta.reshape(9, 3), pi])).sum()
    assert result.converged, result.status
    assert result.log_likelihood.value == pytest.approx(value + float(log_prior), rel=1e-9)
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


@pytest.mark.slow
def test_latent_autoregression_in_scan():
    result = fit(latent_ar, "exact", jnp.asarray(ar_data()), num_steps=60)
    check_exact(result, ar_marginal)
    check_draws(result, {"z0": (), "z": (60,)})


def test_gaussian_random_walk():
    result = fit(local_level, "exact", ar_data())
    check_exact(result, level_marginal)
    check_draws(result, {"level": (60,)})


# --- Positive latents: LogNormal, and the same as a TransformedDistribution


def lognormal_rates(exposure, counts=None):
    mu = numpyro.param("mu", 0.0)
    sd = numpyro.param("sd", 0.5, constraint=constraints.positive)
    with numpyro.plate("units", len(exposure)):
        rate = numpyro.sample("rate", dist.LogNormal(mu, sd))
        numpyro.sample("counts", dist.Poisson(rate * exposure), obs=counts)


def transformed_rates(exposure, counts=None):
    mu = numpyro.param("mu", 0.0)
    sd = numpyro.param("sd", 0.5, constraint=constraints.positive)
    with numpyro.plate("units", len(exposure)):
        rate = numpyro.sample(
            "rate", dist.TransformedDistribution(dist.Normal(mu, sd), ExpTransform())
        )
        numpyro.sample("counts", dist.Poisson(rate * exposure), obs=counts)


def rate_data(num_units=30):
    draw = rng(6)
    exposure = draw.uniform(2, 8, num_units)
    return exposure, draw.poisson(exposure * np.exp(draw.normal(0.5, 0.7, num_units)))


def rates_marginal(params):
    exposure, counts = rate_data()
    nodes, log_weights = hermite(80)
    rate = jnp.exp(params["mu"] + params["sd"] * nodes)
    terms = dist.Poisson(rate * exposure[:, None]).log_prob(counts[:, None])
    return logsumexp(terms + log_weights, axis=1).sum()


@pytest.mark.slow
@pytest.mark.parametrize("model", [lognormal_rates, transformed_rates])
def test_positive_latents_nuts(model):
    exposure, counts = rate_data()
    result = fit(model, "nuts", exposure, counts=counts)
    check_monte_carlo(result, rates_marginal)
    check_draws(result, {"rate": (30,)})
    assert np.all(result.posterior.mean()["rate"] > 0)


# --- A neural network through `numpyro.module`, beside a random effect


def perceptron(hidden):
    """A stax-like (init, apply) pair."""

    def init(rng_key, input_shape):
        keys = jax.random.split(rng_key)
        first = jax.random.normal(keys[0], (input_shape[-1], hidden)), jnp.zeros(hidden)
        second = jax.random.normal(keys[1], (hidden,)), jnp.zeros(())
        return (*input_shape[:-1], 1), [first, second]

    def apply(params, x):
        (w1, b1), (w2, b2) = params
        return jnp.tanh(x @ w1 + b1) @ w2 + b2

    return init, apply


def neural_random_effects(x, group, y=None, hidden=1):
    net = numpyro.module("net", perceptron(hidden), input_shape=x.shape)
    tau = numpyro.param("tau", 1.0, constraint=constraints.positive)
    sigma = numpyro.param("sigma", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", int(np.max(group)) + 1):
        b = numpyro.sample("b", dist.Normal(0.0, tau))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(net(x) + b[group], sigma), obs=y)


def neural_data():
    draw = rng(7)
    x, group = draw.uniform(-2, 2, (80, 1)), np.arange(80) % 8
    mean = 2 * np.tanh(1.3 * x[:, 0] - 0.4) + draw.normal(0, 0.8, 8)[group]
    return x, group, mean + draw.normal(0, 0.3, 80)


def neural_marginal(params):
    x, group, y = neural_data()
    mean = perceptron(1)[1](params["net$params"], x)
    covariance = params["tau"] ** 2 * (group[:, None] == group)
    return log_normal_density(y, mean, covariance + params["sigma"] ** 2 * jnp.eye(80))


def test_neural_network_parameters():
    x, group, y = neural_data()
    result = fit(neural_random_effects, "exact", x, group, y=y)
    (w1, _), (w2, _) = result.params["net$params"]
    assert w1.shape == (1, 1) and w2.shape == (1,)
    check_exact(result, neural_marginal)
    check_draws(result, {"b": (8,)})


# --- Vector latents and crossed plates


def vector_effects(group, x, y=None, *, num_groups):
    beta = numpyro.param("beta", jnp.zeros(2))
    tau = numpyro.param("tau", jnp.ones(2), constraint=constraints.positive)
    sigma = numpyro.param("sigma", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", num_groups):
        b = numpyro.sample("b", dist.Normal(0.0, tau).expand([2]).to_event(1))
    design = jnp.stack([jnp.ones_like(x), x], axis=-1)
    eta = jnp.sum(design * (beta + b[group]), axis=-1)
    numpyro.sample("y", dist.Normal(eta, sigma).to_event(1), obs=y)


def vector_marginal(params):
    data = fvc_data()
    group, x, y = (jnp.asarray(data[k].values) for k in ("patient", "weeks", "fvc"))
    tau = params["tau"] ** 2
    covariance = (group[:, None] == group) * (tau[0] + tau[1] * x[:, None] * x)
    mean = params["beta"][0] + params["beta"][1] * x
    return log_normal_density(y, mean, covariance + params["sigma"] ** 2 * jnp.eye(len(y)))


def test_vector_latents():
    data = fvc_data()
    group, x, y = (data[k].values for k in ("patient", "weeks", "fvc"))
    # beta outside the latents' density makes plain EM slow: its rate here is about 0.98.
    result = fit(vector_effects, "exact", group, x, y, num_groups=12, max_steps=3000)
    check_exact(result, vector_marginal)
    check_draws(result, {"b": (12, 2)})


def crossed_effects(y):
    num_raters, num_items = y.shape
    mu = numpyro.param("mu", 0.0)
    sds = numpyro.param("sds", jnp.ones(3), constraint=constraints.positive)
    raters = numpyro.plate("raters", num_raters, dim=-2)
    items = numpyro.plate("items", num_items, dim=-1)
    with raters:
        a = numpyro.sample("a", dist.Normal(0.0, sds[0]))
    with items:
        b = numpyro.sample("b", dist.Normal(0.0, sds[1]))
    with raters, items:
        numpyro.sample("y", dist.Normal(mu + a + b, sds[2]), obs=y)


def crossed_data():
    draw = rng(8)
    a, b = draw.normal(0, 1.0, (6, 1)), draw.normal(0, 2.0, (1, 9))
    return 3 + a + b + draw.normal(0, 0.8, (6, 9))


def crossed_marginal(params):
    rater, item = (index.ravel() for index in np.indices((6, 9)))
    var = params["sds"] ** 2
    covariance = var[0] * (rater[:, None] == rater) + var[1] * (item[:, None] == item)
    covariance += var[2] * jnp.eye(54)
    return log_normal_density(crossed_data().ravel(), params["mu"], covariance)


def test_crossed_plates():
    result = fit(crossed_effects, "auto", crossed_data())
    assert result.e_step == "exact"
    check_exact(result, crossed_marginal)
    check_draws(result, {"a": (6, 1), "b": (9,)})


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


@pytest.mark.slow
def test_zero_inflation_with_random_effects_nuts():
    group, y = zero_inflated_data()
    result = fit(zero_inflated, "nuts", group, y=y)
    check_monte_carlo(result, zero_inflated_marginal)
    check_draws(result, {"b": (12,), "present": (72,)})
    probs = result.posterior.probs()["present"]
    np.testing.assert_allclose(probs[y > 0, 1], 1.0, atol=1e-5)
    assert np.all(probs[y == 0, 1] < 0.9)


# --- UC Berkeley admissions: correlated random effects with an LKJ prior

DEPT = np.repeat(np.arange(6), 2)
MALE = np.tile([1, 0], 6)
APPLICATIONS = np.array([825, 108, 560, 25, 325, 593, 417, 375, 191, 393, 373, 341])
ADMIT = np.array([512, 89, 353, 17, 120, 202, 138, 131, 53, 94, 22, 24])


def glmm(dept, male, applications, admit=None):
    v_mu = numpyro.sample("v_mu", dist.Normal(0, jnp.array([4.0, 1.0])))
    # The example's HalfNormal prior would let the mode of sigma[1] run to 0 on these few data.
    sigma = numpyro.sample("sigma", dist.Gamma(2.0 * jnp.ones(2), 1.0))
    L_Rho = numpyro.sample("L_Rho", dist.LKJCholesky(2, concentration=2))
    scale_tril = sigma[..., jnp.newaxis] * L_Rho
    num_dept = len(np.unique(dept))
    z = numpyro.sample("z", dist.Normal(jnp.zeros((num_dept, 2)), 1))
    v = jnp.dot(scale_tril, z.T).T
    logits = v_mu[0] + v[dept, 0] + (v_mu[1] + v[dept, 1]) * male
    if admit is None:
        probs = jax.nn.sigmoid(logits)
        numpyro.sample("probs", dist.Delta(probs), obs=probs)
    with numpyro.plate("data", len(applications)):
        numpyro.sample("admit", dist.Binomial(applications, logits=logits), obs=admit)


def few_admissions():
    """A tenth of the real counts, so that a coarse grid integrates well."""
    return {
        "dept": DEPT,
        "male": MALE,
        "applications": np.round(APPLICATIONS / 10).astype(int),
        "admit": np.round(ADMIT / 10).astype(int),
    }


def glmm_marginal(params):
    data = few_admissions()
    grid = jnp.linspace(-6, 6, 97)
    log_weight = dist.Normal(0, 1).log_prob(grid) + jnp.log(grid[1] - grid[0])
    factor = jnp.stack(
        [jnp.array([1.0, 0.0]), jnp.stack([params["rho"], jnp.sqrt(1 - params["rho"] ** 2)])]
    )
    scale_tril = params["sigma"][:, None] * factor
    v = jnp.einsum("ij,jab->iab", scale_tril, jnp.stack(jnp.meshgrid(grid, grid, indexing="ij")))
    male = data["male"][:, None, None]
    logits = params["v_mu"][0] + v[0] + (params["v_mu"][1] + v[1]) * male
    binomial = dist.Binomial(data["applications"][:, None, None], logits=logits)
    by_dept = binomial.log_prob(data["admit"][:, None, None]).reshape(6, 2, 97, 97).sum(1)
    value = logsumexp(by_dept + log_weight[:, None] + log_weight, axis=(1, 2)).sum()
    value += dist.Normal(0, jnp.array([4.0, 1.0])).log_prob(params["v_mu"]).sum()
    value += dist.Gamma(2.0, 1.0).log_prob(params["sigma"]).sum()
    return value + dist.LKJCholesky(2, concentration=2).log_prob(factor)


@pytest.mark.slow
def test_admissions_nuts():
    data = few_admissions()
    # Much is missing here: at a coarse tolerance Louis's standard error of v_mu[0] is 40 % off.
    result = fit(
        glmm,
        "nuts",
        **data,
        map_sites=["v_mu", "sigma", "L_Rho"],
        stopping=ppl_em.Stopping(),
    )
    check_monte_carlo(
        result,
        glmm_marginal,
        lambda p: {"v_mu": p["v_mu"], "sigma": p["sigma"], "rho": p["L_Rho"][1, 0]},
    )
    check_draws(result, {"z": (6, 2)})


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


@pytest.mark.slow
def test_stochastic_volatility_nuts():
    result = fit(volatility, "nuts", returns_data(), map_sites=["sigma", "nu"])
    check_monte_carlo(result, volatility_marginal)
    check_draws(result, {"s": (50,)})


# --- Plain MAP: no latent data at all


def logistic_regression(features, labels):
    coefs = numpyro.sample("coefs", dist.Normal(jnp.zeros(features.shape[-1]), 2.0))
    logits = jnp.dot(features, coefs)
    return numpyro.sample("obs", dist.Bernoulli(logits=logits), obs=labels)


def test_logistic_regression_by_map_alone():
    draw = rng(11)
    features = draw.normal(size=(80, 3))
    labels = draw.random(80) < 1 / (1 + np.exp(-features @ np.array([1.0, -0.5, 0.2])))

    def posterior(params):
        value = dist.Bernoulli(logits=features @ params["coefs"]).log_prob(labels).sum()
        return value + dist.Normal(0, 2).log_prob(params["coefs"]).sum()

    result = fit(logistic_regression, "auto", features, labels, map_sites=["coefs"])
    check_exact(result, posterior)
    check_draws(result, {})
