"""Small models whose marginal likelihood can be computed without the library."""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer.util import log_density

POSITIVE = constraints.positive


class Case(NamedTuple):
    """A model, its arguments, and either its discrete sites or its marginal law.

    `sites` maps a discrete site to (shape, size of the support). `marginal` gives the mean and
    covariance of the observed values from parameters.
    """

    model: Callable
    args: tuple
    sites: dict[str, tuple[tuple[int, ...], int]] | None = None
    marginal: Callable | None = None
    observed: np.ndarray | None = None
    num_blocks: int = 0

    def log_joints(self, params: dict) -> jax.Array:
        """The log-joint of every configuration of the discrete sites, by NumPyro alone."""

        def log_joint(config: dict) -> jax.Array:
            program = handlers.substitute(self.model, data={**params, **config})
            return log_density(program, self.args, {}, {})[0]

        return jax.vmap(log_joint)(self.configurations())

    def configurations(self) -> dict[str, np.ndarray]:
        """Every joint value of the discrete sites, each (number of them, *shape)."""
        shapes = {name: shape for name, (shape, _) in self.sites.items()}
        ranges = [range(k) for shape, k in self.sites.values() for _ in range(int(np.prod(shape)))]
        table = np.array(list(product(*ranges)))
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])[:-1]
        parts = np.split(table, ends, axis=1)
        return {n: p.reshape(-1, *shapes[n]) for n, p in zip(shapes, parts, strict=True)}

    def log_likelihood(self, params: dict) -> jax.Array:
        """The marginal log-likelihood, by brute force or from the multivariate normal."""
        if self.sites is not None:
            return logsumexp(self.log_joints(params))
        mean, covariance = self.marginal(params, *self.args)
        return dist.MultivariateNormal(mean, covariance).log_prob(self.observed)


def mixture(y):
    probs = numpyro.param("probs", jnp.full(3, 1 / 3), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array([-1.0, 0.5, 2.0]))
    sd = numpyro.param("sd", jnp.ones(3), constraint=POSITIVE)
    with numpyro.plate("rows", len(y)):
        k = numpyro.sample("k", dist.Categorical(probs))
        numpyro.sample("y", dist.Normal(mu[k], sd[k]), obs=y)


def nested(y):
    """A class for each group, a state for each row whose law depends on the class."""
    share = numpyro.param("share", 0.4, constraint=constraints.unit_interval)
    on = numpyro.param("on", jnp.array([0.3, 0.7]), constraint=constraints.unit_interval)
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    with numpyro.plate("groups", y.shape[1], dim=-1):
        c = numpyro.sample("c", dist.Bernoulli(share))
        with numpyro.plate("rows", y.shape[0], dim=-2):
            s = numpyro.sample("s", dist.Bernoulli(on[c]))
            numpyro.sample("y", dist.Normal(mu[s] + 0.3 * c, 1.0), obs=y)


def masked(y, seen):
    """A mixture with a factor that tilts the classes and rows that are masked out."""
    tilt = numpyro.param("tilt", 0.2)
    mu = numpyro.param("mu", jnp.array([-1.0, 0.5, 2.0]))
    with numpyro.plate("rows", len(y)):
        k = numpyro.sample("k", dist.Categorical(jnp.array([0.2, 0.3, 0.5])))
        numpyro.factor("penalty", -0.5 * (tilt - k) ** 2)
        with handlers.mask(mask=seen):
            numpyro.sample("y", dist.Normal(mu[k], 1.0), obs=y)


def latent_class(y):
    share = numpyro.param("share", 0.4, constraint=constraints.unit_interval)
    start = jnp.array([[0.2, 0.3, 0.4], [0.7, 0.6, 0.8]])
    yes = numpyro.param("yes", start, constraint=constraints.unit_interval)
    with numpyro.plate("persons", len(y)):
        k = numpyro.sample("k", dist.Bernoulli(share))
        numpyro.sample("y", dist.Bernoulli(yes[k]).to_event(1), obs=y)


def intercept(y, group):
    """Random intercepts in long format: the coupling goes through an index."""
    mu = numpyro.param("mu", 0.0)
    tau = numpyro.param("tau", 1.0, constraint=POSITIVE)
    sigma = numpyro.param("sigma", 1.0, constraint=POSITIVE)
    with numpyro.plate("groups", int(np.max(group)) + 1):
        z = numpyro.sample("z", dist.Normal(mu, tau))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(z[group], sigma), obs=y)


