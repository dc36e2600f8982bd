"""Infections in kidney patients: Weibull proportional hazards with a frailty per patient.

Data: two times (``time``, days) to infection at the point of insertion of the catheter for each
of 38 patients ``id``; ``status`` is 1 for an infection and 0 for censoring; ``age`` in years;
``sex`` is 1 for men and 2 for women.

Model: for row j of patient i = 1, ..., N,

    u_i ~ Gamma(1/θ, 1/θ)                              (``lognormal``: log u_i ~ Normal(0, σ²)),
    h_ij(t) = u_i λ ρ t^(ρ - 1) exp(β_sex sex_i + β_age age_ij)      (hazard),
    log-likelihood of a row = status log h(time) - H(time),  H the integral of h.

The latent data are the frailties u; the parameters are ``theta`` θ (or ``sigma2`` σ²), ``lambda``
λ, ``rho`` ρ, ``sex`` and ``age``, for the covariates as they are coded. The gamma law is conjugate:
u_i given the data is Gamma(1/θ + Σ_j status_ij, 1/θ + Σ_j H_ij / u_i). The log-normal one is not.
EM starts at the constant hazard of all rows together.

Other data: a CSV file with these columns; ids may be numbers or texts, with any number of rows.

Source: McGilchrist and Aisbett (1991), Biometrics 47, 461-466; data set ``kidney`` of the R package
survival; model as in the R package parfm (Munda, Rotolo and Legrand 2012, JSS 51(11)).
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

DATA = Path(__file__).resolve().parent / "data" / "kidney.csv"

REFERENCE: dict[str, Any] = {
    "params": {
        "theta": 0.510189696242947,
        "lambda": 0.08725711054504208,
        "rho": 1.2155531998098419,
        "sex": -1.911648658520492,
        "age": 0.007114809395377734,
    },
    "standard_errors": {
        "theta": 0.2572034792611314,
        "lambda": 0.08291189242606437,
        "rho": 0.15912139678750323,
        "sex": 0.5394504726686045,
        "age": 0.01239972664464647,
    },
    "log_likelihood": -332.1878177507456,
    "kind": "exact",
    "source": "closed-form marginal likelihood, BFGS then Newton, float64; parfm gives the same "
    "log-likelihood to 3e-7",
}

REFERENCES: dict[str, dict[str, Any]] = {
    "lognormal": {
        "params": {
            "sigma2": 0.5926337044403026,
            "lambda": 0.050405578618815075,
            "rho": 1.1775639883311395,
            "sex": -1.6284772512558023,
            "age": 0.005959643965034923,
        },
        "standard_errors": {
            "sigma2": 0.3753646136094233,
            "lambda": 0.051251737467135364,
            "rho": 0.1587645942191783,
            "sex": 0.4941721771855783,
            "age": 0.012641489950616184,
        },
        "log_likelihood": -333.03018402623684,
        "kind": "exact",
        "source": "trapezoid rule with 1001 nodes for each patient, BFGS then Newton, float64",
    }
}


def _log_hazards(time, status, age, sex):
    """Parameters of the baseline and the covariates: log h and log H at frailty 1, (rows,)."""
    crude = (jnp.sum(status) + 0.5) / jnp.sum(time)
    scale = numpyro.param("lambda", crude, constraint=constraints.positive)
    rho = numpyro.param("rho", 1.0, constraint=constraints.positive)
    effects = numpyro.param("sex", 0.0) * sex + numpyro.param("age", 0.0) * age
    log_cumulative = jnp.log(scale) + rho * jnp.log(time) + effects
    return log_cumulative + jnp.log(rho / time), log_cumulative


def model(id, time, status, age, sex):
    """Gamma frailty ``u`` with mean 1 and variance ``theta``."""
    theta = numpyro.param("theta", 0.5, constraint=constraints.positive)
    log_hazard, log_cumulative = _log_hazards(time, status, age, sex)
    patients, patient = np.unique(id, return_inverse=True)
    with numpyro.plate("patients", len(patients)):
        u = numpyro.sample("u", dist.Gamma(1 / theta, 1 / theta))[patient]
    with numpyro.plate("rows", len(time)):
        log_prob = status * (jnp.log(u) + log_hazard) - u * jnp.exp(log_cumulative)
        numpyro.factor("infections", log_prob)


def lognormal(id, time, status, age, sex):
    """Infections in kidney patients: log-normal frailty."""
    sigma2 = numpyro.param("sigma2", 0.5, constraint=constraints.positive)
    log_hazard, log_cumulative = _log_hazards(time, status, age, sex)
    patients, patient = np.unique(id, return_inverse=True)
    with numpyro.plate("patients", len(patients)):
        b = numpyro.sample("b", dist.Normal(0.0, jnp.sqrt(sigma2)))[patient]
    with numpyro.plate("rows", len(time)):
        log_prob = status * (b + log_hazard) - jnp.exp(b + log_cumulative)
        numpyro.factor("infections", log_prob)


def load() -> dict[str, np.ndarray]:
    """Return the 76 rows as the keyword arguments of :func:`model`."""
    table = np.genfromtxt(DATA, delimiter=",", names=True, dtype=np.int64)
    names = ("id", "time", "status", "age", "sex")
    return {name: np.ascontiguousarray(table[name]) for name in names}


def simulate(rng_key, params=None, *, censoring=600) -> dict[str, np.ndarray]:
    """Draw times from the gamma frailty model, for the patients of the real data.

    Parameters
    ----------
    rng_key : jax.Array
        Random key.
    params : dict, optional
        True parameter values; those left out are taken from ``REFERENCE``.
    censoring : int, optional
        Time after which no infection is seen.

    Returns
    -------
    dict
        Keyword arguments of :func:`model`, with the keys, shapes and dtypes of :func:`load`: times
        are rounded up to whole days.
    """
    data = load()
    p = {**REFERENCE["params"], **(params or {})}
    key_u, key_time = jax.random.split(rng_key)
    patients, patient = np.unique(data["id"], return_inverse=True)
    frailty = jax.random.gamma(key_u, 1 / p["theta"], (len(patients),)) * p["theta"]
    hazard = (
        frailty[patient] * p["lambda"] * np.exp(p["sex"] * data["sex"] + p["age"] * data["age"])
    )
    drawn = (jax.random.exponential(key_time, (len(patient),)) / hazard) ** (1 / p["rho"])
    time = np.ceil(np.asarray(drawn))
    status = (time <= censoring).astype(np.int64)
    return {**data, "time": np.minimum(time, censoring).astype(np.int64), "status": status}
