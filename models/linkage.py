"""Genetic linkage of 197 animals: the opening example of Dempster, Laird and Rubin.

Data: the animals fall into four cells, ``count`` = (125, 18, 20, 34). ``cell`` numbers the cells
and is not used.

Model: with recombination parameter π,

    count ~ Multinomial(197; 1/2 + π/4, (1 - π)/4, (1 - π)/4, π/4).

The first cell is the sum of two cells with probabilities 1/2 and π/4 that cannot be told apart. Of
its animals, ``hidden`` belong to the second one:

    hidden | count ~ Binomial(count₁, (π/4) / (1/2 + π/4)).

The latent ``hidden`` is therefore written here conditionally on the observed cell total. The
product of the two laws is the multinomial likelihood of the complete data
(count₁ - hidden, hidden, count₂, count₃, count₄) with probabilities
(1/2, π/4, (1 - π)/4, (1 - π)/4, π/4), because a multinomial given the sum of two of its cells is
binomial. Summing ``hidden`` out leaves the four-cell multinomial, whose maximiser is the positive
root of 197 π² - 15 π - 68 = 0. From 0.5, EM runs through 0.6082, 0.6243, 0.6265, 0.6268, ...

Source: Rao (1965), Linear Statistical Inference and Its Applications; Dempster, Laird and Rubin
(1977), Journal of the Royal Statistical Society B 39, 1-38, section 1.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

DATA = Path(__file__).resolve().parent / "data" / "linkage.csv"

REFERENCE: dict[str, Any] = {
    "params": {"pi": 0.6268214978709824},
    "standard_errors": {"pi": 0.05146734920088868},
    "log_likelihood": -7.548657516331986,
    "kind": "exact",
    "source": "four-cell multinomial likelihood, BFGS then Newton, float64; the estimate is the "
    "closed-form root given by Dempster, Laird and Rubin (1977)",
}


def _cell_probs(pi):
    return jnp.stack([0.5 + pi / 4, (1 - pi) / 4, (1 - pi) / 4, pi / 4])


def model(count, cell=None):
    """Four-cell multinomial whose first cell hides a split into two."""
    pi = numpyro.param("pi", 0.5, constraint=constraints.unit_interval)
    probs = _cell_probs(pi)
    numpyro.sample(
        "hidden",
        dist.Binomial(int(count[0]), probs=(pi / 4) / probs[0]),
        infer={"enumerate": "parallel"},
    )
    numpyro.sample("y", dist.Multinomial(int(count.sum()), probs=probs), obs=count)


def load() -> dict[str, np.ndarray]:
    """Return the four cells as the keyword arguments of :func:`model`."""
    table = np.genfromtxt(DATA, delimiter=",", names=True, dtype=np.int64)
    return {name: np.ascontiguousarray(table[name]) for name in ("count", "cell")}


def simulate(rng_key, params=None, *, total=None) -> dict[str, np.ndarray]:
    """Draw the four cell counts.

    Parameters
    ----------
    rng_key : jax.Array
        Random key.
    params : dict, optional
        True parameter values; those left out are taken from ``REFERENCE``.
    total : int, optional
        Number of animals, 197 by default.

    Returns
    -------
    dict
        Keyword arguments of :func:`model`, with the keys and dtypes of :func:`load`.
    """
    data = load()
    truth = {**REFERENCE["params"], **(params or {})}
    total = int(data["count"].sum()) if total is None else total
    counts = dist.Multinomial(total, probs=_cell_probs(jnp.asarray(truth["pi"]))).sample(rng_key)
    return {"count": np.asarray(counts, data["count"].dtype), "cell": data["cell"]}
