"""Bitterness of wines: cumulative logit or probit regression with an effect of each judge.

Data: nine judges rated the bitterness of eight wines, ``rating`` from 1 to 5, one row for each
rating. ``temp`` (cold or warm) and ``contact`` (of the juice with the skins, no or yes) are the
conditions under which a wine was made; there are two bottles for each pair of conditions.

Model: for row k of judge i = 1, ..., N,

    u_i ~ Normal(0, sd²),
    P(rating_ik ≤ j) = F(c_j - β₁ [temp is warm] - β₂ [contact is yes] - u_i)   for j = 1, ..., 4,

with the logistic distribution function F (``model``) or the standard normal one (``probit``). The
latent data are the effects u; the parameters are the cut points ``cut`` (4,) in ascending order,
``temp_warm`` β₁, ``contact_yes`` β₂ and ``sd``. The marginal likelihood is a product of
one-dimensional integrals without a closed form. EM starts at the shares of the ratings.

Other data: a CSV file with these columns. ``temp`` and ``contact`` may be these texts, or 0 and 1;
judges may be numbers or texts, with any number of rows. For more or fewer ratings than five, pass
``num_levels``.

Source: Randall (1989), Biometrical Journal 31, 781-793; data set ``wine`` of the R package ordinal
(Christensen).
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import expit, logit, ndtr, ndtri
from numpyro import handlers
from numpyro.distributions import constraints

DATA = Path(__file__).resolve().parent / "data" / "wine_ordinal.csv"
CODES = {"temp": ("cold", "warm"), "contact": ("no", "yes")}

_SOURCE = "trapezoid rule with 1001 nodes for each judge, BFGS then Newton, float64; "

REFERENCE: dict[str, Any] = {
    "params": {
        "cut": np.array(
            [-1.6234934708324629, 1.51279415641926, 4.227054524838163, 6.086154634834376]
        ),
        "temp_warm": 3.061897188667864,
        "contact_yes": 1.8334312412292653,
        "sd": 1.1347873364450174,
    },
    "standard_errors": {
        "cut": np.array(
            [0.683387564974859, 0.6044386482809724, 0.8089798658248565, 0.9719416003032993]
        ),
        "temp_warm": 0.5950772604932228,
        "contact_yes": 0.5121716373837466,
        "sd": 0.39929890019868247,
    },
    "log_likelihood": -81.53246071080747,
    "kind": "exact",
    "source": _SOURCE + "ordinal::clmm(nAGQ=15) gives the same log-likelihood to 2e-10",
}

REFERENCES: dict[str, dict[str, Any]] = {
    "probit": {
        "params": {
            "cut": np.array(
                [-0.9263261508674195, 0.8893535677166461, 2.467336355187274, 3.5363575690531848]
            ),
            "temp_warm": 1.7998736890706055,
            "contact_yes": 1.0481142134320796,
            "sd": 0.6630312274771101,
        },
        "standard_errors": {
            "cut": np.array(
                [0.38810487602502186, 0.3484337624280903, 0.446795951631277, 0.5255329407895847]
            ),
            "temp_warm": 0.3269124948116826,
            "contact_yes": 0.28553131973313794,
            "sd": 0.2318235937423457,
        },
        "log_likelihood": -80.9312946158017,
        "kind": "exact",
        "source": _SOURCE + "ordinal::clmm(nAGQ=15) gives the same log-likelihood to 2e-10",
    }
}


def _indicator(name, values):
    """A column of two texts as 0 and 1, in the order of ``CODES``; numbers pass."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "UO":
        return values
    unknown = sorted({str(v) for v in values} - set(CODES[name]))
    if unknown:
        raise ValueError(f"column '{name}' has '{unknown[0]}'; valid are {CODES[name]}, or 0 and 1")
    return (values == CODES[name][1]).astype(np.int64)


def _shares(rating, num_levels):
    """Share of the ratings up to each cut point, a little away from 0, 1 and each other."""
    levels = jnp.arange(1, num_levels)
    if rating is None:
        return levels / num_levels
    below = jnp.sum(jnp.asarray(rating)[:, None] <= levels, axis=0)
    return (below + levels / num_levels) / (len(rating) + 1)


def _cumulative(temp, contact, judge, rating, num_levels, distribution, quantile):
    """Regression with a symmetric distribution function F, its inverse, and an effect ``u``."""
    temp, contact = _indicator("temp", temp), _indicator("contact", contact)
    start = quantile(_shares(rating, num_levels))
    cut = numpyro.param("cut", start, constraint=constraints.ordered_vector)
    effects = numpyro.param("temp_warm", 0.0) * temp + numpyro.param("contact_yes", 0.0) * contact
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    judges, number = np.unique(judge, return_inverse=True)
    with numpyro.plate("judges", len(judges)):
        u = numpyro.sample("u", dist.Normal(0.0, sd))
    with numpyro.plate("rows", len(number)):
        z = cut - (effects + u[number])[:, None]
        # Differences near 1 lose their digits: take those above the center from the other tail.
        above = jnp.pad(z > 0, ((0, 0), (1, 0)))
        left = jnp.diff(distribution(z), prepend=0.0, append=1.0)
        right = -jnp.diff(distribution(-z), prepend=1.0, append=0.0)
        probs = jnp.where(above, right, left)
        level = None if rating is None else rating - 1
        numpyro.sample("level", dist.Categorical(probs), obs=level)


def model(temp, contact, judge, rating, num_levels=5):
    """Cumulative logit regression with a normal effect ``u`` of the judge."""
    _cumulative(temp, contact, judge, rating, num_levels, expit, logit)


def probit(temp, contact, judge, rating, num_levels=5):
    """Bitterness of wines: cumulative probit regression with an effect of each judge."""
    _cumulative(temp, contact, judge, rating, num_levels, ndtr, ndtri)


def load() -> dict[str, np.ndarray]:
    """Return the 72 ratings as the keyword arguments of :func:`model`, all numbers."""
    table = np.genfromtxt(DATA, delimiter=",", names=True, dtype=None, encoding="utf-8")
    names = ("temp", "contact", "judge", "rating")
    columns = {name: np.ascontiguousarray(table[name]) for name in names}
    return {k: _indicator(k, v) if k in CODES else v for k, v in columns.items()}


def simulate(rng_key, params=None, **design) -> dict[str, np.ndarray]:
    """Draw ratings from the cumulative logit model.

    Parameters
    ----------
    rng_key : jax.Array
        Random key.
    params : dict, optional
        True parameter values; those left out are taken from ``REFERENCE``.
    **design : array of shape (rows,), optional
        ``temp``, ``contact`` and ``judge``. What is left out comes from the real data, so give all
        three to change the number of rows.

    Returns
    -------
    dict
        Keyword arguments of :func:`model`, with the keys and dtypes of :func:`load`.
    """
    data = load()
    design = {k: np.asarray(design.get(k, v), v.dtype) for k, v in data.items() if k != "rating"}
    truth = {**REFERENCE["params"], **(params or {})}
    program = handlers.seed(handlers.substitute(model, data=truth), rng_key)
    level = handlers.trace(program).get_trace(**design, rating=None)["level"]["value"]
    return {**design, "rating": np.asarray(level + 1, data["rating"].dtype)}
