"""Annual flow of the Nile: a random walk observed with noise (the local level model).

Data: the flow at Aswan (``flow``, 10⁸ m³) in the years 1871 to 1970, in their order.

Model: for years t = 1, ..., T,

    level_1 ~ Normal(1000, 500²),
    level_t ~ Normal(level_(t-1), σ²_η)    for t > 1,
    flow_t ~ Normal(level_t, σ²_ε).

The latent data are the levels; the parameters are the variances ``sigma2_eps`` (σ²_ε) and
``sigma2_eta`` (σ²_η). The prior of the first level is fixed and proper (arguments ``prior_mean``
and ``prior_sd``). The flows are jointly normal, and the Kalman filter gives their density.

Other data: a CSV file with a column ``flow``; in Python, give a prior that suits it.

Source: Cobb (1978), Biometrika 65, 243-251; Durbin and Koopman (2012), Time Series Analysis by
State Space Methods, chapter 2; data set ``Nile`` of R.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

DATA = Path(__file__).resolve().parent / "data" / "nile.csv"

REFERENCE: dict[str, Any] = {
    "params": {"sigma2_eps": 15105.410506610093, "sigma2_eta": 1463.910025394543},
    "standard_errors": {"sigma2_eps": 3147.541541667893, "sigma2_eta": 1278.1725711186052},
    "log_likelihood": -639.7117071159117,
    "kind": "exact",
    "source": "Kalman filter, BFGS then Newton, float64; statsmodels UnobservedComponents with the "
    "same known initial law gives the same log-likelihood to 1e-12",
}


def model(flow, prior_mean=1000.0, prior_sd=500.0):
    """Local level model for a series ``flow``."""
    half = jnp.var(flow) / 2
    sigma2_eps = numpyro.param("sigma2_eps", half, constraint=constraints.positive)
    sigma2_eta = numpyro.param("sigma2_eta", half, constraint=constraints.positive)

    def year(previous, step):
        t, seen = step
        mean = jnp.where(t == 0, prior_mean, previous)
        sd = jnp.where(t == 0, prior_sd, jnp.sqrt(sigma2_eta))
        level = numpyro.sample("level", dist.Normal(mean, sd))
        numpyro.sample("flow", dist.Normal(level, jnp.sqrt(sigma2_eps)), obs=seen)
        return level, None

    scan(year, jnp.asarray(prior_mean, float), (jnp.arange(len(flow)), flow))


def load() -> dict[str, np.ndarray]:
    """Return the 100 flows as the keyword arguments of :func:`model`."""
    table = np.genfromtxt(DATA, delimiter=",", names=True, dtype=np.float64)
    return {"flow": np.ascontiguousarray(table["flow"])}


def simulate(rng_key, params=None, *, size=None) -> dict[str, np.ndarray]:
    """Draw a series from the model, with the default prior of the first level.

    Parameters
    ----------
    rng_key : jax.Array
        Random key.
    params : dict, optional
        True parameter values; those left out are taken from ``REFERENCE``.
    size : int, optional
        Number of years, 100 by default.

    Returns
    -------
    dict
        Keyword arguments of :func:`model`, with the keys and dtypes of :func:`load`.
    """
    data = load()
    truth = {**REFERENCE["params"], **(params or {})}
    length = size or len(data["flow"])
    key_level, key_flow = jax.random.split(rng_key)
    steps = np.array(jax.random.normal(key_level, (length,)))
    steps[1:] *= np.sqrt(truth["sigma2_eta"])
    level = 1000.0 + np.cumsum(np.r_[500.0 * steps[0], steps[1:]])
    noise = np.sqrt(truth["sigma2_eps"]) * np.asarray(jax.random.normal(key_flow, (length,)))
    return {"flow": (level + noise).astype(data["flow"].dtype)}
