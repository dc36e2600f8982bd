"""Chemical analyses of wines: factor analysis with two factors, and probabilistic PCA.

Data: 13 measurements (``alcohol``, ``malic_acid``, ...) of 178 wines from three vineyards. The
model standardises each of them with its mean and its population standard deviation (divisor N), so
its log-likelihood is that of the standardised data; add -N Σ_j log sd_j for that of the raw data.

Model: for wines i = 1, ..., N with standardised measurements y_i in D dimensions,

    f_i ~ Normal₂(0, I),
    y_i ~ Normal_D(μ + Λ f_i, Ψ),    Ψ = diag(ψ₁, ..., ψ_D)    (``ppca``: Ψ = σ² I).

The latent data are the factors f; the parameters are ``mu`` (D,), ``loadings`` Λ (D, 2) and
``uniqueness`` ψ (D,), or ``sigma2`` σ² for ``ppca``. Marginally y_i is Normal_D(μ, Λ Λᵀ + Ψ). The
factors may be rotated without changing it: Λ is identified up to a rotation only, which leaves
standard errors unavailable, and the reference has what is identified. Plain EM needs some 220
steps. It starts at half the principal components.

Other data: every column of a CSV file is a measurement. Rows of ``mu``, ``loadings`` and
``uniqueness`` are the columns in alphabetical order.

Source: Forina et al., PARVUS; UCI machine learning repository, "Wine" (CC BY 4.0). Rubin and Thayer
(1982), Psychometrika 47, 69-76; Tipping and Bishop (1999), JRSS B 61, 611-622.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

DATA = Path(__file__).resolve().parent / "data" / "wine_factors.csv"

REFERENCE: dict[str, Any] = {
    "params": {
        "uniqueness": np.array(
            [
                0.8419798736514876,
                0.46644392148661873,
                0.8950061401538508,
                0.165165972998489,
                0.07827695201454365,
                0.49408811095141814,
                0.8566448019204983,
                0.7631949601059145,
                0.6857035526128955,
                0.24283736318096438,
                0.5552476223431239,
                0.46903879133433857,
                0.1975871404695152,
            ]
        )
    },
    "standard_errors": {},
    "log_likelihood": -2747.191052317255,
    "kind": "exact",
    "source": "scikit-learn FactorAnalysis to tol=1e-13, checked against R factanal; "
    "log-likelihood of the standardised data",
}

REFERENCES: dict[str, dict[str, Any]] = {
    "ppca": {
        "params": {"sigma2": 0.5270160012362196},
        "standard_errors": {},
        "log_likelihood": -2875.6362600986185,
        "kind": "exact",
        "source": "closed form: σ² is the mean of the 11 smallest eigenvalues of the correlation "
        "matrix (Tipping and Bishop 1999)",
    }
}


def _factors(columns, noise):
    """Two factors behind the standardised ``columns``; ``noise`` makes the other variances."""
    # Under `jit` a dictionary comes back with its keys sorted.
    raw = jnp.stack([jnp.asarray(columns[name], float) for name in sorted(columns)], axis=1)
    y = (raw - raw.mean(0)) / raw.std(0)
    _, size, axes = jnp.linalg.svd(y, full_matrices=False)
    mu = numpyro.param("mu", jnp.zeros(y.shape[1]))
    loadings = numpyro.param("loadings", axes[:2].T * size[:2] / (2 * jnp.sqrt(len(y))))
    variance = noise(y.shape[1])
    with numpyro.plate("wine", len(y)):
        f = numpyro.sample("f", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        law = dist.Normal(mu + f @ loadings.T, jnp.sqrt(variance))
        numpyro.sample("y", law.to_event(1), obs=y)


def model(**columns):
    """Factor analysis: two factors, and a variance of its own for every measurement."""
    positive = constraints.positive
    _factors(columns, lambda d: numpyro.param("uniqueness", jnp.full(d, 0.5), constraint=positive))


def ppca(**columns):
    """Probabilistic PCA of the wines: as factor analysis, with one variance for all."""
    _factors(columns, lambda d: numpyro.param("sigma2", 0.5, constraint=constraints.positive))


def load() -> dict[str, np.ndarray]:
    """Return the measurements of the 178 wines as the keyword arguments of :func:`model`."""
    table = np.genfromtxt(DATA, delimiter=",", names=True, dtype=np.float64)
    return {name: np.ascontiguousarray(table[name]) for name in table.dtype.names}


def simulate(rng_key, params=None, *, size=None) -> dict[str, np.ndarray]:
    """Draw standardised measurements from the factor model.

    Parameters
    ----------
    rng_key : jax.Array
        Random key.
    params : dict, optional
        True parameter values. ``uniqueness`` is taken from ``REFERENCE`` if left out, ``mu`` is
        zero, and ``loadings`` are such that every measurement has variance 1.
    size : int, optional
        Number of wines, 178 by default.

    Returns
    -------
    dict
        Keyword arguments of :func:`model`, with the keys and dtypes of :func:`load`.
    """
    data = load()
    truth = {**REFERENCE["params"], **(params or {})}
    psi = jnp.asarray(truth["uniqueness"])
    angle = jnp.arange(len(psi))
    circle = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    loadings = truth.get("loadings", circle * jnp.sqrt(jnp.clip(1 - psi, 0))[:, None])
    key_f, key_y = jax.random.split(rng_key)
    f = jax.random.normal(key_f, (size or len(data["ash"]), 2))
    noise = jnp.sqrt(psi) * jax.random.normal(key_y, (len(f), len(psi)))
    y = np.asarray(truth.get("mu", 0.0) + f @ jnp.asarray(loadings).T + noise)
    order = {name: j for j, name in enumerate(sorted(data))}
    return {name: y[:, order[name]].astype(data[name].dtype) for name in data}
