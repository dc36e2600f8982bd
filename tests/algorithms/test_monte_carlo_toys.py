"""Monte Carlo EM on toys whose answers are known exactly: estimates, noise, and when to stop."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arviz_stats.base import array_stats
from conftest import SEED
from jax.flatten_util import ravel_pytree
from toy_models import Toy, logit_normal, logit_normal_log_likelihood, normal_normal

from ppl_em import EM, EMResult, Stopping
from ppl_em.algorithms.maximization import maximization
from ppl_em.cli import catalog
from ppl_em.e_step import NUTS, expectation
from ppl_em.m_step import Newton
from ppl_em.problem import build_problem
from ppl_em.result import Status

TOYS = {"normal_normal": normal_normal, "logit_normal": logit_normal}


def flat(tree: dict) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0])


@cache
def fit(name: str) -> tuple[EMResult, Toy]:
    toy = TOYS[name]()
    run = EM(toy.model, e_step="nuts").run
    return run(jax.random.key(SEED), progress_bar=False, **toy.data), toy


def test_reference_of_the_logit_normal_toy():
    """Group totals and the sum of j y_ij are all that the likelihood depends on."""
    toy = logit_normal()
    y, reference = toy.data["y"], toy.reference
    assert y.sum(axis=1).tolist() == [10, 10, 12, 12, 13, 13, 14, 15, 15, 15]
    assert int((y * np.arange(1, 16)).sum()) == 1122
    at = jnp.asarray(flat(reference["params"]))
    value, gradient = jax.value_and_grad(logit_normal_log_likelihood)(at, y)
    covariance = np.linalg.inv(-jax.hessian(logit_normal_log_likelihood)(at, y))
    assert float(value) == pytest.approx(reference["log_likelihood"], abs=1e-10)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-8)
    se = flat(reference["standard_errors"])
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), se, rtol=1e-8)
    # As known for the published data.
    np.testing.assert_allclose(at, [6.1321629, 1.7664615], atol=2e-7)
    np.testing.assert_allclose(se, [1.34226, 1.59752], atol=5e-6)


def test_reference_of_the_normal_toy():
    """The closed forms, beside exact EM; its rate is 1/2 from the first step on."""
    toy = normal_normal()
    result = EM(toy.model, e_step="exact").run(jax.random.key(SEED), progress_bar=False, **toy.data)
    np.testing.assert_allclose(result.params["theta"], toy.reference["params"]["theta"], rtol=1e-7)
    np.testing.assert_allclose(
        result.standard_errors()["theta"], toy.reference["standard_errors"]["theta"], rtol=1e-9
    )
    assert result.log_likelihood.value == pytest.approx(toy.reference["log_likelihood"], abs=1e-9)
    np.testing.assert_allclose(result.history["em_rate"][1:5], 0.5, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOYS)
def test_estimates_within_their_errors(name, optimized):
    result, toy = fit(name)
    assert result.converged
    gap = np.abs(flat(result.params) - flat(toy.reference["params"]))
    assert np.all(gap < 4 * flat(result.mcse()))
    se = flat(toy.reference["standard_errors"])
    np.testing.assert_allclose(flat(result.standard_errors()), se, rtol=0.15)
    value, kind, mcse, _ = result.log_likelihood
    assert kind == "estimate"
    assert abs(value - toy.reference["log_likelihood"]) < 4 * mcse


@pytest.mark.slow
@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("fraction", [0.1, 0.03])
def test_converged_means_precise(name, fraction, optimized):
    """The error that is asked for is kept; `mcse` is not a small step's."""
    toy = TOYS[name]()
    result = EM(toy.model, e_step="nuts", stopping=Stopping(mcse_fraction=fraction)).run(
        jax.random.key(SEED + 1), progress_bar=False, **toy.data
    )
    assert result.status is Status.CONVERGED
    assert np.all(flat(result.mcse()) <= 1.001 * fraction * flat(result.standard_errors()))


@pytest.mark.slow
def test_too_few_draws_are_not_called_convergence(optimized):
    """With a budget far below what the error takes, the run says that noise is the limit."""
    toy = logit_normal()
    stopping = Stopping(mcse_fraction=0.001, max_draws=4000)
    result = EM(toy.model, e_step="nuts", stopping=stopping).run(
        jax.random.key(SEED), progress_bar=False, **toy.data
    )
    assert result.status is Status.NOISE_LIMITED
    assert np.any(flat(result.mcse()) > 0.001 * flat(result.standard_errors()))


CHAINS, DRAWS, STEPS = 4, 25, 3000


