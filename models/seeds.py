"""Seed germination on 21 plates: logistic regression with a random intercept for each plate.

Data: of ``n[i]`` seeds on plate ``i``, ``r[i]`` germinated. ``x1`` is the seed type and ``x2`` the
root extract, both coded 0 or 1 (a 2 x 2 factorial).

Model: for plates i = 1, ..., N,

    b_i ~ Normal(0, sd²),
    r_i ~ Binomial(n_i, logit⁻¹(α₀ + α₁ x1_i + α₂ x2_i + α₃ x1_i x2_i + b_i)).

The latent data are the plate effects b; the parameters are α (``alpha``, four numbers) and ``sd``.
The marginal likelihood is a product of one-dimensional integrals without a closed form.

Source: Crowder (1978), Applied Statistics 27, 34-37, as in the BUGS examples (volume 1, "Seeds").
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints

DATA = Path(__file__).resolve().parent / "data" / "seeds.csv"

REFERENCE: dict[str, Any] = {
    "params": {
        "alpha": np.array(
            [-0.5484317343526008, 0.09698890897899155, 1.3370392617722489, -0.8104564705715736]
        ),
        "sd": 0.2362421667888956,
    },
    "standard_errors": {
        "alpha": np.array(
            [0.1665934183963518, 0.27804197045338114, 0.23693648973918172, 0.38517127873975376]
        ),
        "sd": 0.11005351623245473,
    },
    "log_likelihood": -53.75742069512874,
    "kind": "exact",
    "source": "trapezoid rule with 1001 nodes for each plate, BFGS then Newton, float64; "
    "lme4::glmer(nAGQ=25) gives the same estimates to 1e-7",
}


def model(n, x1, x2, r=None):
    """Binomial regression with a normal plate effect ``b`` on the logit scale."""
    alpha = numpyro.param("alpha", jax.numpy.zeros(4))
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    with numpyro.plate("plates", len(n)):
        b = numpyro.sample("b", dist.Normal(0.0, sd))
        eta = alpha[0] + alpha[1] * x1 + alpha[2] * x2 + alpha[3] * x1 * x2 + b
        numpyro.sample("r", dist.Binomial(n, logits=eta), obs=r)


def load() -> dict[str, np.ndarray]:
    """Return the 21 plates as the keyword arguments of :func:`model`."""
    table = np.genfromtxt(DATA, delimiter=",", names=True, dtype=np.int64)
    return {name: np.ascontiguousarray(table[name]) for name in ("n", "x1", "x2", "r")}


def simulate(rng_key, params=None, *, n=None, x1=None, x2=None) -> dict[str, np.ndarray]:
    """Draw germination counts from the model.

    Parameters
    ----------
    rng_key : jax.Array
        Random key.
    params : dict, optional
        True parameter values; those left out are taken from ``REFERENCE``.
    n, x1, x2 : array of shape (N,), optional
        Design of the plates. What is left out comes from the real data, so give all three to
        change the number of plates.

    Returns
    -------
    dict
        Keyword arguments of :func:`model`, with the keys and dtypes of :func:`load`.
    """
    data = load()
    design = {
        name: data[name] if given is None else np.asarray(given, data[name].dtype)
        for name, given in (("n", n), ("x1", x1), ("x2", x2))
    }
    truth = {**REFERENCE["params"], **(params or {})}
    program = handlers.seed(handlers.substitute(model, data=truth), rng_key)
    r = handlers.trace(program).get_trace(**design)["r"]["value"]
    return {**design, "r": np.asarray(r, data["r"].dtype)}
