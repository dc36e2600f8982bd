"""New York air quality: a multivariate normal distribution with missing values.

Data: on 153 days of 1973, mean ``Ozone`` (ppb), solar radiation (``Solar_R``, column ``Solar.R``,
langley), mean ``Wind`` (mph) and maximal ``Temp`` (°F). Ozone is missing (NaN) on 37 days, solar
radiation on 7.

Model: for days i = 1, ..., N,

    y_i = (Ozone_i, Solar_R_i, Wind_i, Temp_i) ~ Normal₄(μ, Σ),

values missing at random. The latent data are the missing values, a site ``missing`` that stands for
them in y, with a flat prior: a row for each incomplete day, as wide as the most values missing on
one. Places that a day does not need are standard normal, which changes nothing. The parameters are
``mu`` (4,) and ``covariance`` (4, 4). With the flat prior the integral over ``missing`` is the
density of the observed values: each day is normal with the means and the covariance matrix of what
was observed on it. EM starts at the means and covariances of the data whose missing values are
replaced by the mean of the others.

Other data: a CSV file with these four columns; or any file as ``airquality:every_column``, whose
parameters follow the columns in alphabetical order. Empty cells and NA are missing.

Source: data set ``airquality`` of R (Chambers, Cleveland, Kleiner and Tukey 1983, Graphical Methods
for Data Analysis). Method: Dempster, Laird and Rubin (1977), JRSS B 39, 1-38, section 4.1.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

DATA = Path(__file__).resolve().parent / "data" / "airquality.csv"
NAMES = ("Ozone", "Solar_R", "Wind", "Temp")

REFERENCE: dict[str, Any] = {
    "params": {
        "mu": np.array(
            [41.871173019597926, 184.846806249845, 9.957516339869281, 77.88235294117648]
        ),
        "covariance": np.array(
            [
                [1044.018643064478, 942.5298418132423, -64.63592769369902, 209.56350282618115],
                [942.5298418132423, 8090.7016612067955, -17.33538034131151, 238.07331132702717],
                [-64.63592769369902, -17.33538034131151, 12.330417360844118, -15.172318339100343],
                [209.56350282618115, 238.07331132702717, -15.172318339100343, 89.00576701268741],
            ]
        ),
    },
    "standard_errors": {
        "mu": np.array(
            [2.782497917283563, 7.428372447700286, 0.28388547539945047, 0.762716880171542]
        ),
        "covariance": np.array(
            [
                [129.62663626151257, 266.6023416742748, 11.03333289488095, 31.266781589998438],
                [266.6023416742748, 950.6670759421505, 26.21111041061077, 74.27213278369777],
                [11.03333289488095, 26.21111041061077, 1.4097660877342626, 2.945781850310299],
                [31.266781589998438, 74.27213278369777, 2.945781850310299, 10.176242074799795],
            ]
        ),
    },
    "log_likelihood": -2326.6973827983365,
    "kind": "exact",
    "source": "normal likelihood of the observed values, BFGS then Newton, float64; "
    "lavaan (FIML) gives the same log-likelihood to 1e-8",
}

_ALPHABETICAL = np.argsort(NAMES)
_SQUARE = np.ix_(_ALPHABETICAL, _ALPHABETICAL)
REFERENCES: dict[str, dict[str, Any]] = {
    "every_column": {
        **REFERENCE,
        **{
            part: {
                "mu": REFERENCE[part]["mu"][_ALPHABETICAL],
                "covariance": REFERENCE[part]["covariance"][_SQUARE],
            }
            for part in ("params", "standard_errors")
        },
    }
}


def _normal(columns):
    """Rows of ``columns``, normal with free mean and covariance; NaN where missing."""
    y = np.stack([np.asarray(column, float) for column in columns], axis=1)
    gone = np.isnan(y)
    means = np.nanmean(y, axis=0)
    filled = np.where(gone, means, y)
    spread = np.cov(filled.T, bias=True)
    mu = numpyro.param("mu", jnp.asarray(means))
    positive = constraints.positive_definite
    covariance = numpyro.param("covariance", jnp.asarray(spread), constraint=positive)
    filled = jnp.asarray(filled)
    rows = np.flatnonzero(gone.any(axis=1))
    if len(rows):
        # A row's missing values in front, so that rows are independent blocks of equal width.
        width = gone.sum(axis=1).max()
        places = np.argsort(~gone[rows], axis=1, kind="stable")[:, :width]
        used = np.take_along_axis(gone[rows], places, axis=1)
        with numpyro.plate("incomplete", len(rows)):
            prior = dist.Normal(0.0, 1.0).expand([len(rows), width]).mask(~used)
            missing = numpyro.sample("missing", prior.to_event(1))
        kept = jnp.take_along_axis(filled[rows], places, axis=1)
        filled = filled.at[rows[:, None], places].set(jnp.where(used, missing, kept))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.MultivariateNormal(mu, covariance), obs=filled)


def model(Ozone, Solar_R, Wind, Temp):
    """Normal distribution of four variables, some of their values missing."""
    _normal([Ozone, Solar_R, Wind, Temp])


def every_column(**columns):
    """Normal distribution with missing values of every column of the data."""
    _normal([columns[name] for name in sorted(columns)])


def load() -> dict[str, np.ndarray]:
    """Return the 153 days as the keyword arguments of :func:`model`, NaN where missing."""
    table = np.genfromtxt(DATA, delimiter=",", skip_header=1, usecols=range(4), dtype=np.float64)
    return {name: np.ascontiguousarray(table[:, j]) for j, name in enumerate(NAMES)}


def simulate(rng_key, params=None) -> dict[str, np.ndarray]:
    """Draw days from the model, with the same values missing as in the real data.

    Parameters
    ----------
    rng_key : jax.Array
        Random key.
    params : dict, optional
        True parameter values; those left out are taken from ``REFERENCE``.

    Returns
    -------
    dict
        Keyword arguments of :func:`model`, with the keys, shapes and dtypes of :func:`load`.
    """
    data = load()
    truth = {**REFERENCE["params"], **(params or {})}
    law = dist.MultivariateNormal(jnp.asarray(truth["mu"]), jnp.asarray(truth["covariance"]))
    y = np.asarray(law.sample(rng_key, (len(data["Wind"]),)))
    return {k: np.where(np.isnan(v), np.nan, y[:, j]) for j, (k, v) in enumerate(data.items())}
