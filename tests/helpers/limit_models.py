"""Models whose likelihood is highest in a limit at infinity, and those limits by SciPy."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import gammaln
from numpyro.distributions import constraints
from scipy import optimize, special, stats

COUNTS = np.tile([2.0, 3, 2, 1, 2, 3, 2, 2, 4, 1, 2, 2], 5)
TRIALS = 10
SHARES = np.tile([4.0, 5, 6, 3, 5, 4, 4, 5], 6)
TABLE = np.tile([[3.0, 4, 3], [4, 3, 3], [3, 3, 4], [4, 4, 2], [2, 4, 4]], (6, 1))
LIGHT = np.clip(stats.norm.ppf((np.arange(50) + 0.5) / 50), -1.8, 1.8)
"""A sample with lighter tails than a normal one."""


class Limit(NamedTuple):
    """A model, the log-likelihood of its limit, what goes there, and words for the law.

    `others` are parameters that stay, with their standard errors in the limit.
    """

    model: Callable
    value: float
    labels: set[str]
    law: str
    others: dict[str, float]


def _positive(name: str, start) -> jax.Array:
    return numpyro.param(name, start, constraint=constraints.positive)


def _counts(law: Callable) -> Callable:
    def model():
        mean = jnp.exp(numpyro.param("eta", 1.0))
        with numpyro.plate("rows", len(COUNTS)):
            numpyro.sample("y", law(mean), obs=COUNTS)

    return model


def by_hand(counts=COUNTS):
    """Negative binomial counts, written out."""
    mean, k = jnp.exp(numpyro.param("eta", 1.0)), _positive("k", 2.0)
    terms = gammaln(counts + k) - gammaln(k) - gammaln(counts + 1)
    terms += k * jnp.log(k / (k + mean)) + counts * jnp.log(mean / (k + mean))
    numpyro.factor("counts", jnp.sum(terms))


def _gamma_latents():
    mean, k = jnp.exp(numpyro.param("eta", 1.0)), _positive("k", 2.0)
    with numpyro.plate("rows", len(COUNTS)):
        rate = numpyro.sample("rate", dist.Gamma(k, k / mean))
        numpyro.sample("y", dist.Poisson(rate), obs=COUNTS)


def _beta_binomial(written: str) -> Callable:
    def model():
        if written == "mean":
            p = numpyro.param("p", 0.3, constraint=constraints.unit_interval)
            k = _positive("k", 2.0)
            a, b = p * k, (1 - p) * k
        else:
            a, b = _positive("a", 1.0), _positive("b", 2.0)
        with numpyro.plate("rows", len(SHARES)):
            numpyro.sample("y", dist.BetaBinomial(a, b, total_count=TRIALS), obs=SHARES)

    return model


def _dirichlet_multinomial(written: str) -> Callable:
    def model():
        if written == "mean":
            start = jnp.array([0.2, 0.3, 0.5])
            shares = numpyro.param("p", start, constraint=constraints.simplex) * _positive("k", 2.0)
        else:
            shares = _positive("a", jnp.array([1.0, 2.0, 3.0]))
        with numpyro.plate("rows", len(TABLE)):
            numpyro.sample("y", dist.DirichletMultinomial(shares, total_count=TRIALS), obs=TABLE)

    return model


def _student():
    m, s, df = numpyro.param("m", 0.2), _positive("s", 2.0), _positive("df", 4.0)
    with numpyro.plate("rows", len(LIGHT)):
        numpyro.sample("y", dist.StudentT(df, m, s), obs=LIGHT)


def _student_latents():
    m, s, df = numpyro.param("m", 0.2), _positive("s", 2.0), _positive("df", 4.0)
    with numpyro.plate("rows", len(LIGHT)):
        w = numpyro.sample("w", dist.Gamma(df / 2, df / 2))
        numpyro.sample("y", dist.Normal(m, s / jnp.sqrt(w)), obs=LIGHT)


POISSON = stats.poisson(COUNTS.mean()).logpmf(COUNTS).sum()
BINOMIAL = stats.binom(TRIALS, SHARES.mean() / TRIALS).logpmf(SHARES).sum()
MULTINOMIAL = stats.multinomial(TRIALS, TABLE.sum(0) / TABLE.sum()).logpmf(TABLE).sum()
NORMAL = stats.norm(LIGHT.mean(), LIGHT.std()).logpdf(LIGHT).sum()

ETA = {"eta": COUNTS.sum() ** -0.5}
PROBABILITY = {"p": (SHARES.mean() / TRIALS * (1 - SHARES.mean() / TRIALS) / 480) ** 0.5}
MOMENTS = {"m": LIGHT.std() / 50**0.5, "s": LIGHT.std() / 100**0.5}

DISPERSIONS = {
    "negative_binomial": Limit(
        _counts(lambda mean: dist.NegativeBinomial2(mean, _positive("k", 2.0))),
        POISSON, {"k"}, "the Poisson limit of `y`", ETA,
    ),
    "inverse_dispersion": Limit(
        _counts(lambda mean: dist.NegativeBinomial2(mean, 1 / _positive("k", 0.5))),
        POISSON, {"k"}, "the Poisson limit of `y`", ETA,
    ),
    "logarithm": Limit(
        _counts(lambda mean: dist.NegativeBinomial2(mean, jnp.exp(numpyro.param("k", 0.5)))),
        POISSON, {"k"}, "the Poisson limit of `y`", ETA,
    ),
    "gamma_poisson": Limit(
        _counts(lambda mean: dist.GammaPoisson(k := _positive("k", 2.0), k / mean)),
        POISSON, {"k"}, "the Poisson limit of `y`", ETA,
    ),
    "by_hand": Limit(by_hand, POISSON, {"k"}, "its limit there", ETA),
    "gamma_latents": Limit(
        _gamma_latents, POISSON, {"k"}, "the limit without variance of `rate`", ETA
    ),
    "beta_binomial": Limit(
        _beta_binomial("mean"), BINOMIAL, {"k"}, "the binomial limit of `y`", PROBABILITY
    ),
    "beta_binomial_shapes": Limit(
        _beta_binomial("shapes"), BINOMIAL, {"a", "b"}, "the binomial limit of `y`", {}
    ),
    "dirichlet_multinomial": Limit(
        _dirichlet_multinomial("mean"), MULTINOMIAL, {"k"}, "the multinomial limit of `y`", {}
    ),
    "dirichlet_multinomial_shapes": Limit(
        _dirichlet_multinomial("shapes"), MULTINOMIAL, {"a[0]", "a[1]", "a[2]"},
        "the multinomial limit of `y`", {},
    ),
    "student": Limit(_student, NORMAL, {"df"}, "the normal limit of `y`", MOMENTS),
    "student_latents": Limit(
        _student_latents, NORMAL, {"df"}, "the limit without variance of `w`", MOMENTS
    ),
}  # fmt: skip


def logistic(x: np.ndarray, y: np.ndarray) -> Callable:
    """A regression of 0 and 1 with an intercept `a` and slopes `b`."""

    def model():
        eta = numpyro.param("a", 0.0) + x @ numpyro.param("b", jnp.zeros(x.shape[1]))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Bernoulli(logits=eta), obs=y)

    return model


def recession(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By linear programming, which rows a ray takes away, and which coefficients move along one.

    Of a logistic regression with an intercept: a ray has (2y − 1) (1, x) d ≥ 0 for all rows, and
    the largest number of rows with > 0 is wanted.
    """
    design = (2 * y - 1)[:, None] * np.column_stack([np.ones(len(y)), x])
    design = design / np.max(np.abs(design), axis=0)
    rows, size = design.shape
    cost = np.r_[np.zeros(size), -np.ones(rows)]
    above = np.hstack([-design, np.eye(rows)])
    limits = [(None, None)] * size + [(0, 1)] * rows
    found = optimize.linprog(cost, above, np.zeros(rows), bounds=limits)
    way = found.x[:size]
    return found.x[size:] > 0.5, np.abs(way) > 1e-7 * np.max(np.abs(way))


