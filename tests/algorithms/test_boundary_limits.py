"""Maxima at singular covariances, at limits at infinity, and next to bounds that are too low."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED
from numpyro.distributions import constraints
from scipy import optimize, special, stats

from ppl_em import EM, Direct
from ppl_em.params import AtBounds, Boundary, ends, place_of
from ppl_em.problem import build_problem
from ppl_em.result import Status

RNG = np.random.default_rng(3)
GROUP, X = np.repeat(np.arange(6), 4), np.tile(np.arange(4) - 1.5, 6)
LEVEL = RNG.normal(size=6)[GROUP]
LINES = 1 + 0.5 * X + LEVEL * (1 - 0.5 * X) + 0.5 * RNG.normal(size=24)


def run(model, algorithm=EM, **options):
    key = jax.random.key(SEED)
    return algorithm(model, **options).run(key, progress_bar=False)


def lines(support: str):
    """Random intercepts and slopes, their covariance written in one of several ways."""

    def model():
        b = numpyro.param("b", jnp.array([1.0, 0.5]))
        sigma = numpyro.param("sigma", 1.0, constraint=constraints.positive)
        start = jnp.array([[1.0, 0.0], [0.1, 1.0]])
        if support == "corr_cholesky":
            sd = numpyro.param("sd", jnp.ones(2), constraint=constraints.positive)
            start = start.at[1].divide(jnp.sqrt(1.01))
            tril = sd[:, None] * numpyro.param("L", start, constraint=constraints.corr_cholesky)
            law = dist.MultivariateNormal(jnp.zeros(2), scale_tril=tril)
        elif support == "lower_cholesky":
            tril = numpyro.param("L", start, constraint=constraints.lower_cholesky)
            law = dist.MultivariateNormal(jnp.zeros(2), scale_tril=tril)
        else:
            cov = numpyro.param("L", start @ start.T, constraint=constraints.positive_definite)
            law = dist.MultivariateNormal(jnp.zeros(2), covariance_matrix=cov)
        with numpyro.plate("groups", 6):
            u = numpyro.sample("u", law)
        mean = b[0] + u[GROUP, 0] + (b[1] + u[GROUP, 1]) * X
        with numpyro.plate("rows", 24):
            numpyro.sample("y", dist.Normal(mean, sigma), obs=LINES)

    return model


def largest_at_minus_one() -> float:
    """The likelihood with correlation -1: one effect by group, level s0 and slope -s1 together."""
    fixed = np.stack([np.ones(24), X], axis=1)

    def value(q):
        design = np.eye(6)[GROUP] * (np.exp(q[0]) - np.exp(q[1]) * X)[:, None]
        cov = design @ design.T + np.exp(2 * q[2]) * np.eye(24)
        inverse = np.linalg.inv(cov)
        b = np.linalg.solve(fixed.T @ inverse @ fixed, fixed.T @ inverse @ LINES)
        return -stats.multivariate_normal(fixed @ b, cov).logpdf(LINES)

    options = {"xatol": 1e-9, "fatol": 1e-11, "maxiter": 4000}
    found = optimize.minimize(value, [0.0, -0.7, -0.7], method="Nelder-Mead", options=options)
    return float(-found.fun)


@pytest.mark.parametrize(
    ("support", "algorithm", "label"),
    [
        pytest.param("corr_cholesky", EM, "L[1,1]", marks=pytest.mark.long),
        pytest.param("corr_cholesky", Direct, "L[1,1]", marks=pytest.mark.long),
        pytest.param("lower_cholesky", EM, "L[1,1]", marks=pytest.mark.long),
        pytest.param("positive_definite", EM, "L (singular)", marks=pytest.mark.long),
    ],
)
def test_a_singular_covariance(support, algorithm, label):
    result = run(lines(support), algorithm, e_step="exact")
    assert result.status is Status.BOUNDARY and result.num_steps <= 100
    assert set(result.boundary) == {label} and result.boundary[label].score < 0
    # Rounding grows with the inverse of the distance from a singular covariance.
    assert result.log_likelihood.value == pytest.approx(largest_at_minus_one(), abs=3e-6)
    found = np.asarray(result.params["L"])
    if support == "positive_definite":
        assert np.linalg.det(found / found[0, 0]) == pytest.approx(0, abs=1e-6)
    else:
        assert found[1, 1] == 0 and found[1, 0] < 0
    with pytest.warns(UserWarning, match="boundary"):
        assert np.all(np.isfinite(result.standard_errors()["b"]))


COUNTS = np.tile([2.0, 3, 2, 1, 2, 3, 2, 2, 4, 1, 2, 2], 5)


def counts():
    mu = numpyro.param("mu", 1.0)
    k = numpyro.param("k", 2.0, constraint=constraints.positive)
    sd = numpyro.param("sd", 0.5, constraint=constraints.positive)
    with numpyro.plate("groups", 12):
        u = numpyro.sample("u", dist.Normal(0, sd))
    with numpyro.plate("rows", 60):
        rate = jnp.exp(mu + u[np.repeat(np.arange(12), 5)])
        numpyro.sample("y", dist.NegativeBinomial2(rate, k), obs=COUNTS)


@pytest.mark.long
@pytest.mark.parametrize("algorithm", [EM, Direct])
def test_counts_that_vary_less_than_poisson(algorithm):
    """Dispersion 0 is at infinity, and the random effects have no variance either."""
    result = run(counts, algorithm, e_step="laplace")
    assert result.status is Status.BOUNDARY and result.num_steps <= 100
    law = stats.poisson(COUNTS.mean())
    # Gamma functions of k lose digits in proportion to k: about eps k log k for each row.
    assert result.log_likelihood.value == pytest.approx(law.logpmf(COUNTS).sum(), abs=3e-6)
    assert result.params["k"] == np.inf and result.params["sd"] == 0
    # The score in 1 / k: half the excess of the squares over Poisson's.
    excess = 0.5 * np.sum((COUNTS - COUNTS.mean()) ** 2 - COUNTS)
    assert result.boundary["k"].power == 1
    assert result.boundary["k"].score == pytest.approx(excess, rel=2e-2)
    with pytest.warns(UserWarning, match="`k` goes to infinity"):
        assert "`k` goes to infinity" in str(result)


def test_zero_is_found_where_the_steps_do_not_show_it():
    """22 fish in 8 tanks, an ordered outcome: the maximum is that of the model without tanks."""
    tank = np.array([1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 7, 8, 8, 8]) - 1
    diet = np.r_[np.zeros(10), np.ones(12)]
    rank = np.array([1, 2, 1, 3, 3, 2, 2, 3, 3, 3, 1, 1, 1, 3, 1, 1, 3, 1, 1, 1, 2, 1]) - 1

    def model():
        cut = numpyro.param("c", jnp.array([-1.0, 1.0]), constraint=constraints.ordered_vector)
        b = numpyro.param("b", 0.0)
        sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
        with numpyro.plate("tanks", 8):
            u = numpyro.sample("u", dist.Normal(0, sd))
        with numpyro.plate("rows", 22):
            numpyro.sample("y", dist.OrderedLogistic(b * diet + u[tank], cut), obs=rank)

    def value(q):
        below = special.expit(np.array([q[0], q[0] + np.exp(q[1])])[:, None] - q[2] * diet)
        edges = np.concatenate([np.zeros((1, 22)), below, np.ones((1, 22))])
        return -np.sum(np.log(np.diff(edges, axis=0)[rank, np.arange(22)]))

    best = optimize.minimize(value, [-1.0, 0.0, 0.0], method="BFGS", options={"gtol": 1e-8})
    result = run(model, e_step="quadrature")
    assert result.status is Status.BOUNDARY and set(result.boundary) == {"sd"}
    assert result.log_likelihood.value == pytest.approx(-best.fun, abs=1e-7)
    assert result.num_steps <= 100


def test_ends_of_vectors_and_matrices():
    def model():
        p = numpyro.param("p", jnp.array([0.2, 0.3, 0.5]), constraint=constraints.simplex)
        tril = numpyro.param("t", jnp.eye(2), constraint=constraints.lower_cholesky)
        loc = numpyro.param("z", jnp.array([1.0, 2.0]), constraint=constraints.ordered_vector)
        numpyro.sample("y", dist.Normal(p[0] + tril.sum() + loc.sum(), 1.0), obs=0.0)

    problem, params = build_problem(
        jax.random.key(0),
        model,
        (),
        {},
        map_sites=(),
        fixed=None,
        constraints=None,
        init_params=None,
    )
    space, nan = problem.space, np.nan
    np.testing.assert_array_equal(
        ends(space), [[-1, 1], [-1, 1], [nan, nan], [-1, nan], [-1, nan], [nan, nan], [-1, nan]]
    )
    x = space.unconstrain(params)
    named = [place_of(space, x, *at) for at in ((0, -1), (1, 1), (4, -1), (6, -1))]
    assert [there.label for there in named] == ["p[0]", "p[2]", "t[1,1]", "z[1]"]
    assert [there.bound for there in named] == [0, 0, 0, 1]
    distances = [there.distance(space, x) for there in named]
    np.testing.assert_allclose(distances, [0.2, 0.5, 1.0, 1.0], rtol=1e-12)
    at = AtBounds(space, np.array([-1, 1, nan, nan, -1, nan, nan]), {}, x)
    np.testing.assert_allclose(at.exactly(params)["p"], [0, 1, 0], atol=0)
    np.testing.assert_allclose(at.exactly(params)["t"], [[1, 0], [0, 0]], atol=0)


def test_infinity_in_words():
    text = Boundary(np.inf, -2.5, 1).sentence("k")
    assert text.startswith("`k` goes to infinity") and "1 / |k|" in text
