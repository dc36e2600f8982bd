"""Reaction times under sleep deprivation: a linear mixed model with a random line per subject.

Data: 18 subjects slept three hours a night. ``Reaction`` is the mean reaction time (ms) of subject
``Subject`` after ``Days`` days, one row for each of the ten days (long format; rows may come in any
order, subjects may be numbers or strings and need not have equally many rows).

Model: for row j of subject i = 1, ..., N,

    b_i ~ Normal₂(0, Ψ),    Ψ = [[s₀², ρ s₀ s₁], [ρ s₀ s₁, s₁²]],
    Reaction_ij ~ Normal(β₀ + b_i0 + (β₁ + b_i1) Days_ij, σ²).

The latent data are the subjects' deviations b; the parameters are ``beta0``, ``beta1``,
``sd_intercept`` (s₀), ``sd_slope`` (s₁), ``corr`` (ρ) and ``sigma`` (σ). Everything is Gaussian:
the rows of one subject are jointly normal with covariance Z Ψ Zᵀ + σ² I, where Z = [1, Days]. The
reference is the maximum of this likelihood (ML, not REML).

Source: Belenky et al. (2003), Journal of Sleep Research 12, 1-12, as in the R package lme4
(Bates, Mächler, Bolker and Walker 2015, Journal of Statistical Software 67(1)).
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints

DATA = Path(__file__).resolve().parent / "data" / "sleepstudy.csv"

REFERENCE: dict[str, Any] = {
    "params": {
        "beta0": 251.40510484848485,
        "beta1": 10.467285959595957,
        "sd_intercept": 23.780566999193255,
        "sd_slope": 5.716834542507707,
        "corr": 0.08132007536198411,
        "sigma": 25.59181562672525,
    },
    "standard_errors": {
        "beta0": 6.632276807024507,
        "beta1": 1.5022367823134266,
        "sd_intercept": 5.5773710303478055,
        "sd_slope": 1.1870709296236968,
        "corr": 0.323502473537043,
        "sigma": 1.508012197711106,
    },
    "log_likelihood": -875.9696722315987,
    "kind": "exact",
    "source": "multivariate normal marginal likelihood, BFGS then Newton, float64; "
    "lme4::lmer(REML=FALSE) gives the same log-likelihood to 1e-9",
}


def _initial_values(days, reaction):
    """Start from the least-squares line, half of the spread between subjects, half within."""
    if reaction is None:
        return 0.0, 0.0, 1.0, 1.0, 1.0
    centered = days - jnp.mean(days)
    slope = jnp.sum(centered * reaction) / jnp.sum(centered**2)
    half = jnp.std(reaction) / 2
    intercept = jnp.mean(reaction) - slope * jnp.mean(days)
    return intercept, slope, half, half / jnp.sqrt(jnp.mean(jnp.square(days))), half


def model(Days, Subject, Reaction=None):
    """Random intercept and slope ``b`` for each subject, correlated, with Gaussian errors."""
    intercept, slope, spread, spread_slope, noise = _initial_values(Days, Reaction)
    beta0 = numpyro.param("beta0", intercept)
    beta1 = numpyro.param("beta1", slope)
    sd_intercept = numpyro.param("sd_intercept", spread, constraint=constraints.positive)
    sd_slope = numpyro.param("sd_slope", spread_slope, constraint=constraints.positive)
    corr = numpyro.param("corr", 0.0, constraint=constraints.interval(-1.0, 1.0))
    sigma = numpyro.param("sigma", noise, constraint=constraints.positive)

    subjects, subject = np.unique(Subject, return_inverse=True)
    factor = [[sd_intercept, 0.0], [corr * sd_slope, jnp.sqrt(1.0 - corr**2) * sd_slope]]
    scale_tril = jnp.stack([jnp.stack(row) for row in factor])
    with numpyro.plate("subjects", len(subjects)):
        b = numpyro.sample("b", dist.MultivariateNormal(jnp.zeros(2), scale_tril=scale_tril))
    line = beta0 + b[subject, 0] + (beta1 + b[subject, 1]) * Days
    with numpyro.plate("rows", len(Days)):
        numpyro.sample("Reaction", dist.Normal(line, sigma), obs=Reaction)


def load() -> dict[str, np.ndarray]:
    """Return the 180 rows as the keyword arguments of :func:`model`."""
    table = np.genfromtxt(DATA, delimiter=",", names=True, dtype=None)
    return {name: np.ascontiguousarray(table[name]) for name in ("Days", "Subject", "Reaction")}


def simulate(rng_key, params=None, *, Days=None, Subject=None) -> dict[str, np.ndarray]:
    """Draw reaction times from the model.

    Parameters
    ----------
    rng_key : jax.Array
        Random key.
    params : dict, optional
        True parameter values; those left out are taken from ``REFERENCE``.
    Days, Subject : array of shape (rows,), optional
        Design in long format. What is left out comes from the real data, so give both to change
        the number of rows.

    Returns
    -------
    dict
        Keyword arguments of :func:`model`, with the keys and dtypes of :func:`load`
        (``Subject`` keeps the dtype it is given in).
    """
    data = load()
    days = data["Days"] if Days is None else np.asarray(Days, data["Days"].dtype)
    subject = data["Subject"] if Subject is None else np.asarray(Subject)
    truth = {**REFERENCE["params"], **(params or {})}
    program = handlers.seed(handlers.substitute(model, data=truth), rng_key)
    reaction = handlers.trace(program).get_trace(days, subject)["Reaction"]["value"]
    return {
        "Days": days,
        "Subject": subject,
        "Reaction": np.asarray(reaction, data["Reaction"].dtype),
    }
