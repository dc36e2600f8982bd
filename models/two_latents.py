"""Two latents, one observation: the sum of two normal variables, observed with noise.

Data: simulated (``y``, 100 rows), by :func:`simulate` with v = 2 and the key 0.

Model: for rows i = 1, ..., n,

    a_i ~ Normal(0, v),    b_i ~ Normal(0, v),    y_i ~ Normal(a_i + b_i, 1).

The latent data are a and b; the parameter is their variance ``v``. The y_i are independent
Normal(0, 2v + 1), so with s their mean square the maximum-likelihood estimate is (s - 1) / 2, its
standard error s / sqrt(2n). Given y_i, a_i and b_i are correlated. With independent normal laws for
them instead (mean-field variational inference) EM ends at the positive root of
4v² - (s - 4)v - (s - 1), which is 40 to 45 % too low for s from 3 to 9.

Other data: a CSV file with a column ``y``.

Source: simulated; a textbook case of the bias of variational EM.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

DATA = Path(__file__).resolve().parent / "data" / "two_latents.csv"

REFERENCE: dict[str, Any] = {
    "params": {"v": 2.2756083967999996},
    "standard_errors": {"v": 0.39253030385912024},
    "log_likelihood": -227.5947106113872,
    "kind": "exact",
    "source": "closed form: (s - 1) / 2, s / sqrt(2n) and -n (log(2 pi s) + 1) / 2, s being "
    "the mean square of y",
}


def model(y):
    """Sums of two normal variables, observed with unit variance, for a vector ``y``."""
    v = numpyro.param("v", 1.0, constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        a = numpyro.sample("a", dist.Normal(0.0, jnp.sqrt(v)))
        b = numpyro.sample("b", dist.Normal(0.0, jnp.sqrt(v)))
        numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)


def load() -> dict[str, np.ndarray]:
    """Return the 100 values as the keyword argument of :func:`model`."""
    return {"y": np.genfromtxt(DATA, skip_header=1, dtype=np.float64)}


def simulate(rng_key, params=None, *, size=None) -> dict[str, np.ndarray]:
    """Draw rows from the model.

    Parameters
    ----------
    rng_key : jax.Array
        Random key.
    params : dict, optional
        True parameter values; those left out are taken from ``REFERENCE``.
    size : int, optional
        Number of rows, 100 by default.

    Returns
    -------
    dict
        The keyword argument of :func:`model`, with the key and dtype of :func:`load`.
    """
    truth = {**REFERENCE["params"], **(params or {})}
    rows = size or 100
    a, b, noise = np.asarray(jax.random.normal(rng_key, (3, rows)), np.float64)
    return {"y": np.sqrt(truth["v"]) * (a + b) + noise}