def intercept_law(params, y, group):
    same = group[:, None] == group[None]
    covariance = params["tau"] ** 2 * same + params["sigma"] ** 2 * jnp.eye(len(y))
    return params["mu"] * jnp.ones(len(y)), covariance


def slope(y, t, group):
    """Correlated random intercepts and slopes, written as two sites."""
    beta = numpyro.param("beta", jnp.array([0.5, -0.5]))
    tril = numpyro.param("tril", jnp.eye(2), constraint=constraints.lower_cholesky)
    sigma = numpyro.param("sigma", 1.0, constraint=POSITIVE)
    with numpyro.plate("groups", int(np.max(group)) + 1):
        a = numpyro.sample("a", dist.Normal(0.0, tril[0, 0]))
        b = numpyro.sample("b", dist.Normal(tril[1, 0] / tril[0, 0] * a, tril[1, 1]))
    with numpyro.plate("rows", len(y)):
        mean = beta[0] + beta[1] * t + a[group] + b[group] * t
        numpyro.sample("y", dist.Normal(mean, sigma), obs=y)


def slope_law(params, y, t, group):
    design = jnp.stack([jnp.ones(len(t)), t], axis=1)
    same = group[:, None] == group[None]
    between = design @ params["tril"] @ params["tril"].T @ design.T
    return design @ params["beta"], same * between + params["sigma"] ** 2 * jnp.eye(len(y))


def crossed(y, rater, item):
    mu = numpyro.param("mu", 0.0)
    sd = numpyro.param("sd", jnp.array([1.0, 0.5, 1.0]), constraint=POSITIVE)
    with numpyro.plate("raters", 3):
        a = numpyro.sample("a", dist.Normal(0.0, sd[0]))
    with numpyro.plate("items", 4):
        b = numpyro.sample("b", dist.Normal(0.0, sd[1]))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mu + a[rater] + b[item], sd[2]), obs=y)


def crossed_law(params, y, rater, item):
    covariance = params["sd"][0] ** 2 * (rater[:, None] == rater[None])
    covariance += params["sd"][1] ** 2 * (item[:, None] == item[None])
    return params["mu"] * jnp.ones(len(y)), covariance + params["sd"][2] ** 2 * jnp.eye(len(y))


def missing(y, seen):
    """A row of measurements for each subject, some of them missing."""
    mu = numpyro.param("mu", jnp.zeros(3))
    sd = numpyro.param("sd", jnp.array([1.0, 0.7]), constraint=POSITIVE)
    with numpyro.plate("subjects", y.shape[0], dim=-2):
        z = numpyro.sample("z", dist.Normal(0.0, sd[0]))
        with numpyro.plate("times", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(mu + z, sd[1]), obs=y, obs_mask=seen)


def missing_law(params, y, seen):
    subject, time = np.nonzero(seen)
    covariance = params["sd"][0] ** 2 * (subject[:, None] == subject[None])
    return params["mu"][time], covariance + params["sd"][1] ** 2 * jnp.eye(len(time))


_rng = np.random.default_rng(20)
_group = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 1, 2])
_effects = _rng.normal(size=(4, 2))
_t = _rng.normal(size=12)
_long = 1.0 + _effects[_group, 0] + 0.5 * _rng.normal(size=12)
_sloped = _long + _effects[_group, 1] * _t
_rater, _item = (a.ravel() for a in np.meshgrid(np.arange(3), np.arange(4), indexing="ij"))
_wide = _rng.normal(size=(4, 3)) + _rng.normal(size=(4, 1))
_seen = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 0, 0]], bool)
_rows = np.array([-1.2, 0.4, 2.1, 0.9, -0.3])
_holes = np.array([True, True, False, True, False])
_answers = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 1, 0], [1, 1, 0]])

DISCRETE = {
    "mixture": Case(mixture, (_rows,), {"k": ((5,), 3)}),
    "nested": Case(nested, (_rng.normal(size=(2, 3)),), {"c": ((3,), 2), "s": ((2, 3), 2)}),
    "masked": Case(masked, (_rows, _holes), {"k": ((5,), 3)}),
    "latent_class": Case(latent_class, (_answers,), {"k": ((5,), 2)}),
}
GAUSSIAN = {
    "intercept": Case(intercept, (_long, _group), None, intercept_law, _long, 4),
    "slope": Case(slope, (_sloped, _t, _group), None, slope_law, _sloped, 4),
    "crossed": Case(crossed, (_long, _rater, _item), None, crossed_law, _long, 4),
    "missing": Case(missing, (_wide, _seen), None, missing_law, _wide[_seen], 4),
}
CASES = {**DISCRETE, **GAUSSIAN}
