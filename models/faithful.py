"""Eruptions of the Old Faithful geyser: a mixture of two bivariate Gaussians.

Data: for each of 272 eruptions, its duration (``eruptions``, minutes) and the time until the next
one (``waiting``, minutes). Short eruptions are followed by short waits.

Model: for eruptions i = 1, ..., N and y_i = (eruptions_i, waiting_i),

    component_i ~ Categorical(w₁, w₂),
    y_i | component_i = k ~ Normal₂(μ_k, Σ_k).

The latent data are the component labels; the parameters are ``weights`` (2,), ``mean`` (2, 2) and
``cov`` (2, 2, 2), with no restriction beyond Σ_k being positive definite. The marginal density of
y_i is Σ_k w_k Normal₂(y_i; μ_k, Σ_k). Its likelihood is unbounded where a component collapses on
one point; the reference is the best interior maximum. The initial values put the component with
the lower values first.

Source: data set ``faithful`` of R (Azzalini and Bowman 1990, Applied Statistics 39, 357-365).
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

DATA = Path(__file__).resolve().parent / "data" / "faithful.csv"

REFERENCE: dict[str, Any] = {
    "params": {
        "weights": np.array([0.3558728571057076, 0.6441271428942925]),
        "mean": np.array(
            [[2.036388454619958, 54.47851637696829], [4.28966197309599, 79.96811517385608]]
        ),
        "cov": np.array(
            [
                [[0.0691676725593107, 0.4351676244435006], [0.4351676244435006, 33.69728207230225]],
                [[0.16996843574709544, 0.9406093192702525], [0.9406093192702525, 36.0462113175532]],
            ]
        ),
    },
    "standard_errors": {
        "weights": np.array([0.02908911019642309, 0.029089110196423094]),
        "mean": np.array(
            [[0.027108351499593755, 0.5918737743372545], [0.03140311461733352, 0.45618572575563915]]
        ),
        "cov": np.array(
            [
                [
                    [0.01057496178771486, 0.1660016579684127],
                    [0.1660016579684127, 4.854722178552937],
                ],
                [
                    [0.018871875047852586, 0.2104177811198359],
                    [0.2104177811198359, 3.925143757992772],
                ],
            ]
        ),
    },
    "log_likelihood": -1130.2639601847416,
    "kind": "exact",
    "source": "closed-form mixture density, BFGS then Newton, float64; scikit-learn and mclust "
    "(VVV, G=2) give the same log-likelihood to 1e-8",
}


def _best_split(direction, z):
    """Cut ``z @ direction`` in two where it explains the most variance (Otsu's rule).

    Returns the explained share of the variance and the members of the upper part, shape (N,).
    """
    score = z @ direction
    ordered = jnp.sort(score)
    size = ordered.shape[0]
    lower = jnp.arange(1, size)
    gap = (ordered.sum() - jnp.cumsum(ordered)[:-1]) / (size - lower)
    gap = gap - jnp.cumsum(ordered)[:-1] / lower
    share = lower * (size - lower) * gap**2 / (size * jnp.sum((score - score.mean()) ** 2))
    cut = jnp.argmax(share)
    return share[cut], score > ordered[cut]


def _initial_values(y):
    """Split the standardised data along an axis or a diagonal, wherever the two parts differ most.

    Both components start from the covariance within the parts. Every direction but the last points
    towards higher values, so that the component with the lower values comes first.
    """
    z = (y - y.mean(0)) / y.std(0)
    directions = jnp.array([[1, 1], [1, 0], [0, 1], [1, -1]], y.dtype)
    shares, uppers = jax.vmap(_best_split, (0, None))(directions, z)
    upper = uppers[jnp.argmax(shares)].astype(y.dtype)
    member = jnp.stack([1 - upper, upper], axis=1)
    mean = (member.T @ y) / member.sum(0)[:, None]
    residual = y - member @ mean
    within = residual.T @ residual / len(y)
    return member.mean(0), mean, jnp.stack([within, within])


def model(eruptions, waiting):
    """Mixture of two bivariate Gaussians with free weights, means and covariances."""
    y = jnp.stack([eruptions, waiting], axis=-1)
    initial_weights, initial_mean, initial_cov = _initial_values(y)
    weights = numpyro.param("weights", initial_weights, constraint=constraints.simplex)
    mean = numpyro.param("mean", initial_mean)
    cov = numpyro.param("cov", initial_cov, constraint=constraints.positive_definite)
    with numpyro.plate("eruption", len(y)):
        component = numpyro.sample(
            "component", dist.Categorical(weights), infer={"enumerate": "parallel"}
        )
        numpyro.sample("y", dist.MultivariateNormal(mean[component], cov[component]), obs=y)


def load() -> dict[str, np.ndarray]:
    """Return the 272 eruptions as the keyword arguments of :func:`model`."""
    table = np.genfromtxt(DATA, delimiter=",", names=True, dtype=np.float64)
    return {name: np.ascontiguousarray(table[name]) for name in ("eruptions", "waiting")}


def simulate(rng_key, params=None, *, size=None) -> dict[str, np.ndarray]:
    """Draw eruptions from the mixture.

    Parameters
    ----------
    rng_key : jax.Array
        Random key.
    params : dict, optional
        True parameter values; those left out are taken from ``REFERENCE``.
    size : int, optional
        Number of eruptions, 272 by default.

    Returns
    -------
    dict
        Keyword arguments of :func:`model`, with the keys and dtypes of :func:`load`.
    """
    data = load()
    truth = {**REFERENCE["params"], **(params or {})}
    mixture = dist.MixtureSameFamily(
        dist.Categorical(jnp.asarray(truth["weights"])),
        dist.MultivariateNormal(jnp.asarray(truth["mean"]), jnp.asarray(truth["cov"])),
    )
    y = np.asarray(mixture.sample(rng_key, (size or len(data["eruptions"]),)))
    return {name: y[:, j].astype(data[name].dtype) for j, name in enumerate(data)}
