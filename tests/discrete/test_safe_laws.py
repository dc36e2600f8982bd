"""Log-densities of counts at the ends of their parameters: values, and derivatives up to two."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy.special import comb
from scipy.stats import norm

from ppl_em import EM
from ppl_em.discrete import safe
from ppl_em.problem import build_problem

INNER = [
    (lambda t: dist.Bernoulli(jax.nn.sigmoid(t)), (0, 1)),
    (lambda t: dist.Bernoulli(logits=t), (0, 1)),
    (lambda t: dist.Binomial(5, jax.nn.sigmoid(t)), (0, 2, 5)),
    (lambda t: dist.Binomial(5, logits=t), (0, 2, 5)),
    (lambda t: dist.Binomial(0, logits=t), (0,)),
    (lambda t: dist.Geometric(jax.nn.sigmoid(t)), (0, 3)),
    (lambda t: dist.Categorical(jax.nn.softmax(t * jnp.array([1.0, 0.0, -2.0]))), (0, 1, 2)),
    (lambda t: dist.OrderedLogistic(t, jnp.array([-1.0, 0.5])), (0, 1, 2)),
    (
        lambda t: dist.Multinomial(4, jax.nn.softmax(t * jnp.array([1.0, -2.0]))),
        ([4, 0], [1, 3]),
    ),
    (lambda t: dist.Poisson(jnp.exp(t)), (0, 3)),
    (lambda t: dist.Bernoulli(jax.nn.sigmoid(t)).expand((3,)).to_event(1), ([0, 1, 1],)),
    (lambda t: dist.ZeroInflatedPoisson(0.3, rate=jnp.exp(t)), (0, 2)),
]


def _orders(f):
    """A function, its first and twice its second derivative at several points, (4, 7)."""

    @jax.jit
    def at(t):
        return f(t), jax.grad(f)(t), jax.grad(jax.grad(f))(t), jax.jacfwd(jax.grad(f))(t)

    return jnp.stack(jax.vmap(at)(jnp.array([-300.0, -40.0, -1.3, 0.0, 0.4, 2.0, 30.0])))


@pytest.mark.parametrize("case", range(len(INNER)))
def test_nothing_changes_inside(case):
    law, outcomes = INNER[case]

    def total(change, t):
        return sum(jnp.sum(change(law(t)).log_prob(jnp.array(y))) for y in outcomes)

    plain, ours = (_orders(lambda t, c=c: total(c, t)) for c in (lambda law: law, safe))
    np.testing.assert_allclose(ours[:, [2, 4, 5]], plain[:, [2, 4, 5]], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("outcome", [0, 1])
def test_bernoulli_far_out_and_at_zero(outcome):
    """log p and log(1 - p) of a logistic p: slopes 1 - p, -p and curvature -p (1 - p)."""
    p = 1 / (1 + np.exp(-np.array([-300.0, -40.0, -1.3, 0.0, 0.4, 2.0, 30.0])))
    for law in (lambda t: dist.Bernoulli(logits=t), lambda t: dist.Bernoulli(jax.nn.sigmoid(t))):
        found = _orders(lambda t, law=law: safe(law(t)).log_prob(outcome))
        np.testing.assert_allclose(found[1], outcome - p, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found[2], -p * (1 - p), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found[3], -p * (1 - p), rtol=1e-12, atol=1e-12)


LAWS = [
    lambda p: dist.Bernoulli(p),
    lambda p: dist.Binomial(3, p),
    lambda p: dist.Multinomial(3, jnp.stack([p, 1 - p])),
    lambda p: dist.Categorical(jnp.stack([p, 1 - p])),
    lambda p: dist.Geometric(p),
]


@pytest.mark.parametrize("case", range(len(LAWS)))
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_no_derivative_is_nan_at_the_ends(case, end):
    """Of a probability that stays there, all derivatives are 0."""
    for outcome in ([3, 0], [0, 3]) if case == 2 else ([0, 3] if case == 1 else (0, 1)):
        if case == 4 and end == 1.0 and outcome:
            continue

        def f(t, outcome=outcome):
            p = end + (1 - 2 * end) * 0.0 * jax.nn.sigmoid(t)
            return safe(LAWS[case](p)).log_prob(jnp.array(outcome))

        assert not np.isnan(f(0.3))
        assert jax.grad(f)(0.3) == 0 and jax.hessian(f)(0.3) == 0
        assert jax.grad(jax.grad(f))(0.3) == 0


def test_poisson_of_rate_zero():
    f = lambda t: safe(dist.Poisson(0.0 * jnp.exp(t))).log_prob(0)  # noqa: E731
    assert f(0.1) == 0 and jax.grad(f)(0.1) == 0 and jax.hessian(f)(0.1) == 0


def _occupancy(y, n):
    psi = numpyro.param("psi", 0.5, constraint=constraints.unit_interval)
    a = numpyro.param("a", 0.0)
    with numpyro.plate("site", len(y), dim=-2):
        e = numpyro.sample("e", dist.Normal(0.0, 0.7))
        z = numpyro.sample("z", dist.Bernoulli(psi))
        with numpyro.plate("visit", y.shape[1], dim=-1):
            p = jax.nn.sigmoid(a + e)
            numpyro.sample("y", dist.Binomial(n, jnp.where(z == 1, p, 0.0)), obs=y)


def _by_grid(y, n, psi, a):
    e = np.linspace(-6, 6, 4001)
    p, k = 1 / (1 + np.exp(-a - e)), y.sum(1)[:, None]
    row = psi * p**k * (1 - p) ** (n * y.shape[1] - k) + (1 - psi) * (k == 0)
    value = np.log(np.trapezoid(row * norm.pdf(e, 0, 0.7), e, axis=1)).sum()
    return value + np.log(comb(n, y)).sum()


@pytest.mark.slow
def test_occupancy_by_counts_with_a_site_effect():
    rng = np.random.default_rng(3)
    z = rng.random(25) < 0.6
    p = 1 / (1 + np.exp(-0.2 - 0.7 * rng.normal(size=25)))
    y = rng.binomial(3, (z * p)[:, None], (25, 2))
    r = EM(_occupancy, "quadrature").run(jax.random.key(0), y, 3, progress_bar=False)
    right = _by_grid(y, 3, float(r.params["psi"]), float(r.params["a"]))
    assert r.converged and abs(r.log_likelihood.value - right) < 1e-4
    assert np.all(np.isfinite([*r.standard_errors().values()]))


def test_states_in_which_the_data_are_impossible_count_for_nothing():
    """Two of 900 visits find nothing: NumPyro's stand-in for log 0 is then the likelier state."""

    def model(y):
        psi = numpyro.param("psi", 0.5, constraint=constraints.unit_interval)
        q = numpyro.param("q", 0.5, constraint=constraints.unit_interval)
        z = numpyro.sample("z", dist.Bernoulli(psi))
        with numpyro.plate("visit", len(y)):
            numpyro.sample("y", dist.Bernoulli(1 - z * q), obs=y)

    y = np.arange(900) % 450 != 0
    problem, _ = build_problem(jax.random.key(0), model, (y,), {})
    params = {"psi": jnp.asarray(0.3), "q": jnp.asarray(0.5)}
    right = np.log(0.3) + 900 * np.log(0.5)
    assert abs(float(problem.log_joint(params, {})) - right) < 1e-9
    hessian = jax.hessian(lambda q: problem.log_joint({**params, "q": q}, {}))(jnp.asarray(0.5))
    assert abs(hessian + 900 / 0.25) < 1e-8
