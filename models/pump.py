"""Failures of ten power-plant pumps: gamma-Poisson empirical Bayes.

Data: pump ``i`` failed ``x[i]`` times in ``t[i]`` thousand hours of operation.

Model: for pumps i = 1, ..., N,

    θ_i ~ Gamma(α, β)        (shape α, rate β),
    x_i ~ Poisson(θ_i t_i).

The latent data are the failure rates θ; the parameters are ``alpha`` and ``beta``, without priors.
The gamma law is conjugate: θ_i given x_i is Gamma(α + x_i, β + t_i), and x_i is marginally negative
binomial with size α and success probability β / (β + t_i).

Source: Gaver and O'Muircheartaigh (1987), Technometrics 29, 1-15, as in the BUGS examples
(volume 1, "Pumps"); George, Makov and Smith (1993), Scandinavian Journal of Statistics 20, 147-156.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints

DATA = Path(__file__).resolve().parent / "data" / "pump.csv"

REFERENCE: dict[str, Any] = {
    "params": {"alpha": 0.8229650786370976, "beta": 1.2616532803058336},
    "standard_errors": {"alpha": 0.35522772371083394, "beta": 0.7918336928529193},
    "log_likelihood": -32.25783630332717,
    "kind": "exact",
    "source": "negative-binomial marginal likelihood, BFGS then Newton, float64; "
    "scipy.stats.nbinom with Nelder-Mead agrees",
}


def model(t, x=None):
    """Poisson counts with exposures ``t`` and gamma-distributed rates ``theta``."""
    alpha = numpyro.param("alpha", 1.0, constraint=constraints.positive)
    beta = numpyro.param("beta", 1.0, constraint=constraints.positive)
    with numpyro.plate("pumps", len(t)):
        theta = numpyro.sample("theta", dist.Gamma(alpha, beta))
        numpyro.sample("x", dist.Poisson(theta * t), obs=x)


def load() -> dict[str, np.ndarray]:
    """Return the ten pumps as the keyword arguments of :func:`model`."""
    table = np.genfromtxt(DATA, delimiter=",", names=True, dtype=np.float64)
    return {"t": np.ascontiguousarray(table["t"]), "x": table["x"].astype(np.int64)}


def simulate(rng_key, params=None, *, t=None) -> dict[str, np.ndarray]:
    """Draw failure counts from the model.

    Parameters
    ----------
    rng_key : jax.Array
        Random key.
    params : dict, optional
        True parameter values; those left out are taken from ``REFERENCE``.
    t : array of shape (N,), optional
        Thousands of hours of operation, those of the real pumps by default.

    Returns
    -------
    dict
        Keyword arguments of :func:`model`, with the keys and dtypes of :func:`load`.
    """
    data = load()
    t = data["t"] if t is None else np.asarray(t, data["t"].dtype)
    truth = {**REFERENCE["params"], **(params or {})}
    program = handlers.seed(handlers.substitute(model, data=truth), rng_key)
    x = handlers.trace(program).get_trace(t)["x"]["value"]
    return {"t": t, "x": np.asarray(x, data["x"].dtype)}
