"""Regressions that are Bayesian throughout: global sites at their modes, effects integrated."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer.reparam import LocScaleReparam, TransformReparam

from .case import case

BASEBALL = "examples/baseball.py: "
MCMC = "test/infer/test_mcmc.py: "
DRAW = np.random.default_rng(14)
AT_BATS = np.array([45, 40, 50, 38, 45, 60, 45, 52])
HITS = np.array([18, 9, 15, 8, 14, 20, 7, 16])
X = np.column_stack([np.ones(30), DRAW.normal(0, 1, (30, 2))])
LABELS = (DRAW.uniform(size=30) < 1 / (1 + np.exp(-X @ [0.3, 1.0, -0.7]))).astype(int)
OUTCOME = X @ np.array([1.0, 0.5, -0.8]) + DRAW.normal(0, 0.6, 30)
SCHOOLS = np.array([28.0, 8, -3, 7, -1, 1, 18, 12]), np.array([15.0, 10, 16, 11, 9, 11, 10, 18])


@case(BASEBALL + "fully_pooled", AT_BATS, HITS, at_mode="phi", verdict="exact", quick=True)
def all_players_alike(at_bats, hits):
    phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))
    with numpyro.plate("players", len(hits)):
        numpyro.sample("hits", dist.Binomial(at_bats, probs=phi), obs=hits)


@case(BASEBALL + "not_pooled", AT_BATS, HITS, at_mode="phi")
def each_player_alone(at_bats, hits):
    with numpyro.plate("players", len(hits)):
        phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))
        numpyro.sample("hits", dist.Binomial(at_bats, probs=phi), obs=hits)


@case(BASEBALL + "partially_pooled", AT_BATS, HITS, at_mode="m kappa", rows=-1)
def players_from_a_beta(at_bats, hits):
    m = numpyro.sample("m", dist.Uniform(0.0, 1.0))
    kappa = numpyro.sample("kappa", dist.Gamma(3.0, 0.05))
    with numpyro.plate("players", len(hits)):
        phi = numpyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
        numpyro.sample("hits", dist.Binomial(at_bats, probs=phi), obs=hits)


@case(BASEBALL + "partially_pooled, its own prior", AT_BATS, HITS, at_mode="m kappa", rows=-1)
def players_from_a_beta_with_a_pareto(at_bats, hits):
    m = numpyro.sample("m", dist.Uniform(0.0, 1.0))
    kappa = numpyro.sample("kappa", dist.Pareto(1.0, 1.5))
    with numpyro.plate("players", len(hits)):
        phi = numpyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
        numpyro.sample("hits", dist.Binomial(at_bats, probs=phi), obs=hits)


@case(
    BASEBALL + "partially_pooled_with_logit",
    AT_BATS,
    HITS,
    at_mode="loc scale",
    rows=-1,
    verdict="quadrature",
)
def players_from_a_normal(at_bats, hits):
    loc = numpyro.sample("loc", dist.Normal(-1.0, 1.0))
    scale = numpyro.sample("scale", dist.Gamma(2.0, 4.0))
    with numpyro.plate("players", len(hits)):
        alpha = numpyro.sample("alpha", dist.Normal(loc, scale))
        numpyro.sample("hits", dist.Binomial(at_bats, logits=alpha), obs=hits)


@case("examples/covtype.py: model", X, LABELS, at_mode="coefs")
def logistic_regression(x, y):
    coefs = numpyro.sample("coefs", dist.Normal(jnp.zeros(3), jnp.ones(3)))
    with numpyro.plate("rows", len(y), subsample_size=None) as index:
        numpyro.sample("y", dist.Bernoulli(logits=x[index] @ coefs), obs=y[index])


@case(
    "examples/covtype.py: model, integrated",
    X,
    LABELS,
    verdict="it has no free parameters to maximise",
)
def logistic_regression_without_parameters(x, y):
    coefs = numpyro.sample("coefs", dist.Normal(jnp.zeros(3), jnp.ones(3)))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=x @ coefs), obs=y)


@case("examples/proportion_test.py: model", X, LABELS, at_mode="coefficients")
def proportions(x, y):
    prior = dist.MultivariateNormal(loc=0.0, covariance_matrix=jnp.eye(3))
    beta = numpyro.sample("coefficients", prior)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=x.dot(beta)), obs=y)


@case(
    "notebooks/source/bayesian_regression.ipynb: model",
    X[:, 1],
    X[:, 2],
    OUTCOME,
    at_mode="a bM bA sigma",
    verdict="exact",
)
def regression_with_optional_terms(marriage=None, age=None, divorce=None):
    a = numpyro.sample("a", dist.Normal(0.0, 0.2))
    mean = a
    if marriage is not None:
        mean = mean + numpyro.sample("bM", dist.Normal(0.0, 0.5)) * marriage
    if age is not None:
        mean = mean + numpyro.sample("bA", dist.Normal(0.0, 0.5)) * age
    sigma = numpyro.sample("sigma", dist.Exponential(1.0))
    numpyro.deterministic("mean", mean)
    numpyro.sample("obs", dist.Normal(mean, sigma), obs=divorce)


@case(
    "notebooks/source/bayesian_regression.ipynb: model, coefficients integrated",
    X,
    OUTCOME,
    at_mode="sigma",
)
def regression_with_integrated_coefficients(x, y):
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    sigma = numpyro.sample("sigma", dist.Exponential(1.0))
    numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


@case("test/infer/test_hmc_gibbs.py: test_linear_model_log_sigma", X, OUTCOME, at_mode="log_sigma")
def regression_with_a_log_scale(x, y):
    sigma = jnp.exp(numpyro.sample("log_sigma", dist.Normal(1.0)))
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(3), jnp.ones(3)))
    mean = numpyro.deterministic("mean", jnp.sum(beta * x, axis=-1))
    numpyro.sample("y", dist.Normal(mean, sigma), obs=y)


@case(
    "examples/horseshoe_regression.py: model_normal_likelihood",
    X,
    OUTCOME,
    at_mode="lambdas tau prec_obs",
)
def horseshoe(x, y):
    """Scales at their modes, coefficients integrated: exact, with scales that want to be 0."""
    lambdas = numpyro.sample("lambdas", dist.HalfCauchy(jnp.ones(3)))
    tau = numpyro.sample("tau", dist.HalfCauchy(jnp.ones(1)))
    unscaled = numpyro.sample("unscaled_betas", dist.Normal(0.0, jnp.ones(3)))
    betas = numpyro.deterministic("betas", tau * lambdas * unscaled)
    precision = numpyro.sample("prec_obs", dist.Gamma(3.0, 1.0))
    numpyro.sample("y", dist.Normal(x @ betas, 1.0 / jnp.sqrt(precision)), obs=y)


@case(
    "examples/horseshoe_regression.py: model_bernoulli_likelihood",
    X,
    LABELS,
    at_mode="tau",
    e_step="nuts",
    verdict="estimate",
    draws=200_000,
)
def logistic_horseshoe(x, y):
    tau = numpyro.sample("tau", dist.Gamma(3.0, 3.0))
    lambdas = numpyro.sample("lambdas", dist.HalfCauchy(jnp.ones(3)))
    unscaled = numpyro.sample("unscaled_betas", dist.Normal(0.0, jnp.ones(3)))
    numpyro.sample("y", dist.Bernoulli(logits=x @ (tau * lambdas * unscaled)), obs=y)


@case(MCMC + "test_prior_with_sample_shape", *SCHOOLS, at_mode="mu tau")
def schools_by_sample_shape(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.Gamma(2.0, 0.2))
    theta = numpyro.sample("theta", dist.Normal(mu, tau), sample_shape=(8,))
    numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


@case("examples of the README: eight schools, non-centered", *SCHOOLS, at_mode="mu tau")
def schools_by_reparam(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.Gamma(2.0, 0.2))
    with numpyro.plate("J", 8), handlers.reparam(config={"theta": TransformReparam()}):
        base = dist.TransformedDistribution(
            dist.Normal(0.0, 1.0), dist.transforms.AffineTransform(mu, tau)
        )
        theta = numpyro.sample("theta", base)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


@case(MCMC + "test_improper_prior", OUTCOME, at_mode="mean std")
def improper_priors(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).mask(False))
    std = numpyro.sample("std", dist.ImproperUniform(constraints.positive, (), ()))
    numpyro.sample("y", dist.Normal(mean, std), obs=y)


@case(MCMC + "test_improper_prior, the mean integrated", OUTCOME, at_mode="std")
def improper_mean_integrated(y):
    """A flat mean, integrated: restricted maximum likelihood."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).mask(False))
    std = numpyro.sample("std", dist.ImproperUniform(constraints.positive, (), ()))
    numpyro.sample("y", dist.Normal(mean, std), obs=y)


