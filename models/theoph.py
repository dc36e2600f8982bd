"""Theophylline: a one-compartment pharmacokinetic model with random effects per subject.

Data: 12 subjects took a ``Dose`` (mg per kg of body weight ``Wt``) of theophylline; ``conc`` (mg/l)
is the concentration in the blood of ``Subject`` at ``Time`` (hours), in long format.

Model: for row j of subject i = 1, ..., N, with rates of elimination K_e and of absorption K_a,i and
clearance Cl_i (l/h per kg),

    log K_a,i ~ Normal(lKa, sd_lKa²),   log Cl_i ~ Normal(lCl, sd_lCl²),   K_e = exp(lKe),
    f_ij = Dose_i K_e K_a,i / (Cl_i (K_a,i - K_e)) (exp(-K_e t_ij) - exp(-K_a,i t_ij)),
    conc_ij ~ Normal(f_ij, σ²).

The latent data are the subjects' ``log_ka`` and ``log_cl``; the parameters are ``lKe``, ``lKa``,
``lCl``, ``sd_lKa``, ``sd_lCl`` and ``sigma``. In ``three_effects`` the dose is Dose_i Wt_i (mg)
and absorption, volume V_i and clearance are all log-normal, with K_e,i = CL_i / V_i: the parameters
are the medians ``ka``, ``V``, ``CL``, the standard deviations ``omega_ka``, ``omega_V``,
``omega_CL`` of the logarithms, and ``sigma``. f is not linear in the latent data, so there is no
closed form: the references are by quadrature. EM starts at the line through the logarithms of the
falling concentrations (curve stripping), and at the time of the highest one.

Other data: a CSV file with these columns (``Wt`` for ``three_effects`` only).

Source: data set ``Theoph`` of R (Boeckmann, Sheiner and Beal 1994, NONMEM Users Guide V); Pinheiro
and Bates (2000), Mixed-Effects Models in S and S-PLUS, section 8.1; ``three_effects`` as in the R
package saemix (Comets, Lavenu and Lavielle 2017, JSS 80(3)).
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints

DATA = Path(__file__).resolve().parent / "data" / "theoph.csv"

REFERENCE: dict[str, Any] = {
    "params": {
        "lKe": -2.4590534239733612,
        "lKa": 0.4808640981181902,
        "lCl": -3.22674135081902,
        "sd_lKa": 0.6592154500337952,
        "sd_lCl": 0.1674779649251668,
        "sigma": 0.7082225546491252,
    },
    "standard_errors": {
        "lKe": 0.051175556196200955,
        "lKa": 0.19922390198166368,
        "lCl": 0.059475829389904686,
        "sd_lKa": 0.15319197315869623,
        "sd_lCl": 0.03644462322127582,
        "sigma": 0.0482629377116901,
    },
    "log_likelihood": -177.73989421280464,
    "kind": "exact",
    "source": "trapezoid rule with 81 x 81 nodes for each subject, BFGS then Newton, float64",
}

REFERENCES: dict[str, dict[str, Any]] = {
    "three_effects": {
        "params": {
            "ka": 1.5829670605458124,
            "V": 31.621897724947058,
            "CL": 2.7501827112917514,
            "omega_ka": 0.6364705751411626,
            "omega_V": 0.13596150825714037,
            "omega_CL": 0.26516973857321224,
            "sigma": 0.6959106463542126,
        },
        "standard_errors": {
            "ka": 0.30544474626867446,
            "V": 1.462368646047294,
            "CL": 0.23174270715655146,
            "omega_ka": 0.1509666456664929,
            "omega_V": 0.03997464413540931,
            "omega_CL": 0.06637420577067042,
            "sigma": 0.04973670517546312,
        },
        "log_likelihood": -180.35035549146232,
        "kind": "exact",
        "source": "adaptive Gauss-Hermite rule with 21³ nodes for each subject, BFGS then Newton, "
        "float64; good to 1e-6 in log-likelihood",
    }
}


def _initial_values(dose, time, conc):
    """Rates of elimination and absorption, clearance and noise, from all subjects together."""
    if conc is None:
        return 0.1, 1.0, 1.0, 1.0
    peak = jnp.argmax(conc / dose)
    falling = ((time > time[peak]) & (conc > 0)).astype(float)
    share = falling / falling.sum()
    y = jnp.log(jnp.where(conc > 0, conc, 1.0) / dose)
    centered = time - share @ time
    slope = (share * centered) @ y / (share @ centered**2)
    ke = jnp.clip(-slope, 0.01 / jnp.max(time))
    ka = jnp.maximum(2 / time[peak], 3 * ke)
    intercept = share @ y + ke * (share @ time)
    return ke, ka, ke * ka / (ka - ke) / jnp.exp(intercept), jnp.std(conc) / 4


def _curve(dose, time, ke, ka, cl):
    """Concentration at ``time`` after a dose by mouth."""
    return dose * ke * ka / (cl * (ka - ke)) * (jnp.exp(-ke * time) - jnp.exp(-ka * time))


def model(Subject, Dose, Time, conc=None, Wt=None):
    """Random absorption and clearance; ``Wt`` is not used, as doses are per kg."""
    ke, ka, cl, noise = _initial_values(Dose, Time, conc)
    positive = constraints.positive
    lKe = numpyro.param("lKe", jnp.log(ke))
    lKa = numpyro.param("lKa", jnp.log(ka))
    lCl = numpyro.param("lCl", jnp.log(cl))
    sd_lKa = numpyro.param("sd_lKa", 0.4, constraint=positive)
    sd_lCl = numpyro.param("sd_lCl", 0.4, constraint=positive)
    sigma = numpyro.param("sigma", noise, constraint=positive)
    subjects, subject = np.unique(Subject, return_inverse=True)
    with numpyro.plate("subjects", len(subjects)):
        log_ka = numpyro.sample("log_ka", dist.Normal(lKa, sd_lKa))[subject]
        log_cl = numpyro.sample("log_cl", dist.Normal(lCl, sd_lCl))[subject]
    mean = _curve(Dose, Time, jnp.exp(lKe), jnp.exp(log_ka), jnp.exp(log_cl))
    with numpyro.plate("rows", len(Time)):
        numpyro.sample("conc", dist.Normal(mean, sigma), obs=conc)


def three_effects(Subject, Dose, Time, Wt, conc=None):
    """Theophylline: random absorption, volume and clearance, doses in mg."""
    dose = Dose * Wt
    ke, start_ka, cl, noise = _initial_values(dose, Time, conc)
    positive = constraints.positive
    ka = numpyro.param("ka", start_ka, constraint=positive)
    volume = numpyro.param("V", cl / ke, constraint=positive)
    clearance = numpyro.param("CL", cl, constraint=positive)
    omega_ka = numpyro.param("omega_ka", 0.4, constraint=positive)
    omega_V = numpyro.param("omega_V", 0.4, constraint=positive)
    omega_CL = numpyro.param("omega_CL", 0.4, constraint=positive)
    sigma = numpyro.param("sigma", noise, constraint=positive)
    subjects, subject = np.unique(Subject, return_inverse=True)
    with numpyro.plate("subjects", len(subjects)):
        log_ka = numpyro.sample("log_ka", dist.Normal(jnp.log(ka), omega_ka))[subject]
        log_v = numpyro.sample("log_v", dist.Normal(jnp.log(volume), omega_V))[subject]
        log_cl = numpyro.sample("log_cl", dist.Normal(jnp.log(clearance), omega_CL))[subject]
    mean = _curve(dose, Time, jnp.exp(log_cl - log_v), jnp.exp(log_ka), jnp.exp(log_cl))
    with numpyro.plate("rows", len(Time)):
        numpyro.sample("conc", dist.Normal(mean, sigma), obs=conc)


def load() -> dict[str, np.ndarray]:
    """Return the 132 rows as the keyword arguments of :func:`model`."""
    table = np.genfromtxt(DATA, delimiter=",", names=True, dtype=np.float64)
    columns = {name: np.ascontiguousarray(table[name]) for name in table.dtype.names}
    columns["Subject"] = columns["Subject"].astype(np.int64)
    return {name: columns[name] for name in ("Subject", "Dose", "Time", "conc", "Wt")}


def simulate(rng_key, params=None) -> dict[str, np.ndarray]:
    """Draw concentrations from the model with two random effects, for the real design.

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
    program = handlers.seed(handlers.substitute(model, data=truth), rng_key)
    drawn = handlers.trace(program).get_trace(**{**data, "conc": None})["conc"]["value"]
    return {**data, "conc": np.asarray(drawn, data["conc"].dtype)}
