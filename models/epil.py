"""Seizures of epileptics: Poisson regression with a random intercept for each patient.

Data: 59 patients counted their seizures, ``y``, in four periods of two weeks (long format; rows may
come in any order). ``trt`` is the treatment (placebo or progabide), ``lbase`` the logarithm of a
quarter of the seizures in the eight weeks before the trial, ``lage`` the logarithm of the age, both
centered, and ``V4`` is 1 in the fourth period.

Model: for row j of patient i = 1, ..., N and p = 1 where trt is progabide,

    u_i ~ Normal(0, sd²),
    y_ij ~ Poisson(exp(β₀ + β₁ lbase + β₂ p + β₃ lage + β₄ V4 + β₅ lbase p + u_i)).

The latent data are the effects u; the parameters are ``beta`` (6,) and ``sd``. The marginal
likelihood is a product of one-dimensional integrals without a closed form. EM starts at the
constant rate of all rows together.

Other data: a CSV file with these columns. ``trt`` may be these texts, or 0 and 1; patients may be
numbers or texts, with any number of rows.

Source: Thall and Vail (1990), Biometrics 46, 657-671; data set ``epil`` of the R package MASS
(Venables and Ripley 2002, Modern Applied Statistics with S).
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints

DATA = Path(__file__).resolve().parent / "data" / "epil.csv"
TREATMENTS = ("placebo", "progabide")

REFERENCE: dict[str, Any] = {
    "params": {
        "beta": np.array(
            [
                1.8327643688916235,
                0.8834054446186091,
                -0.3342559620443229,
                0.4805677496027888,
                -0.15976960057667475,
                0.3387838671678603,
            ]
        ),
        "sd": 0.5023877543949191,
    },
    "standard_errors": {
        "beta": np.array(
            [
                0.10550225276816379,
                0.13113736206099594,
                0.14794719075393087,
                0.3470375748279073,
                0.05458370998746959,
                0.20319454474169157,
            ]
        ),
        "sd": 0.058594163788000184,
    },
    "log_likelihood": -665.4065690863779,
    "kind": "exact",
    "source": "trapezoid rule with 1001 nodes for each patient, BFGS then Newton, float64; "
    "lme4::glmer(nAGQ=25) gives the same estimates to 1e-6",
}


def _progabide(trt):
    """The treatment as 0 and 1; numbers pass."""
    if not isinstance(trt, np.ndarray) or trt.dtype.kind not in "UO":
        return trt
    unknown = sorted({str(t) for t in trt} - set(TREATMENTS))
    if unknown:
        raise ValueError(f"column 'trt' has '{unknown[0]}'; valid are {TREATMENTS}, or 0 and 1")
    return (trt == TREATMENTS[1]).astype(np.int64)


def model(subject, trt, lbase, lage, V4, y):
    """Poisson regression with a normal effect ``u`` of the patient on the logarithmic scale."""
    p = _progabide(trt)
    x = jnp.stack([jnp.ones(len(V4)), lbase, p, lage, V4, lbase * p], axis=1)
    rate = 1.0 if y is None else jnp.mean(y) + 0.01
    beta = numpyro.param("beta", jnp.zeros(6).at[0].set(jnp.log(rate)))
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    patients, patient = np.unique(subject, return_inverse=True)
    with numpyro.plate("patients", len(patients)):
        u = numpyro.sample("u", dist.Normal(0.0, sd))
    with numpyro.plate("rows", len(V4)):
        numpyro.sample("y", dist.Poisson(jnp.exp(x @ beta + u[patient])), obs=y)


def load() -> dict[str, np.ndarray]:
    """Return the 236 rows as the keyword arguments of :func:`model`, all numbers."""
    table = np.genfromtxt(DATA, delimiter=",", names=True, dtype=None, encoding="utf-8")
    names = ("subject", "trt", "lbase", "lage", "V4", "y")
    columns = {name: np.ascontiguousarray(table[name]) for name in names}
    return {**columns, "trt": _progabide(columns["trt"])}


def simulate(rng_key, params=None, **design) -> dict[str, np.ndarray]:
    """Draw counts of seizures from the model.

    Parameters
    ----------
    rng_key : jax.Array
        Random key.
    params : dict, optional
        True parameter values; those left out are taken from ``REFERENCE``.
    **design : array of shape (rows,), optional
        ``subject``, ``trt``, ``lbase``, ``lage`` and ``V4``. What is left out comes from the real
        data, so give all five to change the number of rows.

    Returns
    -------
    dict
        Keyword arguments of :func:`model`, with the keys and dtypes of :func:`load`.
    """
    data = load()
    design = {k: np.asarray(design.get(k, v), v.dtype) for k, v in data.items() if k != "y"}
    truth = {**REFERENCE["params"], **(params or {})}
    program = handlers.seed(handlers.substitute(model, data=truth), rng_key)
    y = handlers.trace(program).get_trace(**design, y=None)["y"]["value"]
    return {**design, "y": np.asarray(y, data["y"].dtype)}
