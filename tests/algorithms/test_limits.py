"""Dispersions that run to infinity: Poisson, binomial, multinomial and normal limits."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SEED
from limit_models import DISPERSIONS, by_hand
from scipy import optimize, stats

import ppl_em
from ppl_em import EM, Direct
from ppl_em.algorithms.boundary_profile import DECADE, Landscape, Settled
from ppl_em.result import Status

QUICK = ("negative_binomial", "by_hand", "beta_binomial_shapes", "student")


def run(model, algorithm=EM, **options):
    key = jax.random.key(SEED)
    return algorithm(model, **options).run(key, progress_bar=False)


@pytest.mark.parametrize("algorithm", [EM, pytest.param(Direct, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in DISPERSIONS]
)
def test_a_dispersion_at_infinity(name, algorithm, tmp_path):
    limit = DISPERSIONS[name]
    result = run(limit.model, algorithm)
    assert result.status is Status.BOUNDARY and result.num_steps <= 60
    assert set(result.boundary) == limit.labels
    assert result.log_likelihood.value == pytest.approx(limit.value, abs=1e-6)
    assert all(limit.law in where.sentence(label) for label, where in result.boundary.items())
    with pytest.warns(UserWarning, match="no standard errors there"):
        errors = result.standard_errors()
        assert limit.law in str(result)
    for label, error in limit.others.items():
        assert errors[label] == pytest.approx(error, rel=1e-4)
    assert all(np.isnan(errors[label.partition("[")[0]]).all() for label in limit.labels)
    result.save(tmp_path / "fit.nc")
    assert ppl_em.load(tmp_path / "fit.nc").boundary == result.boundary


def test_counts_with_a_dispersion_have_one():
    counts = np.random.default_rng(4).negative_binomial(3.0, 0.5, size=80).astype(float)

    def loss(q):
        k, mean = np.exp(q)
        return -stats.nbinom(k, k / (k + mean)).logpmf(counts).sum()

    best = optimize.minimize(loss, [0.0, 0.0], method="BFGS", options={"gtol": 1e-8})
    result = EM(by_hand).run(jax.random.key(SEED), counts, progress_bar=False)
    assert result.status is Status.CONVERGED and not result.boundary
    assert result.log_likelihood.value == pytest.approx(-best.fun, abs=1e-8)


@dataclass(frozen=True)
class Series(Landscape):
    """A log-likelihood that is a series in a distance, with rounding in proportion to 1 over it."""

    power: int = 1

    def look(self, x, state):
        h, rng = np.exp(-float(x[0])), np.random.default_rng(abs(hash(float(x[0]))))
        series = -4 * h**self.power + 7 * h ** (2 * self.power) - 2 * h ** (3 * self.power)
        return -50.0 + series + 1e-14 / h * rng.normal(), state

    def floor(self, value):
        return 1e-13


@pytest.mark.parametrize("power", [1, 2])
def test_a_limit_is_extrapolated_to(power):
    ground, step = Series(None, None, power=power), np.array([DECADE])
    value, _ = ground.look(jnp.array([3.0]), None)
    there = ground.descend(jnp.array([3.0]), None, value, step)
    assert there.noise < 1e-4 and np.exp(float(there.x[0])) < 1e9
    rough = ground.roughness(there, step)
    assert 1e-16 < rough < 1e-4
    rest = ground.rest(there, step, power)
    assert there.value + rest == pytest.approx(-50.0, abs=2e-9)
    assert ground.rest(Settled(there.x, None, there.value, 1e-13), step, power) == 0.0
