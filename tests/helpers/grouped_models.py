"""Rows in groups, with a random intercept or without, and marginal likelihoods by hand."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints
from scipy.special import gammaln, logsumexp
from scipy.stats import multivariate_normal


def gaussian(x, group, y, number):
    """A line with a random intercept."""
    beta = numpyro.param("beta", jnp.zeros(x.shape[1]))
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    sigma = numpyro.param("sigma", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", number):
        z = numpyro.sample("z", dist.Normal(0.0, sd))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(x @ beta + z[group], sigma), obs=y)


def line(x, group, y, number):
    """The same without the intercepts, and without any latent."""
    beta = numpyro.param("beta", jnp.zeros(x.shape[1]))
    sigma = numpyro.param("sigma", 1.0, constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def logistic(x, group, y, number):
    """A logistic regression with a random intercept."""
    beta = numpyro.param("beta", jnp.zeros(x.shape[1]))
    sd = numpyro.param("sd", 0.8, constraint=constraints.positive)
    with numpyro.plate("groups", number):
        z = numpyro.sample("z", dist.Normal(0.0, sd))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=x @ beta + z[group]), obs=y)


def mixture(x, group, y, number):
    """Two normal components, row by row."""
    loc = numpyro.param("loc", jnp.array([-1.0, 1.5]))
    share = numpyro.param("share", 0.4, constraint=constraints.unit_interval)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(share))
        numpyro.sample("y", dist.Normal(loc[z], 1.0), obs=y)


def rates(x, group, y, number):
    """Poisson counts with a gamma rate for each group."""
    shape = numpyro.param("shape", 2.0, constraint=constraints.positive)
    with numpyro.plate("groups", number):
        z = numpyro.sample("z", dist.Gamma(shape, 1.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Poisson(z[group]), obs=y)


def rows(seed=0, number=12, size=5, sd=0.7, effect=0.6):
    """Covariates (N, 2), groups (N,) and outcomes (N,) of the first model."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(number), size)
    x = np.column_stack([np.ones(len(group)), rng.normal(size=len(group))])
    y = x @ [1.0, effect] + sd * rng.normal(size=number)[group] + rng.normal(size=len(group))
    return {"x": x, "group": group, "y": y, "number": number}


def gaussian_by_group(params, data):
    """Log-densities of the groups of `gaussian`: multivariate normal."""
    found = []
    for g in range(data["number"]):
        mine = data["group"] == g
        mean = data["x"][mine] @ np.asarray(params["beta"])
        size = int(mine.sum())
        cov = float(params["sigma"]) ** 2 * np.eye(size) + float(params["sd"]) ** 2
        found.append(multivariate_normal(mean, cov).logpdf(data["y"][mine]))
    return np.array(found)


def logistic_by_group(params, data, nodes=60):
    """Those of `logistic`, by Gauss-Hermite nodes."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    logits = (data["x"] @ np.asarray(params["beta"]))[:, None] + float(params["sd"]) * points
    terms = data["y"][:, None] * logits - np.logaddexp(0, logits)
    sums = np.array([terms[data["group"] == g].sum(axis=0) for g in range(data["number"])])
    return logsumexp(sums, axis=1, b=weights / np.sqrt(2 * np.pi))


def mixture_by_group(params, data):
    """Those of `mixture`, a row each."""
    y, share = data["y"], float(params["share"])
    logs = [-0.5 * (y - float(m)) ** 2 - 0.5 * np.log(2 * np.pi) for m in params["loc"]]
    return np.logaddexp(np.log1p(-share) + logs[0], np.log(share) + logs[1])


def rates_by_group(params, data):
    """Those of `rates`: gamma integrals."""
    found, a = [], float(params["shape"])
    for g in range(data["number"]):
        y = data["y"][data["group"] == g]
        total = a + y.sum()
        value = gammaln(total) - gammaln(a) - total * np.log(1 + len(y)) - gammaln(y + 1).sum()
        found.append(value)
    return np.array(found)
