"""Toys of Monte Carlo EM whose maximum likelihood estimates are known exactly.

`normal_normal`: x_i ~ Normal(theta, 1), y_i ~ Normal(x_i, 1). Marginally y_i ~ Normal(theta, 2), so
the estimate is the mean of y, its standard error sqrt(2 / D), and EM goes at the rate 1/2: half of
the information on theta is missing.

`logit_normal`: y_ij ~ Bernoulli(logit⁻¹(beta x_j + u_i)), u_i ~ Normal(0, sigma2), for 10 groups i
and x_j = j / 15, j = 1, ..., 15. EM goes at the rate 0.81.

The data of the second are those of Booth and Hobert (1999), Journal of the Royal Statistical
Society B 61, 265-285, up to what the likelihood cannot see. It depends on y by the group totals and
by the sum of x_j y_ij alone. Of the 3.3 million possible sets of totals, with any sum, one agrees
with the known estimates 6.1321629 and 1.7664615 and log-likelihood -44.056255 of those data; its
standard errors, which were not used to find it, are the known ones too (1.34226, 1.59752). Where in
a group the zeros stand is our choice.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

POSITIONS = 15
X = np.arange(1, POSITIONS + 1) / POSITIONS

ZEROS = ((1, 2, 3, 4, 8), (1, 2, 3, 5, 9), (1, 3, 6), (2, 4, 7), (1, 5), (2, 6), (3,), (), (), ())
"""Positions j of y_ij = 0 in each group: totals 10, 10, 12, 12, 13, 13, 14, 15, 15, 15."""


class Toy(NamedTuple):
    """A model, its data as keyword arguments, and its answer in the form of a model's REFERENCE."""

    model: Any
    data: dict[str, np.ndarray]
    reference: dict[str, Any]


def normal_normal_model(y):
    """A normal mean seen through two layers of unit noise."""
    theta = numpyro.param("theta", 0.0)
    with numpyro.plate("rows", len(y)):
        x = numpyro.sample("x", dist.Normal(theta, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def logit_normal_model(y):
    """Logistic regression without intercept, with a normal effect of the group."""
    beta = numpyro.param("beta", 1.0)
    sigma2 = numpyro.param("sigma2", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", len(y)):
        u = numpyro.sample("u", dist.Normal(0.0, jnp.sqrt(sigma2)))
        law = dist.Bernoulli(logits=beta * X + u[:, None]).to_event(1)
        numpyro.sample("y", law, obs=y)


def normal_normal(size: int = 100) -> Toy:
    """`size` simulated rows around 1, and the closed forms."""
    y = 1.0 + np.sqrt(2.0) * np.random.default_rng(0).normal(size=size)
    residual = np.sum((y - y.mean()) ** 2)
    reference = {
        "params": {"theta": y.mean()},
        "standard_errors": {"theta": np.sqrt(2 / size)},
        "log_likelihood": -0.5 * size * np.log(4 * np.pi) - 0.25 * residual,
    }
    return Toy(normal_normal_model, {"y": y}, reference)


def logit_normal() -> Toy:
    """The data of Booth and Hobert and their maximum, by `logit_normal_log_likelihood`."""
    y = np.ones((len(ZEROS), POSITIONS), int)
    for row, positions in zip(y, ZEROS, strict=True):
        row[np.array(positions, int) - 1] = 0
    reference = {
        "params": {"beta": 6.132162762, "sigma2": 1.766461465},
        "standard_errors": {"beta": 1.342263334, "sigma2": 1.597523852},
        "log_likelihood": -44.056255835953,
    }
    return Toy(logit_normal_model, {"y": y}, reference)


def logit_normal_log_likelihood(point: jax.Array, y: np.ndarray, nodes: int = 101) -> jax.Array:
    """Exact log-likelihood at `point` (beta, sigma2), by Gauss-Hermite quadrature per group."""
    at, weights = np.polynomial.hermite_e.hermegauss(nodes)
    eta = point[0] * X[:, None] + jnp.sqrt(point[1]) * at
    terms = y[:, :, None] * eta - jnp.logaddexp(0.0, eta)
    log_weights = jnp.log(weights / np.sqrt(2 * np.pi))
    return jnp.sum(jax.nn.logsumexp(terms.sum(axis=1) + log_weights, axis=1))


def two_latents(y):
    """y = a + b + e, e of variance 1: the maximum is v = (mean(y^2) - 1) / 2, mean-field's less."""
    v = numpyro.param("v", 1.0, constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        a = numpyro.sample("a", dist.Normal(0.0, jnp.sqrt(v)))
        b = numpyro.sample("b", dist.Normal(0.0, jnp.sqrt(v)))
        numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)