@case(MCMC + "test_beta_bernoulli_x64", DRAW.integers(0, 2, (20, 2)), at_mode="p")
def shares_with_beta_priors(y):
    p = numpyro.sample("p", dist.Beta(jnp.full(2, 1.1), jnp.full(2, 1.1)))
    numpyro.sample("y", dist.Bernoulli(p), obs=y)


@case(MCMC + "test_beta_bernoulli_x64, shares integrated", DRAW.integers(0, 2, (20, 2)), rows=-1)
def shares_integrated(y):
    a = numpyro.param("a", 1.1, constraint=constraints.positive)
    p = numpyro.sample("p", dist.Beta(a * jnp.ones(2), jnp.full(2, 1.1)))
    numpyro.sample("y", dist.Bernoulli(p), obs=y)


@case(
    MCMC + "test_dirichlet_categorical_x64", DRAW.integers(0, 3, 40), at_mode="p", verdict="exact"
)
def shares_with_a_dirichlet(y):
    p = numpyro.sample("p", dist.Dirichlet(jnp.array([2.0, 2.0, 2.0])))
    numpyro.sample("y", dist.Categorical(p), obs=y)


def dirichlet_formula(params, y):
    gammaln = jax.scipy.special.gammaln
    a = params["a"] * jnp.ones(3)
    n = jnp.asarray(np.stack([np.bincount(row, minlength=3) for row in y]))
    total = gammaln(a.sum()) - gammaln(a.sum() + n.sum(1))
    return jnp.sum(total + jnp.sum(gammaln(a + n) - gammaln(a), 1))


