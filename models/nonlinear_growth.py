"""A nonlinear time series whose states are seen by their squares only: system identification.

Data: a simulated series (``y``) of 100 steps, in their order, and the states ``x_true`` behind it.

Model: with x_1 ~ Normal(0, 1), for t = 1, 2, ...,

    x_(t+1) ~ Normal(a x_t + b x_t / (1 + x_t²) + c cos(1.2 t), q),
    y_t ~ Normal(d x_t², r).

The latent data are the states x; the parameters are a, b, c, d and the variances ``q`` and ``r``.
As states are seen by their squares only, their posterior has several modes, and the signs of x and
c may be exchanged together. The sum over paths of the states on nodes is right to many digits.

Other data: a CSV file with a column ``y``.

Source: Netto, Gimeno and Mendes (1978), IEEE Transactions on Automatic Control 23; Kitagawa (1987),
Journal of the American Statistical Association 82, 1032-1041; Schön, Wills and Ninness (2011),
Automatica 47, 39-49, section 10.2, for the parameters. The data are simulated.
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

DATA = Path(__file__).resolve().parent / "data" / "nonlinear_growth.csv"

TRUTH = {"a": 0.5, "b": 25.0, "c": 8.0, "d": 0.05, "q": 0.1, "r": 0.1}

REFERENCE: dict[str, Any] = {
    "params": {
        "a": 0.4948530587004394,
        "b": 23.38963747121229,
        "c": 7.828084148051151,
        "d": 0.05347501096094426,
        "q": 0.07343894583006216,
        "r": 0.13299231621360746,
    },
    "standard_errors": {
        "a": 0.006428337932594265,
        "b": 0.9098352957607937,
        "c": 0.19685602638950384,
        "d": 0.0029871643072193906,
        "q": 0.024310972946083004,
        "r": 0.027863174565143273,
    },
    "log_likelihood": -93.6612251551263,
    "kind": "exact",
    "source": "grid filter with 1343 nodes on [-28, 28], BFGS and a Newton step, float64; 2775 "
    "nodes give the same log-likelihood to 1e-10",
}


def model(y):
    """States that are driven by a wave, seen by their squares."""
    a = numpyro.param("a", 0.4)
    b = numpyro.param("b", 20.0)
    c = numpyro.param("c", 6.0)
    d = numpyro.param("d", 0.06)
    q = numpyro.param("q", 0.5, constraint=constraints.positive)
    r = numpyro.param("r", 0.5, constraint=constraints.positive)

    def step(previous, inputs):
        t, seen = inputs
        moved = a * previous + b * previous / (1 + previous**2) + c * jnp.cos(1.2 * t)
        mean = jnp.where(t == 0, 0.0, moved)
        sd = jnp.where(t == 0, 1.0, jnp.sqrt(q))
        x = numpyro.sample("x", dist.Normal(mean, sd))
        numpyro.sample("y", dist.Normal(d * x**2, jnp.sqrt(r)), obs=seen)
        return x, None

    scan(step, jnp.zeros(()), (jnp.arange(len(y)), y))


def load() -> dict[str, np.ndarray]:
    """Return the 100 observations as the keyword arguments of :func:`model`."""
    table = np.genfromtxt(DATA, delimiter=",", names=True, dtype=np.float64)
    return {"y": np.ascontiguousarray(table["y"])}


def simulate(rng_key, params=None, *, size=None) -> dict[str, np.ndarray]:
    """Draw a series from the model.

    Parameters
    ----------
    rng_key : jax.Array
        Random key.
    params : dict, optional
        True parameter values; those left out are taken from ``TRUTH``.
    size : int, optional
        Number of steps, 100 by default.

    Returns
    -------
    dict
        Keyword arguments of :func:`model`, with the keys and dtypes of :func:`load`.
    """
    truth = {**TRUTH, **(params or {})}
    a, b, c, d = (truth[name] for name in "abcd")
    length = size or len(load()["y"])
    key_state, key_seen = jax.random.split(rng_key)
    states = np.array(jax.random.normal(key_state, (length,)))
    noise = np.asarray(jax.random.normal(key_seen, (length,)))
    for t in range(1, length):
        x = states[t - 1]
        states[t] *= np.sqrt(truth["q"])
        states[t] += a * x + b * x / (1 + x**2) + c * np.cos(1.2 * t)
    return {"y": d * states**2 + np.sqrt(truth["r"]) * noise}
