"""Ten restarts find the best known optimum of mixtures with 3 to 6 components."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy.special import logsumexp
from small_models import POSITIVE

from ppl_em import EM


def simulated(number: int) -> tuple[int, np.ndarray]:
    rng = np.random.default_rng(number)
    count = 3 + number % 4
    mean, sd = np.sort(4 * rng.normal(size=count)), rng.uniform(0.4, 1.2, count)
    z = rng.choice(count, 400, p=rng.dirichlet(np.full(count, 5.0)))
    return count, mean[z] + sd[z] * rng.normal(size=400)


def mixture(y, count):
    """Equal components to begin with, and one scale for all, so that the likelihood has a bound."""
    probs = numpyro.param("probs", jnp.full(count, 1 / count), constraint=constraints.simplex)
    mean = numpyro.param("mean", jnp.zeros(count))
    sd = numpyro.param("sd", 1.0, constraint=POSITIVE)
    with numpyro.plate("rows", len(y)):
        k = numpyro.sample("k", dist.Categorical(probs))
        numpyro.sample("y", dist.Normal(mean[k], sd), obs=y)


def best_known(y: np.ndarray, count: int) -> float:
    """Of a hundred runs of EM from random rows, by numpy."""
    rng, best = np.random.default_rng(1), -np.inf
    for _ in range(100):
        mean, sd = rng.choice(y, count, replace=False), np.std(y) / count
        probs, last = np.full(count, 1 / count), -np.inf
        for _ in range(5000):
            z = (y[:, None] - mean) / sd
            joint = np.log(probs) - 0.5 * z**2 - np.log(sd) - 0.5 * np.log(2 * np.pi)
            value = logsumexp(joint, axis=1)
            if value.sum() - last < 1e-9:
                break
            last, weights = value.sum(), np.exp(joint - value[:, None])
            rows = np.maximum(weights.sum(axis=0), 1e-300)
            probs, mean = rows / len(y), weights.T @ y / rows
            sd = np.sqrt(np.sum(weights * (y[:, None] - mean) ** 2) / len(y))
        best = max(best, last)
    return best


@pytest.mark.long
@pytest.mark.parametrize("number", range(10))
def test_ten_restarts_find_the_best_known_optimum(number):
    count, y = simulated(number)
    fit = EM(mixture, num_restarts=10).run(jax.random.key(number), y, count, progress_bar=False)
    assert fit.log_likelihood.value > best_known(y, count) - 1e-4