@case(
    MCMC + "test_dirichlet_categorical_x64, integrated",
    np.array([[0, 0, 0, 1], [2, 2, 1, 2], [1, 1, 0, 1], [0, 2, 0, 0]]),
    formula=dirichlet_formula,
)
def shares_of_groups(y):
    a = numpyro.param("a", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", len(y), dim=-2):
        p = numpyro.sample("p", dist.Dirichlet(a * jnp.ones(3)))
        with numpyro.plate("within", 4, dim=-1):
            numpyro.sample("y", dist.Categorical(p), obs=y)


@case(MCMC + "test_binomial_stable_x64", {"n": 5_000_000, "x": 3849}, at_mode="p")
def rare_events(data):
    p = numpyro.sample("p", dist.Beta(1.0, 1.0))
    numpyro.sample("x", dist.Binomial(data["n"], logits=jnp.log(p) - jnp.log1p(-p)), obs=data["x"])


def sum_of_segments(params, y):
    """tau between (k - 1) / n and k / n puts k days before the change."""
    rate = 1 / np.mean(y)
    before, after = (dist.Poisson(params[name]).log_prob(y) for name in ("before", "after"))
    days = jnp.arange(len(y))
    each = jnp.where(days < days[:, None] + 1, before, after).sum(1)
    priors = sum(dist.Exponential(rate).log_prob(params[name]) for name in ("before", "after"))
    return jax.scipy.special.logsumexp(each) - jnp.log(len(y)) + priors


@case(
    MCMC + "test_change_point_x64",
    DRAW.poisson(np.repeat([6.0, 12.0], [14, 10])),
    at_mode="before after",
    formula=sum_of_segments,
    verdict="UNHEALTHY",
)
def a_change_point_on_a_line(y):
    rate = 1 / np.mean(y)
    before = numpyro.sample("before", dist.Exponential(rate))
    after = numpyro.sample("after", dist.Exponential(rate))
    tau = numpyro.sample("tau", dist.Uniform(0.0, 1.0))
    rates = jnp.where(jnp.arange(len(y)) < tau * len(y), before, after)
    numpyro.sample("y", dist.Poisson(rates), obs=y)


@case(MCMC + "test_uniform_normal", 0.4, at_mode="alpha", verdict="quadrature", rows=0)
def uniform_below_a_parameter(y):
    alpha = numpyro.sample("alpha", dist.Uniform(0.0, 1.0))
    with handlers.reparam(config={"loc": TransformReparam()}):
        affine = dist.transforms.AffineTransform(0, alpha)
        law = dist.TransformedDistribution(dist.Uniform(0.0, 1.0), affine)
        loc = numpyro.sample("loc", law)
    numpyro.sample("y", dist.Normal(loc, 0.1), obs=y)


@case(MCMC + "test_fixed_num_steps", X[:, 1], OUTCOME, at_mode="w b sigma")
def a_line_with_strong_priors(x, y):
    w = numpyro.sample("w", dist.Normal(10.0, 1.0))
    b = numpyro.sample("b", dist.Normal(1.0, 1.0))
    sigma = numpyro.sample("sigma", dist.Gamma(1.0, 2.0))
    with numpyro.plate("rows", np.size(y)):
        numpyro.sample("y", dist.Normal(w * x + b, sigma), obs=y)


DEPT = np.repeat(np.arange(6), 2)
MALE = np.tile([1, 0], 6)
APPLICATIONS = np.array([82, 10, 56, 5, 32, 59, 41, 37, 19, 39, 37, 34])
ADMIT = np.array([51, 9, 35, 3, 12, 20, 14, 13, 5, 9, 2, 3])


def admissions_by_nodes(params, dept, male, applications, admit):
    """Two effects a department, by 150 nodes for each."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(150)
    logs = jnp.log(weights / weights.sum())
    z = jnp.stack([a.ravel() for a in np.meshgrid(nodes, nodes)])
    v = (params["sigma"][:, None] * params["L_Rho"]) @ z
    mean = params["v_mu"]
    logits = mean[0] + v[0] + (mean[1] + v[1]) * male[:, None]
    rows = dist.Binomial(applications[:, None], logits=logits).log_prob(admit[:, None])
    groups = jax.ops.segment_sum(rows, dept, 6) + (logs[:, None] + logs).ravel()
    prior = dist.Normal(0.0, jnp.array([4.0, 1.0])).log_prob(mean).sum()
    prior += dist.Gamma(3.0, 4.0).log_prob(params["sigma"]).sum()
    prior += dist.LKJCholesky(2, concentration=2.0).log_prob(params["L_Rho"])
    return jax.scipy.special.logsumexp(groups, axis=1).sum() + prior


@case(
    "examples/ucbadmit.py: glmm",
    DEPT,
    MALE,
    APPLICATIONS,
    ADMIT,
    at_mode="v_mu sigma L_Rho",
    verdict="quadrature",
    formula=admissions_by_nodes,
)
def admissions(dept, male, applications, admit):
    v_mu = numpyro.sample("v_mu", dist.Normal(0.0, jnp.array([4.0, 1.0])))
    sigma = numpyro.sample("sigma", dist.Gamma(3.0, 4.0).expand([2]))
    corr = numpyro.sample("L_Rho", dist.LKJCholesky(2, concentration=2.0))
    z = numpyro.sample("z", dist.Normal(jnp.zeros((6, 2)), 1.0))
    v = jnp.dot(sigma[:, None] * corr, z.T).T
    logits = v_mu[0] + v[dept, 0] + (v_mu[1] + v[dept, 1]) * male
    numpyro.sample("admit", dist.Binomial(applications, logits=logits), obs=admit)


def ordinal_data():
    latent = X[:, 1] + DRAW.logistic(0, 1, 30)
    return X[:, 1], np.digitize(latent, [-1.0, 0.8])


@case(
    "notebooks/source/ordinal_regression.ipynb: model1",
    *ordinal_data(),
    at_mode="slope cuts",
    verdict="exact",
)
def ordered_outcomes(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    ordered = dist.transforms.OrderedTransform()
    cuts = numpyro.sample(
        "cuts", dist.TransformedDistribution(dist.Normal(0.0, 1.0).expand([2]).to_event(1), ordered)
    )
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.OrderedLogistic(slope * x, cuts), obs=y)


@case(
    "notebooks/source/ordinal_regression.ipynb: model2",
    *ordinal_data(),
    at_mode="slope cuts",
    verdict="exact",
)
def ordered_outcomes_by_an_improper_prior(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    cuts = numpyro.sample("cuts", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.OrderedLogistic(slope * x, cuts), obs=y)


@case(
    "notebooks/source/bayesian_hierarchical_linear_regression.ipynb: model",
    np.repeat(np.arange(5), 6),
    X[:, 1],
    OUTCOME,
    at_mode="mu sigma s",
)
def lines_of_patients(patient, week, fvc):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0).expand([2]))
    sigma = numpyro.sample("sigma", dist.Gamma(3.0, 4.0).expand([2]))
    with numpyro.plate("patients", 5):
        a = numpyro.sample("a", dist.Normal(mu[0], sigma[0]))
        b = numpyro.sample("b", dist.Normal(mu[1], sigma[1]))
    s = numpyro.sample("s", dist.HalfNormal(5.0))
    with numpyro.plate("rows", len(fvc)):
        numpyro.sample("y", dist.Normal(a[patient] + b[patient] * week, s), obs=fvc)


@case(
    "notebooks/source/variationally_inferred_parameterization.ipynb: german_credit_reparam",
    X,
    LABELS,
    at_mode="log_tau_zero",
    e_step="nuts",
    verdict="estimate",
    draws=200_000,
)
def scales_of_coefficients(x, y):
    log_tau_zero = numpyro.sample("log_tau_zero", dist.Normal(0.0, 1.0))
    log_tau = numpyro.sample("log_tau", dist.Normal(log_tau_zero, jnp.ones(3)))
    with handlers.reparam(config={"beta": LocScaleReparam(0)}):
        beta = numpyro.sample("beta", dist.Normal(jnp.zeros(3), jnp.exp(log_tau)))
    numpyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


@case(
    "notebooks/source/bayesian_cuped.ipynb: cuped_model",
    X[:, 1],
    LABELS,
    OUTCOME,
    at_mode="a theta s b beta sc",
    verdict="exact",
)
def an_outcome_corrected_by_a_latent(pre, treated, post):
    """The second outcome is computed from a latent of the first part."""
    a = numpyro.sample("a", dist.Normal(0.0, 2.0))
    theta = numpyro.sample("theta", dist.Normal(0.0, 3.0))
    s = numpyro.sample("s", dist.HalfCauchy(2.0))
    b = numpyro.sample("b", dist.Normal(0.0, 2.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 3.0))
    sc = numpyro.sample("sc", dist.HalfCauchy(2.0))
    with numpyro.plate("rows", len(post)):
        numpyro.sample("y", dist.Normal(a + theta * pre, s), obs=post)
    corrected = numpyro.deterministic("corrected", post - theta * (pre - jnp.mean(pre)))
    with numpyro.plate("again", len(post)):
        numpyro.sample("yc", dist.Normal(b + beta * treated, sc), obs=corrected)


@case(
    "notebooks/source/truncated_distributions.ipynb: truncated_normal_model",
    np.minimum(OUTCOME, 0.8),
    at_mode="loc scale",
    verdict="exact",
)
def truncated_normal(y):
    loc, scale = numpyro.sample("loc", dist.Normal()), numpyro.sample("scale", dist.LogNormal())
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.TruncatedNormal(loc, scale, high=1.0), obs=y)


@case(
    "notebooks/source/truncated_distributions.ipynb: folded_student_model",
    np.abs(OUTCOME),
    at_mode="loc scale df",
    verdict="exact",
)
def folded_student(y):
    df = numpyro.sample("df", dist.Gamma(6.0, 2.0))
    loc, scale = numpyro.sample("loc", dist.Normal()), numpyro.sample("scale", dist.LogNormal())
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.FoldedDistribution(dist.StudentT(df, loc, scale)), obs=y)


@case(
    "notebooks/source/censoring.ipynb",
    np.minimum(np.exp(OUTCOME), 3.0),
    np.exp(OUTCOME) > 3.0,
    at_mode="loc scale",
    verdict="exact",
)
def censored_times(y, censored):
    loc, scale = numpyro.sample("loc", dist.Normal()), numpyro.sample("scale", dist.LogNormal())
    law = dist.LogNormal(loc, scale)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.RightCensoredDistribution(law, censored), obs=y)
