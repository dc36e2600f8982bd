"""Small models with nonlinear latents, and their likelihoods in closed form or on a fine grid."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints
from scipy import stats
from scipy.special import betaln, expit, gammaln

POSITIVE = constraints.positive


class Case(NamedTuple):
    """A model, its arguments, and its log-likelihood as a function of the parameters."""

    model: Callable
    args: tuple
    log_likelihood: Callable | None = None


def proportions(n, y):
    """A beta latent for each binomial count: beta-binomial."""
    a = numpyro.param("a", 1.0, constraint=POSITIVE)
    b = numpyro.param("b", 1.0, constraint=POSITIVE)
    with numpyro.plate("rows", len(n)):
        p = numpyro.sample("p", dist.Beta(a, b))
        numpyro.sample("y", dist.Binomial(n, p), obs=y)


def proportions_law(params, n, y):
    a, b = float(params["a"]), float(params["b"])
    choose = gammaln(n + 1) - gammaln(y + 1) - gammaln(n - y + 1)
    return np.sum(choose + betaln(y + a, n - y + b) - betaln(a, b))


def heavy_tails(x, y):
    """A gamma scale for each row: Student-t errors."""
    slope = numpyro.param("slope", 0.5)
    scale = numpyro.param("scale", 1.0, constraint=POSITIVE)
    with numpyro.plate("rows", len(x)):
        w = numpyro.sample("w", dist.Gamma(2.0, 2.0))
        numpyro.sample("y", dist.Normal(slope * x, scale / jnp.sqrt(w)), obs=y)


def heavy_tails_law(params, x, y):
    return np.sum(stats.t.logpdf(y, 4.0, float(params["slope"]) * x, float(params["scale"])))


def absences(y, group):
    """Counts with structural zeros, a discrete latent, beside a normal effect for each group."""
    rate = numpyro.param("rate", 0.5)
    sd = numpyro.param("sd", 0.7, constraint=POSITIVE)
    absent = numpyro.param("absent", 0.3, constraint=constraints.unit_interval)
    with numpyro.plate("groups", int(np.max(group)) + 1):
        b = numpyro.sample("b", dist.Normal(0.0, sd))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(absent))
        mean = jnp.where(z == 1, 1e-12, jnp.exp(rate + b[group]))
        numpyro.sample("y", dist.Poisson(mean), obs=y)


def absences_law(params, y, group):
    rate, sd, absent = (float(params[name]) for name in ("rate", "sd", "absent"))
    grid = np.linspace(-9, 9, 4001) * sd
    counts = np.log1p(-absent) + stats.poisson.logpmf(y[:, None], np.exp(rate + grid))
    rows = np.logaddexp(counts, np.where(y == 0, np.log(absent), -1e30)[:, None])
    sums = np.stack([rows[group == g].sum(axis=0) for g in range(group.max() + 1)])
    density = np.exp(sums) * stats.norm.pdf(grid, 0, sd)
    return np.sum(np.log(np.sum(density, axis=1) * (grid[1] - grid[0])))


def slopes(x, group, y):
    """Binary data with an intercept and a slope in each group."""
    beta = numpyro.param("beta", jnp.array([0.2, -0.3]))
    sd = numpyro.param("sd", jnp.array([0.8, 0.5]), constraint=POSITIVE)
    with numpyro.plate("groups", int(np.max(group)) + 1):
        a = numpyro.sample("a", dist.Normal(beta[0], sd[0]))
        b = numpyro.sample("b", dist.Normal(beta[1], sd[1]))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=a[group] + b[group] * x), obs=y)


def slopes_law(params, x, group, y):
    beta, sd = np.asarray(params["beta"]), np.asarray(params["sd"])
    z = np.linspace(-9, 9, 301)
    a, b = np.meshgrid(beta[0] + sd[0] * z, beta[1] + sd[1] * z)
    weight = stats.norm.logpdf(z)[:, None] + stats.norm.logpdf(z) + 2 * np.log(z[1] - z[0])
    total = 0.0
    for g in range(group.max() + 1):
        terms = weight.copy()
        for i in np.flatnonzero(group == g):
            terms += np.log(expit((2 * y[i] - 1) * (a + b * x[i])))
        total += np.log(np.sum(np.exp(terms)))
    return total


def walk(y):
    """Counts around a random walk: a chain."""
    step = numpyro.param("step", 0.5, constraint=POSITIVE)
    start = numpyro.param("start", 0.3)
    u = numpyro.sample("u", dist.GaussianRandomWalk(step, num_steps=len(y)))
    with numpyro.plate("counts", len(y)):
        numpyro.sample("y", dist.Poisson(jnp.exp(start + u)), obs=y)


def raters(y, rater, item):
    """Binary data with crossed effects."""
    mean = numpyro.param("mean", 0.2)
    sd = numpyro.param("sd", jnp.array([0.8, 0.5]), constraint=POSITIVE)
    with numpyro.plate("raters", 3):
        a = numpyro.sample("a", dist.Normal(0.0, sd[0]))
    with numpyro.plate("items", 12):
        b = numpyro.sample("b", dist.Normal(0.0, sd[1]))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=mean + a[rater] + b[item]), obs=y)


_rng = np.random.default_rng(7)
_n = np.array([3, 8, 12, 5, 9, 14])
_group = np.repeat(np.arange(5), 4)
_x = _rng.normal(size=20)
_rater, _item = (a.ravel() for a in np.meshgrid(np.arange(3), np.arange(12), indexing="ij"))

CASES = {
    "proportions": Case(proportions, (_n, np.array([0, 3, 9, 5, 2, 6])), proportions_law),
    "heavy_tails": Case(heavy_tails, (_x, _x + _rng.standard_t(3, size=20)), heavy_tails_law),
    "absences": Case(absences, (_rng.poisson(1.5, size=20) * (_x > -0.5), _group), absences_law),
    "slopes": Case(slopes, (_x, _group, (_rng.uniform(size=20) < 0.6) * 1), slopes_law),
}
STRUCTURED = {
    "walk": Case(walk, (_rng.poisson(3.0, size=12),)),
    "raters": Case(raters, ((_rng.uniform(size=36) < 0.6) * 1, _rater, _item)),
}
