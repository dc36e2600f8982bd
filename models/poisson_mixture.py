"""Death notices in The Times: a mixture of two Poisson distributions.

Data: on ``days[k]`` of the 1096 days of 1910-1912, The Times printed ``deaths[k]`` notices of the
death of a woman aged 80 or more. Without ``days``, every row is one day.

Model: for days i = 1, ..., N,

    season_i ~ Categorical(w₁, w₂),
    deaths_i | season_i = k ~ Poisson(λ_k).

The latent data are the labels ``season`` (winter and summer, one guesses); the parameters are
``weights`` (2,) and ``rate`` (2,). The marginal probability of a count y is
Σ_k w_k Poisson(y; λ_k). The components overlap so much that plain EM is very slow: its rate of
convergence at the maximum is 0.9957, so that a distance is halved in 160 steps only, and some 2300
are needed (``--max-steps 3000``). The initial values put the lower rate first.

Source: Hasselblad (1969), Journal of the American Statistical Association 64, 1459-1471;
Titterington, Smith and Makov (1985), Statistical Analysis of Finite Mixture Distributions.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

DATA = Path(__file__).resolve().parent / "data" / "poisson_mixture.csv"

REFERENCE: dict[str, Any] = {
    "params": {
        "weights": np.array([0.3598853969849425, 0.6401146030150575]),
        "rate": np.array([1.256095101224351, 2.6634043566324817]),
    },
    "standard_errors": {
        "weights": np.array([0.19468429868778597, 0.19468429868778597]),
        "rate": np.array([0.35002971139692857, 0.2504782703087094]),
    },
    "log_likelihood": -1989.9458598829644,
    "kind": "exact",
    "source": "mixture probabilities maximised directly, scipy BFGS then Newton to a gradient of "
    "2e-13, float64; scipy.stats.poisson gives the same log-likelihood to 1e-12; the estimates are "
    "the published 0.3599, 1.256, 2.663",
}


def model(deaths, days=None):
    """Mixture of two Poisson distributions for a table of counts and how often they occurred."""
    count = deaths if days is None else np.repeat(deaths, np.asarray(days, int))
    mean = jnp.mean(count)
    weights = numpyro.param("weights", jnp.full(2, 0.5), constraint=constraints.simplex)
    rate = numpyro.param(
        "rate", mean * jnp.array([0.5, 1.5]) + 1e-3, constraint=constraints.positive
    )
    with numpyro.plate("day", len(count)):
        season = numpyro.sample(
            "season", dist.Categorical(weights), infer={"enumerate": "parallel"}
        )
        numpyro.sample("count", dist.Poisson(rate[season]), obs=count)


def load() -> dict[str, np.ndarray]:
    """Return the table of counts as the keyword arguments of :func:`model`."""
    table = np.genfromtxt(DATA, delimiter=",", names=True, dtype=np.int64)
    return {name: np.ascontiguousarray(table[name]) for name in ("deaths", "days")}


def simulate(rng_key, params=None, *, size=None) -> dict[str, np.ndarray]:
    """Draw days from the mixture, and tabulate them.

    Parameters
    ----------
    rng_key : jax.Array
        Random key.
    params : dict, optional
        True parameter values; those left out are taken from ``REFERENCE``.
    size : int, optional
        Number of days, 1096 by default.

    Returns
    -------
    dict
        Keyword arguments of :func:`model`, with the keys and dtypes of :func:`load`. The table
        ends at the largest count drawn, or at that of the real data.
    """
    data = load()
    truth = {**REFERENCE["params"], **(params or {})}
    mixture = dist.MixtureSameFamily(
        dist.Categorical(jnp.asarray(truth["weights"])), dist.Poisson(jnp.asarray(truth["rate"]))
    )
    count = np.asarray(mixture.sample(rng_key, (size or int(data["days"].sum()),)), np.int64)
    days = np.bincount(count, minlength=len(data["deaths"]))
    return {"deaths": np.arange(len(days)), "days": days}
