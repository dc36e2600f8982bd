"""Outcomes that predictors separate: slopes go to infinity, the rest has a maximum."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED
from limit_models import ALONG, APART, RNG, SIDE, SLOPES, logistic, recession, supremum
from numpyro.distributions import constraints
from scipy import special, stats

from ppl_em import EM, Direct
from ppl_em.result import Status

TREATED = np.repeat([0.0, 1.0], 24)
SOME = np.tile([1.0, 0, 0, 0], 6)


def logits(y, sign=1.0):
    a = numpyro.param("a", 0.0)
    b = numpyro.param("b", jnp.zeros(1))
    with numpyro.plate("rows", 48):
        numpyro.sample("y", dist.Bernoulli(logits=a + sign * b[0] * TREATED), obs=y)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("algorithm", [EM, Direct])
def test_a_group_of_successes_only(algorithm, sign):
    y = np.r_[SOME, np.ones(24)]
    result = algorithm(logits).run(jax.random.key(SEED), y, sign, progress_bar=False)
    assert result.status is Status.BOUNDARY and result.num_steps <= 60
    assert set(result.boundary) == {"b[0]"} and result.boundary["b[0]"].bound == sign * np.inf
    best = stats.bernoulli(0.25).logpmf(SOME).sum()
    assert result.log_likelihood.value == pytest.approx(best, abs=1e-8)
    assert result.params["a"] == pytest.approx(np.log(1 / 3), abs=1e-7)
    with pytest.warns(UserWarning, match="separates outcomes"):
        errors = result.standard_errors()
    assert errors["a"] == pytest.approx((24 * 0.25 * 0.75) ** -0.5, rel=1e-6)
    assert np.isnan(errors["b"][0])


def test_one_failure_is_enough_for_an_estimate():
    y = np.r_[SOME, np.ones(23), 0.0]
    result = Direct(logits).run(jax.random.key(SEED), y, progress_bar=False)
    assert result.status is Status.CONVERGED and not result.boundary
    assert result.params["b"][0] == pytest.approx(np.log(23) - np.log(1 / 3), abs=1e-6)


def check_limit(result, labels, value):
    assert result.status is Status.BOUNDARY and result.num_steps <= 260
    assert set(result.boundary) == labels
    assert result.log_likelihood.value == pytest.approx(value, abs=1e-7)
    for label, where in result.boundary.items():
        assert np.isinf(where.bound) and where.power == 0 and where.score < 0
        assert f"`{label}` goes to" in where.sentence(label)


def run(model, algorithm=EM, **options):
    key = jax.random.key(SEED)
    return algorithm(model, **options).run(key, progress_bar=False)


@pytest.mark.parametrize("unit", [1.0, pytest.param(1e-6, marks=pytest.mark.long)])
@pytest.mark.parametrize("other", [1.0, pytest.param(1e6, marks=pytest.mark.long)])
@pytest.mark.parametrize("algorithm", [EM, pytest.param(Direct, marks=pytest.mark.long)])
def test_two_predictors_that_separate_all(algorithm, unit, other):
    gone, moved = recession(SLOPES, APART)
    assert gone.all() and moved.all()
    result = run(logistic(SLOPES * [unit, other], APART), algorithm)
    check_limit(result, {"a", "b[0]", "b[1]"}, 0.0)
    assert np.sign(result.boundary["b[1]"].bound) == -np.sign(result.boundary["b[0]"].bound)


@pytest.mark.parametrize(
    "units",
    [
        pytest.param([1.0, 1.0, 1.0], marks=pytest.mark.long),
        [1e6, 1e6, 1e-6],
        pytest.param([1e-6, 1e-6, 1e3], marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("algorithm", [EM, pytest.param(Direct, marks=pytest.mark.long)])
def test_two_predictors_that_separate_most(algorithm, units):
    """A difference goes to infinity; what the rows without one tell of the rest has errors."""
    gone, moved = recession(ALONG, SIDE)
    assert np.sum(~gone) == 12 and list(moved) == [False, True, True, False]
    result = run(logistic(ALONG * units, SIDE), algorithm)
    check_limit(result, {"b[0]", "b[1]"}, supremum(ALONG, SIDE))
    with pytest.warns(UserWarning, match="separates outcomes"):
        errors = result.standard_errors()
    rest = np.column_stack([np.ones(12), ALONG[:12, 0], ALONG[:12, 2] * units[2]])
    found = result.params
    # In these rows both have the same value: the sum of the slopes counts.
    slopes = [found["a"], (found["b"][0] + found["b"][1]) * units[0], found["b"][2]]
    p = special.expit(rest @ np.array(slopes, float))
    assert np.allclose(rest.T @ (SIDE[:12] - p) / np.abs(rest).max(0), 0, atol=1e-4)
    inverse = np.linalg.inv(rest.T @ (rest * (p * (1 - p))[:, None]))
    assert errors["a"] == pytest.approx(inverse[0, 0] ** 0.5, rel=1e-4)
    assert errors["b"][2] == pytest.approx(inverse[2, 2] ** 0.5, rel=1e-4)
    assert np.isnan(errors["b"][:2]).all()


THREE = np.repeat([0, 1, 2], 10)
DUMMIES = np.column_stack([THREE == 1, THREE == 2]) * 1.0


@pytest.mark.parametrize("empty", [0, 1])
def test_a_group_without_counts(empty):
    counts = np.where(empty == THREE, 0.0, RNG.poisson(3, 30))

    def model():
        eta = numpyro.param("a", 0.0) + DUMMIES @ numpyro.param("b", jnp.zeros(2))
        with numpyro.plate("rows", 30):
            numpyro.sample("y", dist.Poisson(jnp.exp(eta)), obs=counts)

    means = [counts[group == THREE].mean() for group in range(3)]
    value = sum(stats.poisson(m).logpmf(counts[g == THREE]).sum() for g, m in enumerate(means))
    result = run(model)
    # Without counts in the reference group the others are known, but not what they differ by.
    check_limit(result, {"b[0]"} if empty else {"a", "b[0]", "b[1]"}, value)
    if empty:
        with pytest.warns(UserWarning, match="separates outcomes"):
            errors = result.standard_errors()
        assert errors["a"] == pytest.approx((10 * means[0]) ** -0.5, rel=1e-5)
        assert errors["b"][1] == pytest.approx((0.1 / means[0] + 0.1 / means[2]) ** 0.5, rel=1e-5)


X = RNG.normal(size=40)
CLASS = np.where(X > 0.5, 2, RNG.integers(0, 2, size=40))


def test_a_class_that_a_predictor_separates():
    """A multinomial logit of which one class is told apart: the other two have their own logit."""

    def model():
        rest = numpyro.param("a", jnp.zeros(2)) + X[:, None] * numpyro.param("b", jnp.zeros(2))
        with numpyro.plate("rows", 40):
            eta = jnp.concatenate([jnp.zeros((40, 1)), rest], axis=1)
            numpyro.sample("y", dist.Categorical(logits=eta), obs=CLASS)

    rest = CLASS < 2
    value = supremum(X[rest, None], CLASS[rest].astype(float))
    result = run(model)
    check_limit(result, {"a[1]", "b[1]"}, value)
    with pytest.warns(UserWarning, match="separates outcomes"):
        errors = result.standard_errors()
    design = np.column_stack([np.ones(rest.sum()), X[rest]])
    p = special.expit(design @ [result.params["a"][0], result.params["b"][0]])
    inverse = np.linalg.inv(design.T @ (design * (p * (1 - p))[:, None]))
    assert errors["a"][0] == pytest.approx(inverse[0, 0] ** 0.5, rel=1e-5)


@pytest.mark.parametrize("algorithm", [EM, pytest.param(Direct, marks=pytest.mark.long)])
def test_ordered_classes_that_a_predictor_separates(algorithm):
    """The slope and both cut points go to infinity, and so does the gap between these."""
    rank = np.searchsorted([-0.5, 0.6], X)

    def model():
        cuts = numpyro.param("c", jnp.array([-1.0, 1.0]), constraint=constraints.ordered_vector)
        eta = numpyro.param("b", 0.0) * X * 1e3
        with numpyro.plate("rows", 40):
            numpyro.sample("y", dist.OrderedLogistic(eta, cuts), obs=rank)

    check_limit(run(model, algorithm), {"b", "c[0]", "c[1]"}, 0.0)


GROUP, TREATMENT = np.repeat(np.arange(16), 6), np.tile([0.0, 0, 0, 1, 1, 1], 16)
EFFECT = np.random.default_rng(5).normal(size=(3, 96))
ANSWER = (EFFECT[0] < -0.4 + 1.2 * EFFECT[1][GROUP]) * 1.0


def mixed(x: np.ndarray, y: np.ndarray, rows: np.ndarray):
    """A logistic random intercept, of some rows."""

    def model():
        b = numpyro.param("b", jnp.zeros(1 + x.shape[1]))
        sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
        with numpyro.plate("groups", 16):
            u = numpyro.sample("u", dist.Normal(0, sd))
        with numpyro.plate("rows", len(y[rows])):
            eta = b[0] + x[rows] @ b[1:] + u[GROUP[rows]]
            numpyro.sample("y", dist.Bernoulli(logits=eta), obs=y[rows])

    return model


@pytest.mark.parametrize(
    ("e_step", "algorithm", "unit"),
    [
        pytest.param("laplace", Direct, 1.0, marks=pytest.mark.long),
        pytest.param("laplace", EM, 1e6, marks=pytest.mark.long),
        pytest.param("quadrature", EM, 1.0, marks=pytest.mark.long),
        pytest.param("quadrature", Direct, 1e-6, marks=pytest.mark.long),
    ],
)
def test_treated_rows_of_a_mixed_model(e_step, algorithm, unit):
    """Two predictors separate the treated rows: the others have the random effects' likelihood.

    By approximations that, too: they are the same for rows that say nothing.
    """
    side = np.where(EFFECT[2] > 0, 1.0, -1.0)
    x = np.column_stack([np.abs(EFFECT[2]) + 1, np.abs(EFFECT[2]) + 1 + TREATMENT * side]) * unit
    y = np.where(TREATMENT == 1, side > 0, ANSWER) * 1.0
    result = run(mixed(x, y, TREATMENT >= 0), algorithm, e_step=e_step)
    alone = run(mixed(x[:, :1], y, TREATMENT == 0), e_step=e_step)
    assert alone.status is Status.CONVERGED
    check_limit(result, {"b[1]", "b[2]"}, alone.log_likelihood.value)
    with pytest.warns(UserWarning, match="separates outcomes"):
        errors = result.standard_errors()
    expected = alone.standard_errors()
    assert errors["sd"] == pytest.approx(expected["sd"], rel=1e-3)
    assert errors["b"][0] == pytest.approx(expected["b"][0], rel=1e-3)


def test_a_small_effect_in_a_large_unit_is_none():
    """Neither a start at the maximum nor a unit makes a ray of what has an estimate."""
    y = np.where(np.arange(40) % 5 == 0, 1 - APART, APART)
    first = run(logistic(SLOPES * [1e6, 1e-6], y))
    assert first.status is Status.CONVERGED and not first.boundary
    em = EM(logistic(SLOPES * [1e6, 1e-6], y))
    again = em.run(jax.random.key(SEED), init_params=first.params, progress_bar=False)
    assert again.status is Status.CONVERGED and not again.boundary
    assert again.log_likelihood.value == pytest.approx(supremum(SLOPES, y), abs=1e-8)
