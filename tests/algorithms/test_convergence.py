"""Where exact EM goes, how it gets there and how fast, and what must not change its answer."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
from conftest import SEED, load_model
from jax.scipy.special import logsumexp
from numpyro.distributions import constraints
from small_models import POSITIVE, Case, intercept, intercept_law

from ppl_em import EM, EMResult, Stopping
from ppl_em import e_step as e_steps
from ppl_em.algorithms import rounding
from ppl_em.algorithms.maximization import maximization
from ppl_em.e_step import expectation
from ppl_em.likelihood import Information
from ppl_em.m_step import Newton
from ppl_em.problem import build_problem

_rng = np.random.default_rng(30)
GROUP = np.repeat(np.arange(10), 4)
LONG = 1.0 + 0.6 * _rng.normal(size=10)[GROUP] + 0.8 * _rng.normal(size=40)
POINTS = np.concatenate([_rng.normal(-1.5, 1.0, 30), _rng.normal(1.5, 0.7, 40)])


def two_normals(y, prefix=""):
    share = numpyro.param(f"{prefix}share", 0.4, constraint=constraints.unit_interval)
    mu = numpyro.param(f"{prefix}mu", jnp.array([-1.0, 1.0]))
    sd = numpyro.param(f"{prefix}sd", jnp.ones(2), constraint=POSITIVE)
    with numpyro.plate(f"{prefix}rows", len(y)):
        k = numpyro.sample(f"{prefix}k", dist.Bernoulli(share))
        numpyro.sample(f"{prefix}y", dist.Normal(mu[k], sd[k]), obs=y)


def two_normals_density(params):
    weights = jnp.log(jnp.stack([1 - params["share"], params["share"]]))
    terms = dist.Normal(params["mu"], params["sd"]).log_prob(POINTS[:, None]) + weights
    return jnp.sum(logsumexp(terms, axis=1))


def intercept_density(params):
    return Case(intercept, (LONG, GROUP), None, intercept_law, LONG).log_likelihood(params)


linkage = load_model("linkage")


def linkage_density(params):
    count, probs = linkage.load()["count"], linkage._cell_probs(params["pi"])
    return dist.Multinomial(int(count.sum()), probs).log_prob(count)


FITS = {
    "linkage": (linkage.model, (linkage.load()["count"],), linkage_density),
    "two_normals": (two_normals, (POINTS,), two_normals_density),
    "intercept": (intercept, (LONG, GROUP), intercept_density),
}


class Fit(NamedTuple):
    """A finished fit, with the log-likelihood computed without the library."""

    result: EMResult
    log_likelihood: jax.stages.Wrapped

    @property
    def x(self) -> jax.Array:
        return self.result.parts.x


@cache
def fit(name: str) -> Fit:
    model, args, density = FITS[name]
    result = EM(model, e_step="exact").run(jax.random.key(SEED), *args, progress_bar=False)
    problem = result.parts.problem
    return Fit(result, jax.jit(lambda x: density(problem.constrain(x))))


@pytest.mark.parametrize("name", FITS)
def test_ascent(name):
    """The log-likelihood never falls by more than rounding, and each entry is what it says."""
    history = fit(name).result.history
    floor = rounding(history["objective"][-1], np.dtype(float))
    assert history["change"].min() >= -floor
    np.testing.assert_allclose(np.diff(history["objective"]), history["change"][1:], atol=floor)


@pytest.mark.parametrize("name", FITS)
def test_fixed_point(name):
    """EM's limit is the maximiser of the likelihood, and its Hessian gives the standard errors."""
    result, log_likelihood = fit(name)
    value_and_grad = jax.jit(jax.value_and_grad(lambda x: -log_likelihood(x)))
    start = result.parts.problem.unconstrain(
        {k: v[0] for k, v in result.history.items() if k in result.params}
    )
    direct = scipy.optimize.minimize(
        value_and_grad, start, jac=True, method="BFGS", options={"gtol": 1e-9}
    )
    information = -np.asarray(jax.hessian(log_likelihood)(jnp.asarray(direct.x)))
    shift = result.parts.x - direct.x
    assert np.sqrt(shift @ information @ shift) < 1e-4
    np.testing.assert_allclose(result.log_likelihood.value, log_likelihood(fit(name).x), rtol=1e-12)
    assert result.converged and result.log_likelihood.kind == "exact"

    jacobian = jax.jacobian(lambda x: result.parts.problem.constrain(x))(jnp.asarray(direct.x))
    covariance = np.linalg.inv(information)
    for site, error in result.standard_errors().items():
        rows = np.asarray(jacobian[site]).reshape(-1, len(shift))
        expected = np.sqrt(np.einsum("ij,jk,ik->i", rows, covariance, rows))
        np.testing.assert_allclose(np.ravel(error), expected, rtol=1e-3)


