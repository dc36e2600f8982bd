"""Models with conjugate latents, and their marginal likelihoods in closed form."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import gammaln
from numpyro import handlers
from numpyro.distributions import constraints

POSITIVE = constraints.positive


class Case(NamedTuple):
    """A model, its arguments, its log-likelihood, and the posterior means of some latents."""

    model: Callable
    args: tuple
    log_likelihood: Callable
    means: Callable | None = None


def positive(name, value):
    return numpyro.param(name, value, constraint=POSITIVE)


def total(values, group, size=4):
    return jax.ops.segment_sum(jnp.asarray(values), group, size)


def counts(y, t, group, seen):
    """Gamma-Poisson in long format, some rows masked out."""
    shape, rate = positive("shape", 1.5), positive("rate", 1.2)
    with numpyro.plate("groups", 4):
        theta = numpyro.sample("theta", dist.Gamma(shape, rate))
    with numpyro.plate("rows", len(y)), handlers.mask(mask=seen):
        numpyro.sample("y", dist.Poisson(theta[group] * t), obs=y)


def counts_posterior(params, y, t, group, seen):
    shape = params["shape"] + total(y * seen, group)
    return shape, params["rate"] + total(t * seen, group)


def counts_law(params, y, t, group, seen):
    shape, rate = counts_posterior(params, y, t, group, seen)
    prior = params["shape"] * jnp.log(params["rate"]) - gammaln(params["shape"])
    rows = jnp.sum(seen * (y * jnp.log(t) - gammaln(y + 1)))
    return rows + jnp.sum(prior + gammaln(shape) - shape * jnp.log(rate))


def counts_means(params, *args):
    shape, rate = counts_posterior(params, *args)
    return {"theta": shape / rate}


def frailty(time, event, group):
    """Weibull hazards with a gamma frailty, censored, the likelihood written as a factor."""
    theta, rho = positive("theta", 0.5), positive("rho", 1.2)
    beta = numpyro.param("beta", -2.0)
    with numpyro.plate("groups", 4):
        z = numpyro.sample("z", dist.Gamma(1 / theta, 1 / theta))
    hazard = jnp.log(z[group]) + beta + jnp.log(rho) + (rho - 1) * jnp.log(time)
    numpyro.factor("survival", jnp.sum(event * hazard - z[group] * jnp.exp(beta) * time**rho))


def frailty_posterior(params, time, event, group):
    precision = 1 / params["theta"]
    hazard = total(jnp.exp(params["beta"]) * time ** params["rho"], group)
    return precision + total(event, group), precision + hazard


def frailty_law(params, time, event, group):
    shape, rate = frailty_posterior(params, time, event, group)
    precision, rho = 1 / params["theta"], params["rho"]
    prior = precision * jnp.log(precision) - gammaln(precision)
    rows = jnp.sum(event * (params["beta"] + jnp.log(rho) + (rho - 1) * jnp.log(time)))
    return rows + jnp.sum(prior + gammaln(shape) - shape * jnp.log(rate))


def frailty_means(params, *args):
    shape, rate = frailty_posterior(params, *args)
    return {"z": shape / rate}


def student(y, x):
    """Student-t regression as a scale mixture of normals; the weights as an event dimension."""
    beta = numpyro.param("beta", jnp.array([0.3, 0.8]))
    sigma, df = positive("sigma", 0.8), positive("df", 4.0)
    weight = numpyro.sample("weight", dist.Gamma(df / 2, df / 2).expand([len(y)]).to_event(1))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(beta[0] + beta[1] * x, sigma / jnp.sqrt(weight)), obs=y)


def student_law(params, y, x):
    mean = params["beta"][0] + params["beta"][1] * x
    return jnp.sum(dist.StudentT(params["df"], mean, params["sigma"]).log_prob(y))


def student_means(params, y, x):
    z = (y - params["beta"][0] - params["beta"][1] * x) / params["sigma"]
    return {"weight": (params["df"] + 1) / (params["df"] + z**2)}


def binomial(y, n):
    a, b = positive("a", 1.5), positive("b", 2.5)
    with numpyro.plate("rows", len(y)):
        p = numpyro.sample("p", dist.Beta(a, b))
        numpyro.sample("y", dist.Binomial(n, p), obs=y)


def binomial_law(params, y, n):
    """The beta-binomial law; `dist.BetaBinomial` has 7 digits, which `betaln` takes from it."""
    a, b = params["a"], params["b"]
    choose = gammaln(n + 1.0) - gammaln(y + 1.0) - gammaln(n - y + 1.0)
    return jnp.sum(choose + log_beta(a + y, b + n - y) - log_beta(a, b))


def log_beta(a, b):
    return gammaln(a) + gammaln(b) - gammaln(a + b)


def binomial_means(params, y, n):
    return {"p": (params["a"] + y) / (params["a"] + params["b"] + n)}


def multinomial(y):
    concentration = positive("concentration", jnp.array([1.5, 0.8, 2.0, 1.1]))
    with numpyro.plate("rows", len(y)):
        p = numpyro.sample("p", dist.Dirichlet(concentration))
        numpyro.sample("y", dist.Multinomial(total_count=9, probs=p), obs=y)


def multinomial_law(params, y):
    return jnp.sum(dist.DirichletMultinomial(params["concentration"], 9).log_prob(y))


def multinomial_means(params, y):
    concentration = params["concentration"] + y
    return {"p": concentration / concentration.sum(-1, keepdims=True)}


def scales(y, group):
    """An inverse-gamma variance for each group of normal rows."""
    mu, a, b = numpyro.param("mu", 0.2), positive("a", 3.0), positive("b", 2.0)
    with numpyro.plate("groups", 4):
        v = numpyro.sample("v", dist.InverseGamma(a, b))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mu, jnp.sqrt(v[group])), obs=y)


def scales_posterior(params, y, group):
    shape = params["a"] + total(jnp.ones(len(y)), group) / 2
    return shape, params["b"] + total((y - params["mu"]) ** 2, group) / 2


def scales_law(params, y, group):
    shape, rate = scales_posterior(params, y, group)
    prior = params["a"] * jnp.log(params["b"]) - gammaln(params["a"])
    terms = prior + gammaln(shape) - shape * jnp.log(rate)
    return jnp.sum(terms) - 0.5 * len(y) * jnp.log(2 * jnp.pi)


def scales_means(params, y, group):
    shape, rate = scales_posterior(params, y, group)
    return {"v": rate / (shape - 1)}


def waiting(y):
    """One scalar latent with an exponential prior."""
    rate = positive("rate", 0.7)
    speed = numpyro.sample("speed", dist.Exponential(rate))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Exponential(speed), obs=y)


def waiting_law(params, y):
    n = len(y)
    return jnp.log(params["rate"]) + gammaln(n + 1.0) - (n + 1) * jnp.log(params["rate"] + y.sum())


def waiting_means(params, y):
    return {"speed": (len(y) + 1) / (params["rate"] + y.sum())}


def mixed(y, group, k):
    """Gaussian intercepts, gamma rates and a beta share, independent given the data."""
    tau, sigma = positive("tau", 1.0), positive("sigma", 0.6)
    shape, tilt = positive("shape", 1.5), positive("tilt", 2.0)
    with numpyro.plate("groups", 4):
        b = numpyro.sample("b", dist.Normal(0.0, tau))
        rate = numpyro.sample("rate", dist.Gamma(shape, 1.0))
        numpyro.sample("k", dist.Poisson(rate), obs=k)
    share = numpyro.sample("share", dist.Beta(tilt, 1.0))
    numpyro.sample("success", dist.Binomial(10, share), obs=jnp.array(7))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(b[group], sigma), obs=y)


def mixed_law(params, y, group, k):
    between = params["tau"] ** 2 * (group[:, None] == group[None])
    covariance = between + params["sigma"] ** 2 * jnp.eye(len(y))
    value = dist.MultivariateNormal(jnp.zeros(len(y)), covariance).log_prob(y)
    shape = params["shape"]
    value += jnp.sum(gammaln(shape + k) - gammaln(shape) - gammaln(k + 1) - (shape + k) * np.log(2))
    return value + binomial_law({"a": params["tilt"], "b": 1.0}, 7.0, 10.0)


def mixed_means(params, y, group, k):
    return {
        "rate": (params["shape"] + k) / 2.0,
        "share": (params["tilt"] + 7) / (params["tilt"] + 11),
    }


def imputed(y, seen):
    """Gamma rows, some missing: NumPyro adds a latent for each row, idle where it is seen."""
    shape, rate = positive("shape", 2.0), positive("rate", 1.5)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Gamma(shape, rate), obs=y, obs_mask=seen)


def imputed_law(params, y, seen):
    return jnp.sum(dist.Gamma(params["shape"], params["rate"]).log_prob(y[seen]))


_rng = np.random.default_rng(7)
_group = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 1, 2])
_y = np.array([3.0, 0, 7, 1, 2, 4, 0, 0, 5, 2, 1, 1])
_t = _rng.uniform(0.5, 3.0, 12)
_seen = np.array([True, True, False, True] * 3)
_event = np.array([1.0, 0, 1, 1, 0, 1, 0, 1, 1, 1, 0, 1])
_x = _rng.normal(size=12)
_normal = 0.3 + 0.8 * _x + 0.7 * _rng.standard_t(3, 12)
_table = np.array([[9, 0, 0, 0], [2, 3, 1, 3], [0, 0, 4, 5], [1, 2, 5, 1], [4, 1, 3, 1]])

CONJUGATE = {
    "counts": Case(counts, (_y, _t, _group, _seen), counts_law, counts_means),
    "frailty": Case(frailty, (_t, _event, _group), frailty_law, frailty_means),
    "student": Case(student, (_normal, _x), student_law, student_means),
    "binomial": Case(
        binomial, (np.array([0, 3, 10, 6]), np.array([5, 8, 10, 40])), binomial_law, binomial_means
    ),
    "multinomial": Case(multinomial, (_table,), multinomial_law, multinomial_means),
    "scales": Case(scales, (_normal, _group), scales_law, scales_means),
    "waiting": Case(waiting, (_t,), waiting_law, waiting_means),
    "mixed": Case(mixed, (_normal, _group, np.array([0.0, 3, 1, 2])), mixed_law, mixed_means),
    "imputed": Case(imputed, (_t, _seen), imputed_law),
}
