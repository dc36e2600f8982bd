"""Coaching in eight schools: a meta-analysis whose variance between schools is estimated as zero.

Data: in school ``school[j]`` coaching raised a test score by ``y[j]`` points, with the known
standard error ``sigma[j]``.

Model: for schools j = 1, ..., J,

    θ_j ~ Normal(μ, τ²),
    y_j ~ Normal(θ_j, σ_j²).

The latent data are the true effects θ; the parameters are ``mu`` and ``tau``. Marginally
y_j ~ Normal(μ, σ_j² + τ²) independently, and the maximum of that likelihood is at the boundary
τ = 0: the schools differ no more than their standard errors explain. There μ is the weighted mean
of y with weights 1/σ_j², and ∂ℓ/∂(τ²) = -0.0125 is negative. EM creeps towards it, τ ~ k^(-1/2)
after k steps; the library sees that, goes there, and says so.

Source: Rubin (1981), Journal of Educational Statistics 6, 377-401.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

DATA = Path(__file__).resolve().parent / "data" / "eight_schools.csv"

REFERENCE: dict[str, Any] = {
    "params": {"mu": 7.685616724956035, "tau": 0.0},
    "standard_errors": {"mu": 4.071919158402296, "tau": np.nan},
    "log_likelihood": -29.674243687996672,
    "kind": "exact",
    "source": "closed form at tau = 0, where the derivative in tau squared is -0.0125044; tau is "
    "at its boundary, where there is no standard error",
}


def model(sigma, y=None):
    """Effects ``theta`` of coaching, observed with known standard errors ``sigma``."""
    mu = numpyro.param("mu", 0.0 if y is None else jnp.mean(y))
    tau = numpyro.param("tau", 1.0 if y is None else jnp.std(y), constraint=constraints.positive)
    with numpyro.plate("schools", len(sigma)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def load() -> dict[str, np.ndarray]:
    """Return the eight schools as the keyword arguments of :func:`model`."""
    table = np.genfromtxt(DATA, delimiter=",", names=True, dtype=None, encoding="utf-8")
    return {name: table[name].astype(np.float64) for name in ("sigma", "y")}


def simulate(rng_key, params=None, *, sigma=None) -> dict[str, np.ndarray]:
    """Draw observed effects from the model.

    Parameters
    ----------
    rng_key : jax.Array
        Random key.
    params : dict, optional
        True parameter values; those left out are taken from ``REFERENCE``.
    sigma : array of shape (J,), optional
        Standard errors, those of the real schools by default.

    Returns
    -------
    dict
        Keyword arguments of :func:`model`, with the keys and dtypes of :func:`load`.
    """
    data = load()
    sigma = data["sigma"] if sigma is None else np.asarray(sigma, data["sigma"].dtype)
    truth = {**REFERENCE["params"], **(params or {})}
    keys = jax.random.split(rng_key)  # by hand, because a scale of 0 is refused by distributions
    theta = truth["mu"] + truth["tau"] * jax.random.normal(keys[0], sigma.shape)
    y = theta + sigma * jax.random.normal(keys[1], sigma.shape)
    return {"sigma": sigma, "y": np.asarray(y, data["y"].dtype)}
