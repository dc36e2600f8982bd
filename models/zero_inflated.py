"""Articles by doctoral students: zero-inflated Poisson regression.

Data: 915 students of biochemistry wrote ``art`` articles in the last three years of their doctoral
studies. ``fem`` (Men or Women), ``mar`` (Single or Married), ``kid5`` (children aged 5 or
younger), ``phd`` (prestige of the department) and ``ment`` (articles by the mentor) may explain it.

Model: for students i = 1, ..., N and x_i = (1, fem is Women, mar is Married, kid5, phd, ment),

    structural_i ~ Bernoulli(p_i),                  logit p_i = x_i · zero,
    art_i = 0 if structural_i, else Poisson(λ_i),   log λ_i = x_i · count.

The latent data are the indicators of a structural zero; the parameters are the coefficients
``count`` (6,) and ``zero`` (6,). Marginally art_i is 0 with probability p_i + (1 - p_i) exp(-λ_i),
and y > 0 with probability (1 - p_i) Poisson(y; λ_i).

Other data: a CSV file with the same columns. ``fem`` and ``mar`` may be these texts, or 0 and 1.

Source: Long (1990), Social Forces 68, 1297-1316; data set ``bioChemists`` of the R package pscl
(Zeileis, Kleiber and Jackman 2008, Journal of Statistical Software 27(8)).
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

DATA = Path(__file__).resolve().parent / "data" / "zero_inflated.csv"
CODES = {"fem": ("Men", "Women"), "mar": ("Single", "Married")}

REFERENCE: dict[str, Any] = {
    "params": {
        "count": np.array(
            [
                0.6408380330837339,
                -0.2091445796399784,
                0.10375093824284909,
                -0.14331966161205997,
                -0.0061660572303954934,
                0.018097723425565284,
            ]
        ),
        "zero": np.array(
            [
                -0.5770603059322582,
                0.10974718556648227,
                -0.35401345752472646,
                0.21710060355444394,
                0.001272264062990303,
                -0.1341135304121397,
            ]
        ),
    },
    "standard_errors": {
        "count": np.array(
            [
                0.12130723368361683,
                0.06340470158861429,
                0.07111097691594,
                0.047429305910465534,
                0.03100864570402446,
                0.00229483171169778,
            ]
        ),
        "zero": np.array(
            [
                0.5093873976179417,
                0.2800825440847912,
                0.3176118829285099,
                0.1964818521772624,
                0.14526465420305917,
                0.045247366444938666,
            ]
        ),
    },
    "log_likelihood": -1604.772853210476,
    "kind": "exact",
    "source": "closed-form marginal likelihood, BFGS then Newton, float64; pscl::zeroinfl fits "
    "the same model",
}


def _indicator(name, values):
    """A column of two texts as 0 and 1, in the order of ``CODES``; numbers pass."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "UO":
        return values
    unknown = sorted({str(v) for v in values} - set(CODES[name]))
    if unknown:
        raise ValueError(f"column '{name}' has '{unknown[0]}'; valid are {CODES[name]}, or 0 and 1")
    return (values == CODES[name][1]).astype(np.int64)


def model(fem, mar, kid5, phd, ment, art):
    """Poisson regression with a logistic regression for structural zeros."""
    columns = [_indicator("fem", fem), _indicator("mar", mar), kid5, phd, ment]
    x = jnp.stack([jnp.ones(len(art)), *columns], axis=1)
    none = jnp.zeros(6)
    mean = (jnp.mean(art) + 0.01) / (jnp.mean(art > 0) + 0.01)
    count = numpyro.param("count", none.at[0].set(jnp.log(mean)))
    zero = numpyro.param("zero", none.at[0].set(-1.0))
    with numpyro.plate("student", len(art)):
        structural = numpyro.sample(
            "structural", dist.Bernoulli(logits=x @ zero), infer={"enumerate": "parallel"}
        )
        # A rate of zero would do, but has no derivative: leave the count out instead, and rule out
        # what a structural zero cannot be.
        numpyro.factor("impossible", jnp.where((structural == 1) & (art > 0), -jnp.inf, 0.0))
        with handlers.mask(mask=structural == 0):
            numpyro.sample("art", dist.Poisson(jnp.exp(x @ count)), obs=art)


def load() -> dict[str, np.ndarray]:
    """Return the 915 students as the keyword arguments of :func:`model`, all numbers."""
    table = np.genfromtxt(DATA, delimiter=",", names=True, dtype=None, encoding="utf-8")
    names = ("fem", "mar", "kid5", "phd", "ment", "art")
    columns = {name: np.ascontiguousarray(table[name]) for name in names}
    return {k: _indicator(k, v) if k in CODES else v for k, v in columns.items()}


def simulate(rng_key, params=None, **design) -> dict[str, np.ndarray]:
    """Draw numbers of articles from the model.

    Parameters
    ----------
    rng_key : jax.Array
        Random key.
    params : dict, optional
        True parameter values; those left out are taken from ``REFERENCE``.
    **design : array of shape (N,), optional
        ``fem``, ``mar``, ``kid5``, ``phd`` and ``ment``. What is left out comes from the real data,
        so give all five to change the number of students.

    Returns
    -------
    dict
        Keyword arguments of :func:`model`, with the keys and dtypes of :func:`load`.
    """
    data = load()
    design = {k: np.asarray(design.get(k, v), v.dtype) for k, v in data.items() if k != "art"}
    truth = {**REFERENCE["params"], **(params or {})}
    x = np.column_stack([np.ones(len(design["fem"])), *design.values()])
    key_zero, key_count = jax.random.split(rng_key)
    structural = dist.Bernoulli(logits=x @ truth["zero"]).sample(key_zero)
    count = dist.Poisson(jnp.exp(x @ truth["count"])).sample(key_count)
    return {**design, "art": np.where(structural, 0, count).astype(data["art"].dtype)}
