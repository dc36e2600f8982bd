"""Local level: a random walk observed with noise, its levels or its steps as latents.

Data: simulated (``y``, 100 times), by :func:`simulate` with q = 0.25, r = 1 and the key 0.

Model: for times t = 1, ..., T, with level_0 = 0,

    level_t ~ Normal(level_(t-1), q),    y_t ~ Normal(level_t, r).

The latent data are the levels in :func:`model` (centered) and the standardised steps between them
in :func:`noncentered`; the parameters are the variances ``q`` and ``r``. Both functions have the
same likelihood, y jointly normal with the covariances q min(s, t) + r [s = t], and exact methods
give the same estimates. Mean-field variational inference does not: q comes out too large with
levels and too small with steps.

Other data: a CSV file with a column ``y``, in the order of time.

Source: simulated; Durbin and Koopman (2012), Time Series Analysis by State Space Methods,
chapter 2, for the model.
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

DATA = Path(__file__).resolve().parent / "data" / "local_level.csv"

REFERENCE: dict[str, Any] = {
    "params": {"q": 0.1987258157235777, "r": 0.9308001141117815},
    "standard_errors": {"q": 0.07700619530562983, "r": 0.1641310541142868},
    "log_likelihood": -160.9655490385991,
    "kind": "exact",
    "source": "density of the 100 jointly normal values (SciPy), Nelder-Mead then Newton, float64",
}
REFERENCES: dict[str, dict[str, Any]] = {"noncentered": REFERENCE}


def model(y):
    """Local level model for a series ``y``, with the levels as latents (centered)."""
    q, r = _variances()

    def step(previous, seen):
        level = numpyro.sample("level", dist.Normal(previous, jnp.sqrt(q)))
        numpyro.sample("y", dist.Normal(level, jnp.sqrt(r)), obs=seen)
        return level, None

    scan(step, 0.0, jnp.asarray(y))


def noncentered(y):
    """Local level model for a series ``y``, with standardised steps as latents (non-centered)."""
    q, r = _variances()
    with numpyro.plate("time", len(y)):
        step = numpyro.sample("step", dist.Normal(0.0, 1.0))
    level = jnp.sqrt(q) * jnp.cumsum(step)
    with numpyro.plate("time", len(y)):
        numpyro.sample("y", dist.Normal(level, jnp.sqrt(r)), obs=y)


def _variances():
    q = numpyro.param("q", 0.5, constraint=constraints.positive)
    return q, numpyro.param("r", 0.5, constraint=constraints.positive)


def load() -> dict[str, np.ndarray]:
    """Return the 100 values as the keyword argument of both models."""
    return {"y": np.genfromtxt(DATA, skip_header=1, dtype=np.float64)}


def simulate(rng_key, params=None, *, size=None) -> dict[str, np.ndarray]:
    """Draw a series from the model.

    Parameters
    ----------
    rng_key : jax.Array
        Random key.
    params : dict, optional
        True parameter values; those left out are taken from ``REFERENCE``.
    size : int, optional
        Number of times, 100 by default.

    Returns
    -------
    dict
        The keyword argument of both models, with the key and dtype of :func:`load`.
    """
    truth = {**REFERENCE["params"], **(params or {})}
    steps, noise = np.asarray(jax.random.normal(rng_key, (2, size or 100)), np.float64)
    return {"y": np.sqrt(truth["q"]) * np.cumsum(steps) + np.sqrt(truth["r"]) * noise}
