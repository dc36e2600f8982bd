"""Law school admission test, section 6: logistic item response models.

Data: 1000 persons answered five items right (1) or wrong (0), one row for each person.

Model: for persons p = 1, ..., N and items i = 1, ..., J,

    θ_p ~ Normal(0, 1),
    y_pi ~ Bernoulli(logit⁻¹(d_i + a_i θ_p)), independently given θ_p.

The latent data are the abilities θ; the parameters are the intercepts ``d`` (J,) and the
discriminations ``a``: one number for all items (one-parameter logistic or Rasch model), or one for
each item in ``two_parameter``, where all are taken positive, which settles the sign of θ. The
difficulty of an item is -d_i / a_i. The marginal likelihood is a product of one-dimensional
integrals, one for each person. EM starts at the rates of right answers.

=================  ====================================
``model``          a common discrimination
``two_parameter``  a discrimination for each item
=================  ====================================

Other data: a CSV file where every column is an item and every row is a person, all 0 or 1.

Source: Bock and Lieberman (1970), Psychometrika 35, 179-197; Bock and Aitkin (1981), Psychometrika
46, 443-459; data set ``lsat6`` of the R package psych, which is also ``LSAT`` of ltm.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

DATA = Path(__file__).resolve().parent / "data" / "lsat.csv"

REFERENCE: dict[str, Any] = {
    "params": {
        "d": np.array(
            [
                2.7300132332620444,
                0.9986058290333513,
                0.23985388456214063,
                1.306451161326191,
                2.099404359310439,
            ]
        ),
        "a": 0.755134616692896,
    },
    "standard_errors": {
        "d": np.array(
            [
                0.13044117858836887,
                0.07917733438621835,
                0.07177467440697423,
                0.08463810049629088,
                0.1054450023620953,
            ]
        ),
        "a": 0.06943320940194289,
    },
    "log_likelihood": -2466.9375995786004,
    "kind": "exact",
    "source": "trapezoid rule with 1001 nodes for each person, BFGS then Newton, float64; "
    "ltm::rasch with 61 nodes gives the same log-likelihood to 1e-10",
}

REFERENCES: dict[str, dict[str, Any]] = {
    "two_parameter": {
        "params": {
            "d": np.array(
                [
                    2.773234398045258,
                    0.9902011978391476,
                    0.24914752368756737,
                    1.2847569252585727,
                    2.0532704443735788,
                ]
            ),
            "a": np.array(
                [
                    0.8256595221193488,
                    0.7227441972205683,
                    0.890874534315772,
                    0.6883679720223962,
                    0.656855939274409,
                ]
            ),
        },
        "standard_errors": {
            "d": np.array(
                [
                    0.205743745572706,
                    0.09001896834236331,
                    0.07627288308616004,
                    0.09903751774461435,
                    0.13535878005348043,
                ]
            ),
            "a": np.array(
                [
                    0.25811493404427566,
                    0.1866796705402594,
                    0.23276384099417516,
                    0.18514293476726196,
                    0.20990917907715423,
                ]
            ),
        },
        "log_likelihood": -2466.6533773980623,
        "kind": "exact",
        "source": "trapezoid rule with 1001 nodes for each person, BFGS then Newton, float64",
    }
}


def _responses(items, discriminations):
    """The items given the abilities ``theta``; ``discriminations`` is the shape of ``a``."""
    y = jnp.stack(list(items.values()), axis=1)
    persons = len(y)
    right = jnp.sum(y, axis=0)
    d = numpyro.param("d", jnp.log((right + 0.5) / (persons - right + 0.5)))
    a = numpyro.param("a", jnp.ones(discriminations), constraint=constraints.positive)
    with numpyro.plate("persons", persons):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        law = dist.Bernoulli(logits=d + a * theta[:, None]).to_event(1)
        numpyro.sample("y", law, obs=y)


def model(**items):
    """One-parameter logistic (Rasch) model: a common discrimination."""
    _responses(items, ())


def two_parameter(**items):
    """Law school admission test: a discrimination for each item (two-parameter logistic)."""
    _responses(items, (len(items),))


def load() -> dict[str, np.ndarray]:
    """Return the answers of 1000 persons as the keyword arguments of :func:`model`."""
    table = np.genfromtxt(DATA, delimiter=",", names=True, dtype=np.int64)
    return {name: np.ascontiguousarray(table[name]) for name in table.dtype.names}


def simulate(rng_key, params=None, *, size=1000) -> dict[str, np.ndarray]:
    """Draw answers from the model.

    Parameters
    ----------
    rng_key : jax.Array
        Random key.
    params : dict, optional
        True parameter values, with ``a`` of shape () or (5,); those left out are taken from
        ``REFERENCE``.
    size : int, optional
        Number of persons.

    Returns
    -------
    dict
        Keyword arguments of :func:`model`, with the keys and dtypes of :func:`load`.
    """
    data = load()
    truth = {**REFERENCE["params"], **(params or {})}
    key_theta, key_y = jax.random.split(rng_key)
    theta = jax.random.normal(key_theta, (size, 1))
    y = dist.Bernoulli(logits=truth["d"] + truth["a"] * theta).sample(key_y)
    columns = zip(data.items(), np.asarray(y).T, strict=True)
    return {name: np.array(drawn, real.dtype) for (name, real), drawn in columns}
