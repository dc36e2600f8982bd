"""Models with continuous latents that are Gaussian given the discrete ones, and their likelihoods.

A block's likelihood is a sum over joint states of multivariate normal densities.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from small_models import Case as Enumerable

POSITIVE, UNIT = constraints.positive, constraints.unit_interval


class Case(NamedTuple):
    """A model, its arguments, its joint states per block, and how it is checked.

    `sites` maps discrete sites to (shape, size of the support); then everything is summed and
    integrated configuration by configuration. `law` is the log-likelihood as a function of the
    parameters and the arguments.
    """

    model: Callable
    args: tuple
    num_states: int
    sites: dict[str, tuple[tuple[int, ...], int]] | None = None
    law: Callable | None = None

    @property
    def configurations(self) -> dict[str, np.ndarray]:
        """Every joint value of the discrete sites, each (number of them, *shape)."""
        return Enumerable(self.model, self.args, self.sites).configurations()


def normal_mixture(weights, means, covariances, y):
    """Log-density of y (n,) under states with means (S, n) and covariances (S, n, n)."""
    terms = dist.MultivariateNormal(means, covariances).log_prob(y)
    return jax.nn.logsumexp(jnp.log(weights) + terms)


def regressions(y, t):
    """A class for each group with a line of its own, a random intercept, rows (rows, groups)."""
    share = numpyro.param("share", 0.4, constraint=UNIT)
    line = numpyro.param("line", jnp.array([[0.5, -1.0], [-0.5, 1.0]]))
    sd = numpyro.param("sd", jnp.array([1.0, 0.7]), constraint=POSITIVE)
    with numpyro.plate("groups", y.shape[1], dim=-1):
        c = numpyro.sample("c", dist.Bernoulli(share))
        z = numpyro.sample("z", dist.Normal(0.0, sd[0]))
        with numpyro.plate("rows", y.shape[0], dim=-2):
            numpyro.sample("y", dist.Normal(line[c, 0] + line[c, 1] * t + z, sd[1]), obs=y)


def regressions_law(params, y, t):
    weights = jnp.stack([1 - params["share"], params["share"]])
    rows = len(y)
    covariance = params["sd"][0] ** 2 * jnp.ones((rows, rows))
    covariance += params["sd"][1] ** 2 * jnp.eye(rows)
    line = params["line"]
    return sum(
        normal_mixture(weights, line[:, :1] + line[:, 1:] * t[:, g], covariance, y[:, g])
        for g in range(y.shape[1])
    )


def factor_analysers(y):
    start = jnp.asarray(np.random.default_rng(3).normal(size=(2, 4, 2)))
    weights = numpyro.param("weights", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array([[-1.0] * 4, [1.0] * 4]))
    loadings = numpyro.param("loadings", start)
    psi = numpyro.param("psi", jnp.full(4, 0.8), constraint=POSITIVE)
    with numpyro.plate("rows", len(y)):
        k = numpyro.sample("k", dist.Categorical(weights))
        f = numpyro.sample("f", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        mean = mu[k] + (loadings[k] @ f[..., None])[..., 0]
        numpyro.sample("y", dist.Normal(mean, psi).to_event(1), obs=y)


def factor_analysers_law(params, y):
    loadings = params["loadings"]
    covariance = loadings @ jnp.swapaxes(loadings, 1, 2) + jnp.diag(params["psi"] ** 2)
    return sum(normal_mixture(params["weights"], params["mu"], covariance, row) for row in y)


def two_sites(y):
    """A class that depends on another, both of them in the law of intercept and slope."""
    share = numpyro.param("share", jnp.array([0.3, 0.6]), constraint=UNIT)
    mu = numpyro.param("mu", jnp.array([-1.0, 0.2, 1.5]))
    sd = numpyro.param("sd", jnp.array([0.8, 0.6]), constraint=POSITIVE)
    with numpyro.plate("groups", y.shape[1], dim=-1):
        a = numpyro.sample("a", dist.Bernoulli(share[0]))
        half = 0.5 * (1 - share[a])
        b = numpyro.sample("b", dist.Categorical(jnp.stack([share[a], half, half], axis=-1)))
        z = numpyro.sample("z", dist.Normal(mu[b], sd[0]))
        w = numpyro.sample("w", dist.Normal(0.5 * z + a, 1.0))
        with numpyro.plate("rows", y.shape[0], dim=-2):
            numpyro.sample("y", dist.Normal(z + (1 + a) * w, sd[1]), obs=y)


def contaminated(y, group):
    """Random intercepts, some of them outliers, in long format: an index couples the rows."""
    share = numpyro.param("share", 0.3, constraint=UNIT)
    tau = numpyro.param("tau", jnp.array([0.5, 4.0]), constraint=POSITIVE)
    sd = numpyro.param("sd", 0.7, constraint=POSITIVE)
    mu = numpyro.param("mu", 0.3)
    with numpyro.plate("groups", int(np.max(group)) + 1):
        out = numpyro.sample("out", dist.Bernoulli(share))
        z = numpyro.sample("z", dist.Normal(0.0, tau[out]))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mu + z[group], sd), obs=y)


def row_outliers(y):
    """Every row of a group may be an outlier: 2^rows joint states."""
    share = numpyro.param("share", 0.3, constraint=UNIT)
    sd = numpyro.param("sd", jnp.array([0.5, 3.0]), constraint=POSITIVE)
    mu = numpyro.param("mu", jnp.zeros(3))
    with numpyro.plate("groups", y.shape[1], dim=-1):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", y.shape[0], dim=-2):
            out = numpyro.sample("out", dist.Bernoulli(share))
            numpyro.sample("y", dist.Normal(mu[:, None] + z, sd[out]), obs=y)


def structural_zero(y, seen):
    """Detections are impossible where the class is 0, and the class 2 is impossible anywhere."""
    share = numpyro.param("share", 0.3, constraint=UNIT)
    found = numpyro.param("found", 0.6, constraint=UNIT)
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    with numpyro.plate("groups", len(y)):
        probs = jnp.stack([1 - share, share, 0.0 * share])
        c = numpyro.sample("c", dist.Categorical(probs))
        z = numpyro.sample("z", dist.Normal(mu[c % 2], 1.0))
        numpyro.sample("seen", dist.Bernoulli(jnp.where(c == 0, 0.0, found)), obs=seen)
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)


def tests_beside(y, answers):
    """Rows have states of their own that depend on the class but touch no continuous latent."""
    share = numpyro.param("share", 0.4, constraint=UNIT)
    on = numpyro.param("on", jnp.array([0.3, 0.7]), constraint=UNIT)
    yes = numpyro.param("yes", jnp.array([0.2, 0.9]), constraint=UNIT)
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    with numpyro.plate("groups", answers.shape[1], dim=-1):
        c = numpyro.sample("c", dist.Bernoulli(share))
        z = numpyro.sample("z", dist.Normal(mu[c], 1.0))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)
        with numpyro.plate("rows", answers.shape[0], dim=-2):
            s = numpyro.sample("s", dist.Bernoulli(on[c]))
            numpyro.sample("answers", dist.Bernoulli(yes[s]), obs=answers)


def common_class(y):
    """One class for all groups: no plate is shared, so all latents are one block."""
    mu = numpyro.param("mu", jnp.array([-0.3, 0.4]))
    c = numpyro.sample("c", dist.Bernoulli(0.4))
    with numpyro.plate("groups", len(y)):
        z = numpyro.sample("z", dist.Normal(mu[c], 1.0))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)


def walks(y):
    """A random walk for each subject, whose drift depends on a class; times lead."""
    share = numpyro.param("share", 0.4, constraint=UNIT)
    drift = numpyro.param("drift", jnp.array([-0.5, 0.5]))
    subjects = numpyro.plate("subjects", y.shape[1])
    with subjects:
        c = numpyro.sample("c", dist.Bernoulli(share))

    def step(level, row):
        with subjects:
            level = numpyro.sample("level", dist.Normal(level + drift[c], 0.6))
            numpyro.sample("y", dist.Normal(level, 0.4), obs=row)
        return level, None

    scan(step, jnp.zeros(y.shape[1]), y)


def missing(y, seen):
    """A mixture of bivariate normals, some values missing: those are continuous latents."""
    weights = numpyro.param("weights", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array([[-1.0, 0.5], [1.0, -0.5]]))
    sd = numpyro.param("sd", jnp.array([0.8, 1.2]), constraint=POSITIVE)
    with numpyro.plate("rows", y.shape[0], dim=-2):
        k = numpyro.sample("k", dist.Categorical(weights))
        with numpyro.plate("columns", 2, dim=-1):
            mean = jnp.concatenate([mu[k, 0], mu[k, 1]], axis=-1)
            numpyro.sample("y", dist.Normal(mean, sd), obs=y, obs_mask=seen)


def missing_law(params, y, seen):
    terms = dist.Normal(params["mu"][:, None], params["sd"]).log_prob(jnp.where(seen, y, 0.0))
    by_row = jnp.sum(jnp.where(seen, terms, 0.0), axis=-1)
    return jnp.sum(jax.nn.logsumexp(jnp.log(params["weights"])[:, None] + by_row, axis=0))


def positive(y):
    """A log-normal effect: quadratic in its logarithm."""
    share = numpyro.param("share", 0.4, constraint=UNIT)
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    with numpyro.plate("groups", len(y)):
        c = numpyro.sample("c", dist.Bernoulli(share))
        z = numpyro.sample("z", dist.LogNormal(mu[c], 0.8))
        numpyro.sample("y", dist.Normal(jnp.log(z), 0.5), obs=y)


def positive_law(params, y):
    weights = jnp.stack([1 - params["share"], params["share"]])
    terms = dist.Normal(params["mu"], np.hypot(0.8, 0.5)).log_prob(y[:, None])
    return jnp.sum(jax.nn.logsumexp(jnp.log(weights) + terms, axis=1))


_rng = np.random.default_rng(21)
_t = _rng.normal(size=(4, 3))
_classes = np.array([0, 1, 1])
_wide = (
    np.where(_classes, -0.5 + _t, 0.5 - _t) + _rng.normal(size=3) + 0.5 * _rng.normal(size=_t.shape)
)
_group = np.array([0, 1, 2, 0, 1, 2, 0, 1])
_long = np.array([0.2, -3.0, 1.0])[_group] + 0.5 * _rng.normal(size=8)
_factors = _rng.normal(size=(6, 4)) + np.array([-1, 1, 1, -1, 1, 1])[:, None]
_holes = np.array([[1, 1], [1, 0], [0, 1], [0, 0], [1, 1]], bool)
_pairs = _rng.normal(size=(5, 2))
_answers = np.array([[1, 0, 1], [1, 0, 0]])
_few = np.array([-0.8, 1.1, 0.4])

REGRESSIONS = Case(regressions, (_wide, _t), 2, {"c": ((3,), 2)}, regressions_law)
CASES = {
    "regressions": REGRESSIONS,
    "factor_analysers": Case(factor_analysers, (_factors,), 2, None, factor_analysers_law),
    "two_sites": Case(two_sites, (_wide[:2, :2],), 6, {"a": ((2,), 2), "b": ((2,), 3)}),
    "contaminated": Case(contaminated, (_long, _group), 2, {"out": ((3,), 2)}),
    "row_outliers": Case(row_outliers, (_wide[:3, :2],), 8, {"out": ((3, 2), 2)}),
    "structural_zero": Case(structural_zero, (_few, np.array([0, 1, 0])), 3, {"c": ((3,), 3)}),
    "tests_beside": Case(tests_beside, (_few, _answers), 2, {"c": ((3,), 2), "s": ((2, 3), 2)}),
    "common_class": Case(common_class, (_few,), 2, {"c": ((), 2)}),
    "walks": Case(walks, (_wide[:3, :2],), 2, {"c": ((2,), 2)}),
    "missing": Case(missing, (np.where(_holes, _pairs, np.nan), _holes), 2, None, missing_law),
    "positive": Case(positive, (_few,), 2, None, positive_law),
}