def supremum(x: np.ndarray, y: np.ndarray) -> float:
    """The highest log-likelihood of that regression: that of the rows that no ray takes away."""
    gone = recession(x, y)[0]
    design = np.column_stack([np.ones(len(y)), x])[~gone]
    if not len(design):
        return 0.0
    left, sizes, _ = np.linalg.svd(design / np.max(np.abs(design), axis=0))
    rank = int(np.sum(sizes > 1e-10 * sizes[0]))
    basis, signs = left[:, :rank] * sizes[:rank], 2 * y[~gone] - 1

    def loss(q):
        return -np.sum(special.log_expit(signs * (basis @ q)))

    return -float(optimize.minimize(loss, np.zeros(rank), method="BFGS", tol=1e-9).fun)


RNG = np.random.default_rng(1)
SLOPES = RNG.normal(size=(40, 2))
APART = (SLOPES @ [1.0, -0.7] + 0.2 > 0) * 1.0
"""Complete separation by two predictors together."""

MIDDLE, AWAY = RNG.normal(size=42), np.r_[np.zeros(12), 0.1 + np.abs(RNG.normal(size=30))]
SIDE = np.r_[np.tile([1.0, 0, 0, 1], 3), np.tile([0.0, 1], 15)]
ALONG = np.column_stack([MIDDLE, MIDDLE + AWAY * (2 * SIDE - 1), RNG.normal(size=42)])
"""The difference of the first two separates all rows but twelve, in which it is 0."""
