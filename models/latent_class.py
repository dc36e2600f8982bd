"""Role conflict: a latent class model with two classes for four yes-no items.

Data: 216 students told what they would do in four situations ``A`` to ``D`` where duty to a friend
conflicts with duty to society: the universalistic answer (1) or the particularistic one (2). The
file has one row for each pattern of answers, given by ``frequency`` students.

Model: for persons i = 1, ..., N and items j = 1, ..., J,

    class_i ~ Categorical(w₁, w₂),
    y_ij | class_i = k ~ Bernoulli(π_kj), independently,

where y_ij = 1 for the later of the two answers to item j in sorted order. The latent data are the
class labels; the parameters are ``weights`` (2,) and ``prob`` (2, J). The marginal probability of a
pattern is Σ_k w_k Π_j π_kj^y_j (1 - π_kj)^(1 - y_j). The log-likelihood is that of the persons in
their order: it leaves out the multinomial coefficient of the table. The initial values put the
class with fewer later answers first.

Other data: every column but ``frequency`` is an item, a number or a text with two values. Without
``frequency``, every row is one person.

Source: Stouffer and Toby (1951), American Journal of Sociology 56, 395-406; Goodman (1974),
Biometrika 61, 215-231, whose two-class model has G² = 2.720 on 6 degrees of freedom.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

DATA = Path(__file__).resolve().parent / "data" / "latent_class.csv"

REFERENCE: dict[str, Any] = {
    "params": {
        "weights": np.array([0.2792461278552666, 0.7207538721447334]),
        "prob": np.array(
            [
                [
                    0.006806676300178959,
                    0.06023555692309217,
                    0.07346912779601901,
                    0.2308679902456571,
                ],
                [0.28641205175723383, 0.6703806564815713, 0.645983545356068, 0.8676274199292997],
            ]
        ),
    },
    "standard_errors": {
        "weights": np.array([0.0580925708976965, 0.0580925708976965]),
        "prob": np.array(
            [
                [0.02532429715958402, 0.06599570265002068, 0.06565380364042037, 0.0952072493119245],
                [0.04035884637091292, 0.04969836726956785, 0.04855283203462074, 0.0383331093616363],
            ]
        ),
    },
    "log_likelihood": -504.46767011836147,
    "kind": "exact",
    "source": "pattern probabilities maximised directly from ten starts, scipy BFGS then Newton to "
    "a gradient of 4e-14, float64; G² = 2.71992 is the published 2.720",
}


def _later_answers(items):
    """Code every item as 0 for its first answer in sorted order and 1 for the second, (rows, J)."""
    coded = []
    for name, answers in items.items():
        values, code = np.unique(answers, return_inverse=True)
        if len(values) > 2 or np.any(values != values):
            raise ValueError(f"item '{name}' has the answers {values}, which are not two")
        coded.append(code)
    return np.stack(coded, axis=1)


def model(frequency=None, **items):
    """Two classes, within which the answers to the ``items`` are independent."""
    y = _later_answers(items)
    if frequency is not None:
        y = np.repeat(y, np.asarray(frequency, int), axis=0)
    score = y.sum(1)
    upper = score > score.mean()
    start = np.stack([y[~upper].mean(0), y[upper].mean(0)]) * 0.9 + 0.05
    weights = numpyro.param("weights", jnp.full(2, 0.5), constraint=constraints.simplex)
    prob = numpyro.param("prob", jnp.asarray(start), constraint=constraints.unit_interval)
    with numpyro.plate("person", len(y)):
        label = numpyro.sample("class", dist.Categorical(weights), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Bernoulli(prob[label]).to_event(1), obs=jnp.asarray(y))


def load() -> dict[str, np.ndarray]:
    """Return the 16 patterns as the keyword arguments of :func:`model`."""
    table = np.genfromtxt(DATA, delimiter=",", names=True, dtype=np.int64)
    return {name: np.ascontiguousarray(table[name]) for name in ("frequency", *"ABCD")}


def simulate(rng_key, params=None, *, size=None) -> dict[str, np.ndarray]:
    """Draw persons from the model, and tabulate their patterns.

    Parameters
    ----------
    rng_key : jax.Array
        Random key.
    params : dict, optional
        True parameter values for four items; those left out are taken from ``REFERENCE``.
    size : int, optional
        Number of persons, 216 by default.

    Returns
    -------
    dict
        Keyword arguments of :func:`model`, with the keys, shapes and dtypes of :func:`load`.
    """
    data = load()
    truth = {**REFERENCE["params"], **(params or {})}
    persons = size or int(data["frequency"].sum())
    key_class, key_answers = jax.random.split(rng_key)
    label = dist.Categorical(jnp.asarray(truth["weights"])).sample(key_class, (persons,))
    y = np.asarray(dist.Bernoulli(jnp.asarray(truth["prob"])[label]).sample(key_answers))
    pattern = y @ np.array([8, 4, 2, 1])
    return {**data, "frequency": np.bincount(pattern, minlength=16)}
