"""Matings of animals: logistic regression with crossed effects of females and males.

Data: simulated, as the experiment that the model belongs to is not ours to distribute. In each of
six groups, ten females and ten males, half of them of type R and half of type W, are paired so that
every animal meets three of each type of the other sex. ``Mate`` is 1 where a pair mated, ``Cross``
the types of female and male (R/R, R/W, W/R or W/W), ``Female`` and ``Male`` number the animals 1 to
60. This is the size of the salamander experiment: 360 pairs, 90 of each cross.

Model: for female i and male j,

    u_i ~ Normal(0, sd_female²),    v_j ~ Normal(0, sd_male²),
    Mate_ij ~ Bernoulli(logit⁻¹(β[Cross_ij] + u_i + v_j)).

The latent data are the effects u and v; the parameters are ``beta`` (4,), in the order above,
``sd_female`` and ``sd_male``. The effects are crossed: the marginal likelihood does not fall apart
into integrals for single animals, but has one of twenty dimensions for each group.

Other data: a CSV file with these columns. ``Cross`` may be these texts, or 0 to 3; females and
males may be numbers or texts, paired in any way. The data set ``salamander`` of the R package glmm
has this form.

Source: the model is that of McCullagh and Nelder (1989), Generalized Linear Models, 2nd edition,
section 14.5; all three experiments together as in Booth and Hobert (1999), Journal of the Royal
Statistical Society B 61, 265-285. The data are ``simulate(jax.random.key(14))`` of this file at
``TRUTH``, which is near the maximum-likelihood estimates for the experiment.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

DATA = Path(__file__).resolve().parent / "data" / "crossed.csv"
CROSSES = ("R/R", "R/W", "W/R", "W/W")

TRUTH = {"beta": np.array([1.0, 0.3, -1.9, 1.0]), "sd_female": 1.2, "sd_male": 1.1}

REFERENCE: dict[str, Any] = {
    "params": {
        "beta": np.array([0.9174, 0.1292, -2.0088, 1.0372]),
        "sd_female": 1.4098,
        "sd_male": 1.2846,
    },
    "standard_errors": {
        "beta": np.array([0.4537, 0.4376, 0.5187, 0.4662]),
        "sd_female": 0.2952,
        "sd_male": 0.2872,
    },
    "log_likelihood": -207.0497,
    "kind": "estimate",
    "source": "females by the trapezoid rule with 41 nodes, the ten males of each group by 16384 "
    "scrambled Sobol points from a multivariate t law with 30 degrees of freedom about their mode, "
    "BFGS, float64; mean of eight scramblings, with errors of 0.0003 in the log-likelihood and "
    "0.0005 standard errors in the parameters",
}


def _code(cross):
    """The crosses as 0 to 3, in the order of ``CROSSES``; numbers pass."""
    if not isinstance(cross, np.ndarray) or cross.dtype.kind not in "UO":
        return cross
    unknown = sorted({str(c) for c in cross} - set(CROSSES))
    if unknown:
        raise ValueError(f"column 'Cross' has '{unknown[0]}'; valid are {CROSSES}, or 0 to 3")
    return np.array([CROSSES.index(c) for c in cross])


def model(Cross, Female, Male, Mate):
    """Logistic regression with normal effects ``u`` of the female and ``v`` of the male."""
    beta = numpyro.param("beta", jnp.zeros(4))
    sd_female = numpyro.param("sd_female", 1.0, constraint=constraints.positive)
    sd_male = numpyro.param("sd_male", 1.0, constraint=constraints.positive)
    females, female = np.unique(Female, return_inverse=True)
    males, male = np.unique(Male, return_inverse=True)
    with numpyro.plate("females", len(females)):
        u = numpyro.sample("u", dist.Normal(0.0, sd_female))
    with numpyro.plate("males", len(males)):
        v = numpyro.sample("v", dist.Normal(0.0, sd_male))
    with numpyro.plate("pairs", len(female)):
        eta = beta[_code(Cross)] + u[female] + v[male]
        numpyro.sample("Mate", dist.Bernoulli(logits=eta), obs=Mate)


def design(groups: int = 6) -> dict[str, np.ndarray]:
    """The pairs of animals, without their matings.

    In each group females and males are numbered 0 to 9; 0 to 4 are of type R, 5 to 9 of type W. In
    either half, female i meets the males i, i + 1 and i + 2 of both halves, counted modulo 5.

    Parameters
    ----------
    groups : int, optional
        Number of groups of 60 pairs.

    Returns
    -------
    dict
        ``Cross``, ``Female`` and ``Male``, each of shape (60 groups,).
    """
    group, female, male_type, step = np.indices((groups, 10, 2, 3)).reshape(4, -1)
    male = 5 * male_type + (female + step) % 5
    return {
        "Cross": 2 * (female // 5) + male_type,
        "Female": 10 * group + female + 1,
        "Male": 10 * group + male + 1,
    }


def load() -> dict[str, np.ndarray]:
    """Return the 360 simulated pairs as the keyword arguments of :func:`model`, all numbers."""
    table = np.genfromtxt(DATA, delimiter=",", names=True, dtype=None, encoding="utf-8")
    columns = {k: np.ascontiguousarray(table[k]) for k in ("Cross", "Female", "Male", "Mate")}
    return {**columns, "Cross": _code(columns["Cross"])}


def simulate(rng_key, params=None, *, groups=6) -> dict[str, np.ndarray]:
    """Draw matings from the model.

    Parameters
    ----------
    rng_key : jax.Array
        Random key.
    params : dict, optional
        True parameter values; those left out are taken from ``TRUTH``.
    groups : int, optional
        Number of groups in :func:`design`.

    Returns
    -------
    dict
        Keyword arguments of :func:`model`, with the keys and dtypes of :func:`load`.
    """
    truth, pairs = {**TRUTH, **(params or {})}, design(groups)
    draw = np.random.default_rng(np.asarray(jax.random.key_data(rng_key)))
    u = truth["sd_female"] * draw.standard_normal(10 * groups)
    v = truth["sd_male"] * draw.standard_normal(10 * groups)
    eta = np.asarray(truth["beta"])[pairs["Cross"]] + u[pairs["Female"] - 1] + v[pairs["Male"] - 1]
    mate = draw.random(len(eta)) < 1 / (1 + np.exp(-eta))
    return {**pairs, "Mate": mate.astype(np.int64)}