@pytest.mark.long
def test_noise_of_plain_iterates(optimized):
    """Var(theta_k) / SE² = lam / (1 + lam) / m_eff, here 1 / (3 m_eff).

    One M-step with m_eff effective draws adds noise of variance Im / (Ic² m_eff), of which the next
    keeps lam = Im / Ic: an autoregression with stationary variance Im / (Ic² m_eff (1 - lam²)), and
    SE² = 1 / (Ic (1 - lam)). Effective draws are those for the score, sum of x_i - theta. The
    standard error of the variance over k steps is sqrt(2 (1 + lam²) / (1 - lam²) / k) of it: 3.3 %.
    """
    toy = normal_normal()
    key = jax.random.key(SEED)
    problem, params = build_problem(key, toy.model, (), toy.data)
    params = {"theta": jnp.asarray(toy.reference["params"]["theta"])}
    x = before = problem.unconstrain(params)
    e_step, m_step = NUTS(num_chains=CHAINS, num_samples=DRAWS), Newton()
    state, m_state = e_step.init(key, problem, params), m_step.init(x)

    scores, iterates = [], []
    for _ in range(STEPS // 3):  # theta stays: the autocorrelation of the score
        posterior, state, _ = expectation(e_step, problem, x, state)
        scores.append(posterior.draws.mean(axis=-1))
    for step in range(20 + STEPS):
        posterior, state, _ = expectation(e_step, problem, x, state)
        out = maximization(m_step, problem, x, before, posterior, m_state)
        before, x, m_state = x, out.x, out.state
        if step >= 20:
            iterates.append(x[0])

    chains = np.concatenate(jax.device_get(scores), axis=1)
    size = len(toy.data["y"])
    np.testing.assert_allclose(chains.var(), 0.5 / size, rtol=0.1)
    effective = CHAINS * DRAWS * array_stats.ess(chains, method="mean") / chains.size
    noise = np.mean((np.asarray(jax.device_get(iterates)) - toy.reference["params"]["theta"]) ** 2)
    ratio = noise / toy.reference["standard_errors"]["theta"] ** 2
    assert ratio * 3 * effective == pytest.approx(1.0, abs=0.15)


@cache
def plain_em() -> tuple[EMResult, np.ndarray]:
    """Plain EM where its rate is 0.9957, and each step's distance from the maximum."""
    entry = catalog.find("poisson_mixture")
    every_step = EM(entry.model, e_step="exact", max_steps=1200, stopping=Stopping(gap=0.0))
    result = every_step.run(jax.random.key(SEED), progress_bar=False, **entry.load())
    assert set(result.history["phase"]) == {"em"}
    return result, np.max(np.abs(result.history["rate"] - entry.reference["params"]["rate"]), 1)


def relative_change_of_log_likelihood(history: dict) -> np.ndarray:
    return np.abs(history["change"] / history["objective"])


def relative_change_of_parameters(history: dict) -> np.ndarray:
    values = np.concatenate([history["weights"], history["rate"]], axis=1)
    change = np.abs(np.diff(values, axis=0, prepend=np.nan))
    return np.max(change / (np.abs(values) + 1e-3), axis=1)


EARLY = [
    (relative_change_of_log_likelihood, 1e-6),
    (relative_change_of_log_likelihood, 1e-7),
    (relative_change_of_parameters, 1e-4),
    (relative_change_of_parameters, 1e-5),
]


@pytest.mark.long
@pytest.mark.parametrize("rule, tolerance", EARLY)
def test_rules_on_one_small_step_fire_early(rule, tolerance):
    """They take a small step for a small distance; the error is step / (1 - rate)."""
    result, distance = plain_em()
    history = result.history
    first = int(np.flatnonzero(rule(history) < tolerance)[0])
    assert distance[first] > 1e-3
    rate = history["em_rate"][first]
    estimate = history["change"][first] * rate**2 / (1 - rate**2)
    assert estimate > 1e6 * Stopping().gap_for(False)
    if first > 100:  # the slow direction is all that is left
        left = catalog.find("poisson_mixture").reference["log_likelihood"]
        left -= history["objective"][first]
        assert estimate == pytest.approx(left, rel=0.1)


def test_ours_goes_on_to_the_maximum():
    entry = catalog.find("poisson_mixture")
    result = EM(entry.model, e_step="exact").run(
        jax.random.key(SEED), progress_bar=False, **entry.load()
    )
    assert result.status is Status.CONVERGED
    assert np.max(np.abs(result.params["rate"] - entry.reference["params"]["rate"])) < 1e-6
    assert plain_em()[0].status is Status.MAX_STEPS
