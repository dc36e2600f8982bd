"""Linear Gaussian models, and the law of their observations as one multivariate normal."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.linalg import block_diag
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

from ppl_em.structure import Arrow, Blocks, Chain

POSITIVE = constraints.positive


class Case(NamedTuple):
    """A model, its arguments (the observations first), the law of the observations that are seen.

    `law` takes parameters and the arguments but for the observations, and gives their mean and
    covariance, raveled. `structure` and `shape` are what should be found: (B, T, d) of a chain,
    (G, d, s) of an arrow, (G, d) of blocks.
    """

    model: Callable
    args: tuple
    law: Callable
    structure: type
    shape: tuple[int, ...]

    @property
    def observed(self) -> np.ndarray:
        """The values that are not missing, raveled."""
        y = np.asarray(self.args[0]).ravel()
        return y[~np.isnan(y)]


def state_space(first: tuple, transition, noise, output, output_noise, length: int) -> tuple:
    """Mean and covariance of y_t = output x_t + noise, x_t = transition x_(t-1) + noise.

    `first` is the mean and covariance of x_0. The states solve (I - shifted transition) x = e.
    """
    steps = np.diag(np.ones(length - 1), -1)
    size = len(transition)
    solve = jnp.linalg.inv(jnp.eye(length * size) - jnp.kron(steps, transition))
    start = jnp.zeros((length, size)).at[0].set(first[0]).ravel()
    shocks = block_diag(first[1], *([noise] * (length - 1)))
    design = jnp.kron(jnp.eye(length), output) @ solve
    errors = jnp.kron(jnp.eye(length), output_noise)
    return design @ start, design @ shocks @ design.T + errors


def sds(*start: float) -> Any:
    return numpyro.param("sd", jnp.array(start), constraint=POSITIVE)


def level(y):
    """A random walk observed with noise."""
    sd = sds(0.7, 1.0)

    def step(previous, inputs):
        t, seen = inputs
        scale = jnp.where(t == 0, 2.0, sd[0])
        x = numpyro.sample("x", dist.Normal(jnp.where(t == 0, 1.0, previous), scale))
        numpyro.sample("y", dist.Normal(x, sd[1]), obs=seen)
        return x, None

    scan(step, 0.0, (jnp.arange(len(y)), y))


def level_law(params, length):
    one, variance = jnp.eye(1), params["sd"] ** 2
    return state_space((1.0, 4.0 * one), one, variance[0] * one, one, variance[1] * one, length)


def trend(y):
    """A random walk whose drift is a random walk: two sites."""
    sd = sds(0.7, 0.4, 1.0)

    def step(previous, inputs):
        t, seen = inputs
        first = t == 0
        drift = numpyro.sample("drift", dist.Normal(previous[1], jnp.where(first, 1.0, sd[1])))
        mean = previous[0] + previous[1]
        x = numpyro.sample("x", dist.Normal(mean, jnp.where(first, 2.0, sd[0])))
        numpyro.sample("y", dist.Normal(x, sd[2]), obs=seen)
        return (x, drift), None

    scan(step, (0.0, 0.0), (jnp.arange(len(y)), y))


def trend_law(params, length):
    variance = params["sd"] ** 2
    first = (jnp.zeros(2), jnp.diag(jnp.array([4.0, 1.0])))
    transition, output = jnp.array([[1.0, 1.0], [0.0, 1.0]]), jnp.array([[1.0, 0.0]])
    shocks = jnp.diag(variance[:2])
    return state_space(first, transition, shocks, output, variance[2] * jnp.eye(1), length)


def autoregression(y, lags):
    """x_t depends on what was `lags[-1]` steps before and less; the carry holds it all."""
    phi = numpyro.param("phi", 0.6 / len(lags) * jnp.ones(len(lags)))
    sd = sds(1.0, 0.8)

    def step(previous, seen):
        mean = sum(phi[i] * previous[lag - 1] for i, lag in enumerate(lags))
        x = numpyro.sample("x", dist.Normal(mean, sd[0]))
        numpyro.sample("y", dist.Normal(x, sd[1]), obs=seen)
        return (x, *previous[:-1]), None

    scan(step, (0.0,) * max(lags), y)


def autoregression_law(params, lags, length):
    """(I - sum phi_i shift^lag_i) x = e, all from zero."""
    shifts = [np.diag(np.ones(length - lag), -lag) for lag in lags]
    system = jnp.eye(length) - sum(p * s for p, s in zip(params["phi"], shifts, strict=True))
    solve = jnp.linalg.inv(system)
    variance = params["sd"] ** 2
    return jnp.zeros(length), variance[0] * solve @ solve.T + variance[1] * jnp.eye(length)


OUTPUT = np.array([[1.0, 0.2], [-0.5, 1.0], [0.3, 0.7]])


def panel(y):
    """Several series (time, series, 3) of two states each, in a plate inside the body."""
    transition = numpyro.param("transition", jnp.array([[0.8, 0.1], [-0.2, 0.5]]))
    tril = numpyro.param("tril", jnp.eye(2), constraint=constraints.lower_cholesky)
    sd = sds(1.0)

    def step(previous, seen):
        with numpyro.plate("series", y.shape[1]):
            law = dist.MultivariateNormal(previous @ transition.T, scale_tril=tril)
            x = numpyro.sample("x", law)
            numpyro.sample("y", dist.Normal(x @ OUTPUT.T, sd[0]).to_event(1), obs=seen)
        return x, None

    scan(step, jnp.zeros((y.shape[1], 2)), y)


def panel_law(params, length, series):
    shocks = params["tril"] @ params["tril"].T
    errors = params["sd"][0] ** 2 * jnp.eye(3)
    first = (jnp.zeros(2), shocks)
    mean, one = state_space(first, params["transition"], shocks, OUTPUT, errors, length)
    one = one.reshape(length, 3, length, 3)
    every = jnp.einsum("tisj,ab->taisbj", one, jnp.eye(series))
    return jnp.zeros(mean.size * series), every.reshape(2 * (mean.size * series,))


def walk(y):
    """A random walk as one vector, observed at some of its points."""
    sd = sds(0.7, 1.0)
    x = numpyro.sample("x", dist.GaussianRandomWalk(sd[0], num_steps=y.shape[1]))
    with numpyro.plate("times", y.shape[1], dim=-1), numpyro.plate("devices", len(y), dim=-2):
        numpyro.sample("y", dist.Normal(x, sd[1]), obs=y)


def walk_law(params, devices, length):
    time = jnp.arange(1, length + 1)
    variance = params["sd"] ** 2
    one = variance[0] * jnp.minimum(time[:, None], time)
    errors = variance[1] * jnp.eye(devices * length)
    return jnp.zeros(devices * length), jnp.kron(jnp.ones((devices, devices)), one) + errors


def outside(y):
    """The state before the first is a site of its own, outside of `scan`."""
    sd = sds(2.0, 0.7, 1.0)
    mu = numpyro.param("mu", 0.5)
    start = numpyro.sample("start", dist.Normal(mu, sd[0]))

    def step(previous, seen):
        x = numpyro.sample("x", dist.Normal(previous, sd[1]))
        numpyro.sample("y", dist.Normal(x, sd[2]), obs=seen)
        return x, None

    scan(step, start, y)


def outside_law(params, length):
    variance, one = params["sd"] ** 2, jnp.eye(1)
    first = (params["mu"], (variance[0] + variance[1]) * one)
    return state_space(first, one, variance[1] * one, one, variance[2] * one, length)


def crossed(y, rater, item):
    mu, sd = numpyro.param("mu", 0.0), sds(1.0, 0.5, 1.0)
    with numpyro.plate("raters", int(rater.max()) + 1):
        a = numpyro.sample("a", dist.Normal(0.0, sd[0]))
    with numpyro.plate("items", int(item.max()) + 1):
        b = numpyro.sample("b", dist.Normal(0.0, sd[1]))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mu + a[rater] + b[item], sd[2]), obs=y)


def crossed_law(params, rater, item):
    variance = params["sd"] ** 2
    covariance = variance[0] * (rater[:, None] == rater) + variance[1] * (item[:, None] == item)
    mean = params["mu"] * jnp.ones(len(rater))
    return mean, covariance + variance[2] * jnp.eye(len(rater))


def classes(y, pupil_class, school):
    """Classes in schools, long format; a class deviates from its school."""
    sd = sds(1.0, 0.5, 1.0)
    with numpyro.plate("schools", int(school.max()) + 1):
        a = numpyro.sample("a", dist.Normal(0.0, sd[0]))
    with numpyro.plate("classes", len(school)):
        b = numpyro.sample("b", dist.Normal(a[school], sd[1]))
    with numpyro.plate("pupils", len(y)):
        numpyro.sample("y", dist.Normal(b[pupil_class], sd[2]), obs=y)


def classes_law(params, pupil_class, school):
    mean, covariance = crossed_law({**params, "mu": 0.0}, school[pupil_class], pupil_class)
    return mean, covariance


def coefficients(y, design, group):
    """Random global coefficients beside the intercepts and slopes of groups."""
    tau, sd = numpyro.param("tau", 1.5, constraint=POSITIVE), sds(1.0, 0.5, 1.0)
    with numpyro.plate("columns", design.shape[1]):
        beta = numpyro.sample("beta", dist.Normal(0.5, tau))
    with numpyro.plate("groups", int(group.max()) + 1):
        a = numpyro.sample("a", dist.Normal(0.0, sd[0]))
        b = numpyro.sample("b", dist.Normal(0.0, sd[1]))
    with numpyro.plate("rows", len(y)):
        mean = design @ beta + a[group] + b[group] * design[:, 0]
        numpyro.sample("y", dist.Normal(mean, sd[2]), obs=y)


def coefficients_law(params, design, group):
    variance, same = params["sd"] ** 2, group[:, None] == group
    slopes = design[:, :1] * design[:, 0]
    covariance = params["tau"] ** 2 * design @ design.T + same * (
        variance[0] + variance[1] * slopes
    )
    return 0.5 * design.sum(axis=1), covariance + variance[2] * jnp.eye(len(group))


def incomplete(y):
    """A normal vector with missing values; its covariance starts out diagonal."""
    gone = np.isnan(y)
    mu = numpyro.param("mu", jnp.zeros(3))
    positive = constraints.positive_definite
    covariance = numpyro.param("covariance", jnp.diag(jnp.arange(1.0, 4.0)), constraint=positive)
    rows = np.flatnonzero(gone.any(axis=1))
    with numpyro.plate("incomplete", len(rows)):
        prior = dist.Normal(0.0, 1.0).expand([len(rows), 2]).mask(False)
        values = numpyro.sample("values", prior.to_event(1))
    filled = jnp.nan_to_num(y).at[np.nonzero(gone)].set(values.ravel())
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.MultivariateNormal(mu, covariance), obs=filled)


def incomplete_law(params, seen):
    size = len(seen)
    every = jnp.kron(jnp.eye(size), params["covariance"])
    return jnp.tile(params["mu"], size)[seen.ravel()], every[np.ix_(seen.ravel(), seen.ravel())]


_rng = np.random.default_rng(7)
_walk = np.cumsum(0.7 * _rng.normal(size=40)) + _rng.normal(size=40)
_rater, _item = (a.ravel() for a in np.meshgrid(np.arange(3), np.arange(9), indexing="ij"))
_keep = _rng.permutation(27)[:22]
_rater, _item = _rater[_keep], np.argsort(np.argsort(np.unique(_item)))[_item[_keep]]
_school = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
_class = np.r_[np.arange(10), _rng.integers(0, 10, 12)]
_group = np.r_[np.arange(8), _rng.integers(0, 8, 16)]
_design = _rng.normal(size=(24, 2))
_holes = _rng.normal(size=(10, 3)) @ np.array([[1.0, 0.8, 0.5], [0.0, 1.0, 0.6], [0.0, 0.0, 1.0]])
for _row, (_i, _j) in enumerate([(0, 1), (0, 2), (1, 2), (0, 1)]):
    _holes[_row, [_i, _j]] = np.nan

CASES = {
    "level": Case(level, (_walk[:15],), lambda p: level_law(p, 15), Chain, (1, 15, 1)),
    "trend": Case(trend, (_walk[:12],), lambda p: trend_law(p, 12), Chain, (1, 12, 2)),
    "ar2": Case(
        autoregression,
        (_walk[:13], (1, 2)),
        lambda p, lags: autoregression_law(p, lags, 13),
        Chain,
        (1, 7, 2),
    ),
    "seasonal": Case(
        autoregression,
        (_walk[:14], (1, 3)),
        lambda p, lags: autoregression_law(p, lags, 14),
        Chain,
        (1, 5, 3),
    ),
    "panel": Case(
        panel, (_rng.normal(size=(9, 3, 3)),), lambda p: panel_law(p, 9, 3), Chain, (3, 9, 2)
    ),
    "walk": Case(
        walk, (_walk[:32].reshape(2, 16),), lambda p: walk_law(p, 2, 16), Chain, (1, 16, 1)
    ),
    "outside": Case(outside, (_walk[:12],), lambda p: outside_law(p, 12), Chain, (1, 13, 1)),
    "crossed": Case(crossed, (_walk[:22], _rater, _item), crossed_law, Arrow, (9, 1, 3)),
    "classes": Case(classes, (_walk[:22], _class, _school), classes_law, Arrow, (10, 1, 3)),
    "coefficients": Case(
        coefficients, (_walk[:24], _design, _group), coefficients_law, Arrow, (8, 2, 2)
    ),
    "incomplete": Case(
        incomplete, (_holes,), lambda p: incomplete_law(p, ~np.isnan(_holes)), Blocks, (4, 2)
    ),
}
