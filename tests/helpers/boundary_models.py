"""Models whose maximum is at a bound, or close to one, and their likelihoods by NumPy and SciPy."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints
from scipy import optimize, stats

GROUPS = np.repeat(np.arange(7), [2, 5, 3, 8, 4, 6, 3])
"""Unbalanced groups of 31 rows."""


def rows(spread: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows with a slope, whose residuals have means by group of standard deviation `spread`."""
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=len(GROUPS)), rng.normal(size=len(GROUPS))
    away = rng.normal(size=7)
    means = np.bincount(GROUPS, noise) / np.bincount(GROUPS)
    shift = spread * (away - away.mean()) / away.std() - means
    return {"x": x, "group": GROUPS, "y": 3.0 + 0.7 * x + noise + shift[GROUPS]}


def intercepts(x, group, y=None, parameter="sd", constraint=constraints.positive):
    """A random intercept `b`, written with its standard deviation, variance, or non-centred."""
    alpha = numpyro.param("alpha", 0.0)
    beta = numpyro.param("beta", 0.0)
    sigma = numpyro.param("sigma", 1.5, constraint=constraints.positive)
    tau = numpyro.param("tau", 0.8, constraint=constraint)
    scale = jnp.sqrt(tau) if parameter == "variance" else tau
    with numpyro.plate("groups", 7):
        b = numpyro.sample("b", dist.Normal(0.0, 1.0 if parameter == "noncentred" else scale))
    effect = scale * b if parameter == "noncentred" else b
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(alpha + beta * x + effect[group], sigma), obs=y)


def centred_on_alpha(x, group, y=None):
    """The same with group means around `alpha`, for which EM gets stuck as `tau` goes to 0."""
    alpha = numpyro.param("alpha", 0.0)
    beta = numpyro.param("beta", 0.0)
    sigma = numpyro.param("sigma", 1.5, constraint=constraints.positive)
    tau = numpyro.param("tau", 0.8, constraint=constraints.positive)
    with numpyro.plate("groups", 7):
        b = numpyro.sample("b", dist.Normal(alpha, tau))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(b[group] + beta * x, sigma), obs=y)


def marginal(data: dict[str, np.ndarray], effects: list[tuple[np.ndarray, float]], sigma: float):
    """Multivariate normal log-likelihood at its best regression coefficients, and those.

    `effects` are pairs of a design (rows, levels) and the variance of its coefficients.
    """
    y, design = data["y"], np.stack([np.ones_like(data["x"]), data["x"]], axis=1)
    cov = sigma**2 * np.eye(len(y)) + sum(v * z @ z.T for z, v in effects)
    inverse = np.linalg.inv(cov)
    coefficients = np.linalg.solve(design.T @ inverse @ design, design.T @ inverse @ y)
    value = stats.multivariate_normal(design @ coefficients, cov).logpdf(y)
    return value, coefficients


def maximum(data: dict[str, np.ndarray], designs: list[np.ndarray]) -> tuple[float, np.ndarray]:
    """The highest log-likelihood over variances, zero included, and (variances, sigma) there."""

    def loss(v: np.ndarray) -> float:
        pairs = list(zip(designs, v[:-1], strict=True))
        return -marginal(data, pairs, float(np.sqrt(v[-1])))[0]

    best = None
    for start in (0.01, 0.5, 2.0):
        x0 = np.full(len(designs) + 1, start)
        limits = [(0.0, None)] * len(designs) + [(1e-3, None)]
        found = optimize.minimize(
            loss, x0, bounds=limits, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9}
        )
        best = found if best is None or found.fun < best.fun else best
    return -best.fun, best.x


def crossed(y, a, b, x, parameter="two"):
    """Two crossed random effects, with standard deviations in two parameters or in one vector."""
    alpha = numpyro.param("alpha", 0.0)
    beta = numpyro.param("beta", 0.0)
    sigma = numpyro.param("sigma", 1.5, constraint=constraints.positive)
    if parameter == "vector":
        sd = numpyro.param("sd", jnp.ones(2), constraint=constraints.positive)
        first, second = sd
    else:
        first = numpyro.param("first", 1.0, constraint=constraints.positive)
        second = numpyro.param("second", 1.0, constraint=constraints.positive)
    with numpyro.plate("as", 6):
        u = numpyro.sample("u", dist.Normal(0.0, first))
    with numpyro.plate("bs", 5):
        v = numpyro.sample("v", dist.Normal(0.0, second))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(alpha + beta * x + u[a] + v[b], sigma), obs=y)


def crossed_rows(first: float, second: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Six by five cells, two rows each, with effects of the given standard deviations."""
    rng = np.random.default_rng(seed)
    a, b = (v.ravel() for v in np.meshgrid(np.arange(6), np.arange(5), indexing="ij"))
    a, b = np.tile(a, 2), np.tile(b, 2)
    x, noise = rng.normal(size=60), rng.normal(size=60)
    for index in (a, b):
        noise = noise - (np.bincount(index, noise) / np.bincount(index))[index]
    y = 1.0 + 0.5 * x + noise + first * rng.normal(size=6)[a] + second * rng.normal(size=5)[b]
    return {"y": y, "a": a, "b": b, "x": x}


def counts(y, parameter="poisson", total=10):
    """A random intercept of counts, Poisson or binomial."""
    alpha = numpyro.param("alpha", 0.5)
    tau = numpyro.param("tau", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", len(y)):
        b = numpyro.sample("b", dist.Normal(0.0, tau))
        eta = jnp.broadcast_to((alpha + b)[:, None], y.shape)
        poisson = parameter == "poisson"
        law = dist.Poisson(jnp.exp(eta)) if poisson else dist.Binomial(total, logits=eta)
        numpyro.sample("y", law.to_event(1), obs=y)


def inflated(y):
    """Poisson counts with a share `zero` of structural zeros."""
    zero = numpyro.param("zero", 0.3, constraint=constraints.unit_interval)
    rate = numpyro.param("rate", 1.0, constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(zero), infer={"enumerate": "parallel"})
        law = dist.Poisson(jnp.where(z == 1, 1e-30, rate))
        numpyro.sample("y", law, obs=y)


def lines(x, group, y=None):
    """A random line for each of six groups, with a correlation of intercepts and slopes."""
    alpha = numpyro.param("alpha", 0.0)
    beta = numpyro.param("beta", 0.0)
    sigma = numpyro.param("sigma", 1.0, constraint=constraints.positive)
    s0 = numpyro.param("s0", 1.0, constraint=constraints.positive)
    s1 = numpyro.param("s1", 1.0, constraint=constraints.positive)
    corr = numpyro.param("corr", 0.0, constraint=constraints.interval(-1.0, 1.0))
    factor = [[s0, 0.0], [corr * s1, jnp.sqrt(1 - corr**2) * s1]]
    tril = jnp.stack([jnp.stack([jnp.asarray(v) for v in row]) for row in factor])
    with numpyro.plate("groups", 6):
        b = numpyro.sample("b", dist.MultivariateNormal(jnp.zeros(2), scale_tril=tril))
    with numpyro.plate("rows", len(x)):
        mean = alpha + b[group, 0] + (beta + b[group, 1]) * x
        numpyro.sample("y", dist.Normal(mean, sigma), obs=y)