@pytest.mark.parametrize("name", FITS)
def test_rate(name):
    """Steps shrink by the largest eigenvalue of the missing-information fraction."""
    result, log_likelihood = fit(name)
    problem, engine, state = result.parts.problem, result.parts.e_step, result.parts.e_state

    def q_function(x: jax.Array) -> jax.Array:
        posterior = engine.step(problem, problem.constrain(fit(name).x), state)[0]
        return posterior.expected_log_joint(problem, problem.constrain(x))

    complete = -np.asarray(jax.jit(jax.hessian(q_function))(fit(name).x))
    observed = -np.asarray(jax.jit(jax.hessian(log_likelihood))(fit(name).x))
    rate = np.linalg.eigvals(np.linalg.solve(complete, complete - observed)).real.max()
    assert 0.05 < rate < 0.98
    x, lengths = fit(name).x + 0.02, [np.inf]
    m_step = Newton(tol=1e-20)
    m_state = m_step.init(x)
    while lengths[-1] > 1e-7 and len(lengths) < 100:
        posterior, state, _ = expectation(engine, problem, x, state)
        out = maximization(m_step, problem, x, x, posterior, m_state)
        lengths.append(float(jnp.linalg.norm(out.x - x)))
        x, m_state = out.x, out.state
    np.testing.assert_allclose(lengths[-1] / lengths[-2], rate, atol=1e-2)
    if result.history["phase"][-1] == "em":
        np.testing.assert_allclose(result.history["em_rate"][-1], rate, atol=1e-2)


def refit(model, *args, **options):
    return EM(model, e_step="exact", **options).run(
        jax.random.key(SEED + 1), *args, progress_bar=False
    )


def assert_same_answer(result, reference, names=None):
    errors = reference.standard_errors()
    for name in reference.params:
        other = result.params[names[name] if names else name]
        assert np.all(np.abs(other - reference.params[name]) <= 1e-4 * errors[name])


def test_permuted_rows_of_a_mixture():
    order = np.random.default_rng(SEED).permutation(70)
    result, reference = refit(two_normals, POINTS[order]), fit("two_normals").result
    assert_same_answer(result, reference)
    probs, expected = result.posterior.probs()["k"], reference.posterior.probs()["k"]
    np.testing.assert_allclose(probs, expected[order], atol=1e-6)


@pytest.mark.long
def test_permuted_rows_of_groups():
    order = np.random.default_rng(SEED).permutation(40)
    result, reference = refit(intercept, LONG[order], GROUP[order]), fit("intercept").result
    assert_same_answer(result, reference)
    np.testing.assert_allclose(
        result.log_likelihood.value, reference.log_likelihood.value, rtol=1e-12
    )
    mean, expected = result.posterior.mean()["z"], reference.posterior.mean()["z"]
    np.testing.assert_allclose(mean, expected, rtol=1e-5)


@pytest.mark.slow
def test_doubled_data():
    twice = refit(intercept, np.tile(LONG, 2), np.concatenate([GROUP, GROUP + 10]))
    reference = fit("intercept").result
    assert_same_answer(twice, reference)
    np.testing.assert_allclose(
        twice.log_likelihood.value, 2 * reference.log_likelihood.value, rtol=1e-12
    )
    for name, error in twice.standard_errors().items():
        np.testing.assert_allclose(error * np.sqrt(2), reference.standard_errors()[name], rtol=1e-4)


@pytest.mark.slow
def test_renamed_sites():
    reference = fit("two_normals").result
    renamed = refit(two_normals, POINTS, "zz_")
    assert_same_answer(renamed, reference, {name: f"zz_{name}" for name in reference.params})


def test_another_unconstraining_transform():
    reference = fit("two_normals").result
    other = refit(two_normals, POINTS, constraints={"sd": constraints.softplus_positive})
    assert_same_answer(other, reference)
    np.testing.assert_allclose(
        other.log_likelihood.value, reference.log_likelihood.value, rtol=1e-12
    )


@pytest.mark.slow
def test_monte_carlo_q_is_exact_q_within_its_error():
    """Q and its differences, averaged over NUTS draws, against the closed form."""
    keys = jax.random.split(jax.random.key(SEED), 3)
    problem, params = build_problem(keys[0], intercept, (LONG, GROUP), {})
    exact = e_steps.Exact().resolve(keys[1], problem, params)
    sampler = e_steps.NUTS(num_samples=400, num_warmup=200)
    state = sampler.init(keys[2], problem, params)
    x = problem.unconstrain(params)

    @jax.jit
    def both(state, points):
        gaussian = exact.step(problem, params, exact.init(keys[2], problem, params))[0]
        draws = sampler.step(problem, params, state)[0]
        by_draw = jax.vmap(lambda x: draws.log_joints(problem, problem.constrain(x)))(points)
        q = jax.vmap(lambda x: gaussian.expected_log_joint(problem, problem.constrain(x)))(points)
        mc = jax.vmap(lambda x: draws.expected_log_joint(problem, problem.constrain(x)))(points)
        return q, mc, by_draw

    points = x + jnp.array([[0.0, 0.0, 0.0], [0.5, -0.3, 0.2], [-0.4, 0.6, -0.2]])
    q, mc, by_draw = jax.device_get(both(state, points))
    by_draw, q, mc = (np.concatenate([a, a[1:] - a[0]]) for a in (by_draw, q, mc))
    batches = by_draw.reshape(5, 4, 10, 40).mean(axis=-1).reshape(5, 40)
    error = batches.std(axis=1, ddof=1) / np.sqrt(40)
    assert np.all(np.abs(mc - q) < 5 * error), (mc - q) / error
    assert np.all(error < 0.1 * np.abs(by_draw.std(axis=(1, 2)))), "the error itself is too large"


def test_gap_tolerance_is_kept():
    """A looser gap stops earlier, and what is left is what the rule promised."""
    reference = fit("two_normals").result
    loose = refit(two_normals, POINTS, stopping=Stopping(gap=1e-3))
    every = refit(two_normals, POINTS, stopping=Stopping(gap=0.0), max_steps=40)
    assert loose.converged and loose.num_steps < every.num_steps == 40
    left = reference.log_likelihood.value - loose.log_likelihood.value
    assert 0 < left < 1e-3


def test_a_score_without_noise_has_an_error_of_zero():
    """A balanced design: rounding must not make the Monte Carlo variance negative."""
    rng = np.random.default_rng(SEED)
    root = rng.normal(size=(4, 4))
    noise = rng.normal(size=(4, 2)) * np.array([[1.0], [1.0], [0.0], [1.0]])
    information = Information(np.zeros(4), root @ root.T + np.eye(4), "", noise @ noise.T, "")
    errors = np.diag(information.newton_error)
    inverse = np.linalg.inv(information.matrix)
    assert np.all(errors >= 0)
    np.testing.assert_allclose(errors, np.diag(inverse @ information.score_error @ inverse))
