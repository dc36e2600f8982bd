"""The parts of Monte Carlo EM: scores with little noise, schedules, verdicts, the health gate."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from arviz_stats.base import array_stats
from conftest import SEED
from jax.flatten_util import ravel_pytree
from toy_models import logit_normal, logit_normal_log_likelihood, normal_normal

from ppl_em import EM, Status, Stopping
from ppl_em.algorithms.stopping import Step, has_settled, verdict
from ppl_em.e_step import NUTS, expectation
from ppl_em.e_step.nuts_health import examine
from ppl_em.e_step.saem import BURN, DECAY, MEMORY, SAEM
from ppl_em.likelihood import (
    Components,
    curvature_of_score,
    find,
    find_motion,
    louis_information,
    score_moments,
)
from ppl_em.problem import build_problem

CONFIG = NUTS(num_warmup=150)


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


@pytest.fixture(scope="module")
def drawn():
    """The logit-normal toy away from its maximum, and ten E-steps there."""
    toy = logit_normal()
    start = {"beta": jnp.asarray(5.0), "sigma2": jnp.asarray(1.2)}
    problem, params = build_problem(
        jax.random.key(SEED), toy.model, (), toy.data, init_params=start
    )
    x = problem.unconstrain(params)
    state = CONFIG.init(jax.random.key(SEED + 1), problem, params)
    posteriors = []
    for _ in range(10):
        posterior, state, _ = expectation(CONFIG, problem, x, state)
        posteriors.append(posterior)

    def exact(x):
        return logit_normal_log_likelihood(ravel_pytree(problem.constrain(x))[0], toy.data["y"])

    return problem, x, posteriors, exact


def spread(drawn, components, motion):
    """Mean of the information over single E-steps, and its error by their scatter, (p, p) each."""
    problem, x, posteriors, _ = drawn
    single = [
        louis_information(problem, x, [score_moments(problem, p, components, motion)]).matrix
        for p in posteriors
    ]
    return np.mean(single, axis=0), np.std(single, axis=0) / np.sqrt(len(single) - 1)


def information(drawn, components, motion):
    problem, x, posteriors, _ = drawn
    moments = [score_moments(problem, posterior, components, motion) for posterior in posteriors]
    return louis_information(problem, x, moments)


@pytest.mark.long
def test_moving_latents_leave_the_score_and_take_its_noise(drawn):
    problem, x, posteriors, exact = drawn
    components = find(problem, x, posteriors[0])
    motion = find_motion(problem, x, posteriors[0], components)
    assert components.number == 10
    still = motion._replace(shift=0 * motion.shift, stretch=0 * motion.stretch)
    score = jax.grad(exact)(x)
    plain, moved = (information(drawn, components, m) for m in (still, motion))
    for found in (plain, moved):
        error = np.sqrt(np.diag(found.score_error))
        assert np.all(np.abs(found.gradient - score) < 4 * error)
    ratio = np.diag(plain.score_error) / np.diag(moved.score_error)
    assert np.all(ratio > 10), ratio
    matrix, error = spread(drawn, components, motion)
    assert np.all(np.abs(matrix + jax.hessian(exact)(x)) < 5 * error)
    assert np.linalg.norm(error) < 0.5 * np.linalg.norm(spread(drawn, components, still)[1])


def test_components_take_noise_from_the_information(drawn):
    problem, x, posteriors, exact = drawn
    motion = find_motion(problem, x, posteriors[0], Components(None, 1))
    still = motion._replace(shift=0 * motion.shift, stretch=0 * motion.stretch)
    found, noise = {}, {}
    for components in (find(problem, x, posteriors[0]), Components(None, 1)):
        found[components.number] = information(drawn, components, still)
        matrix, error = spread(drawn, components, still)
        assert np.all(np.abs(matrix + jax.hessian(exact)(x)) < 5 * error)
        noise[components.number] = np.linalg.norm(error)
    np.testing.assert_allclose(found[10].gradient, found[1].gradient, rtol=1e-9)
    assert noise[10] < 0.7 * noise[1]


def test_the_score_after_a_step(drawn):
    """Reweighted draws tell how the score bends; the exact one is differenced beside them."""
    problem, x, posteriors, exact = drawn
    motion = find_motion(problem, x, posteriors[0], Components(None, 1))
    step = np.array([0.05, -0.3])
    found = [
        curvature_of_score(problem, motion, Components(None, 1), step, [p.draws])
        for p in posteriors
    ]
    beyond, largest = (np.array(values) for values in zip(*found, strict=True))
    score = jax.grad(exact)
    expected = score(x + step) - score(x) - jax.hessian(exact)(x) @ step
    error = np.std(beyond, axis=0) / np.sqrt(len(beyond) - 1)
    assert np.all(np.abs(beyond.mean(axis=0) - expected) < 4 * error)
    assert np.all(error < 0.2 * np.abs(expected).max())
    assert np.all((largest >= 1) & (largest < 3))


def test_weights_of_stochastic_approximation():
    """After k steps Q_k = (1 - g_k) Q_(k-1) + g_k (newest), with g_k = 1 at first, then k^-0.7."""
    toy = normal_normal(20)
    problem, params = build_problem(jax.random.key(SEED), toy.model, (), toy.data)
    x = problem.unconstrain(params)
    e_step = NUTS(2, num_samples=20, num_warmup=20, schedule="saem").resolve(
        jax.random.key(0), problem, params
    )
    assert isinstance(e_step, SAEM) and e_step.inner.num_samples == 2
    state = e_step.init(jax.random.key(SEED), problem, params)
    expected = np.zeros(0)
    for count in range(BURN + 12):
        posterior, state, _ = expectation(e_step, problem, x, state)
        rate = max(count - BURN + 1, 1) ** -DECAY
        expected = np.append((1 - rate) * expected, rate)
        assert np.all(np.isfinite(posterior.draws))
    by_step = np.asarray(posterior.weights).reshape(2, MEMORY, 2).sum(axis=(0, 2))
    np.testing.assert_allclose(by_step[: len(expected)], expected, atol=1e-12)
    assert np.sum(by_step) == pytest.approx(1)


@pytest.mark.long
def test_both_schedules_reach_the_same_maximum(optimized):
    toy = logit_normal()
    run = EM(toy.model, NUTS(schedule="saem")).run
    result = run(jax.random.key(SEED), progress_bar=False, **toy.data)
    assert result.converged and result.e_step == "nuts"
    gap = np.abs(flat(result.params) - flat(toy.reference["params"]))
    assert np.all(gap < 5 * flat(result.mcse()))


def test_verdicts():
    kinds = [verdict(Step(-10.0, gain, 0.1, 1.0), np.float64) for gain in (0.3, 0.1, -0.1, -0.3)]
    assert kinds == ["up", "within noise", "within noise", "down"]
    slow = [Step(-10.0, 0.05, 0.001, 1.0)] * 6
    assert has_settled(slow) and not has_settled(slow, within_noise=True)
    assert not has_settled([Step(-10.0, 1.0, 0.1, 1.0)] * 6)


def synthetic(shift=0.0, diverging=0, energy_step=1.0):
    rng = np.random.default_rng(SEED)
    scores = rng.normal(size=(4, 500, 2)) + shift * np.arange(4)[:, None, None]
    energy = np.cumsum(rng.normal(size=(4, 500)) * energy_step, axis=1)
    energy = energy if energy_step < 1 else rng.normal(size=(4, 500))
    flags = np.zeros((4, 500), bool)
    flags.flat[:diverging] = True
    stats = {"energy": energy, "diverging": flags, "acceptance_rate": np.full((4, 500), 0.8)}
    return stats, scores


def test_health_of_chains():
    toy = normal_normal(5)
    problem, _ = build_problem(jax.random.key(SEED), toy.model, (), toy.data)
    stats, scores = synthetic()
    good = examine(stats, scores)
    expected = array_stats.rhat(scores, chain_axis=0, draw_axis=1)  # the default: rank-normalised
    assert good.rhat == pytest.approx(np.max(expected), abs=1e-6)
    assert good.sound and good.mixed and good.complaint(problem.latent_names) == ""
    apart = examine(*synthetic(shift=1.0))
    assert not apart.mixed and "chains disagree" in apart.complaint(problem.latent_names)
    torn = examine(*synthetic(diverging=3))
    assert not torn.sound and "3 of 2000 transitions diverged" in torn.complaint(
        problem.latent_names
    )
    assert "'x'" in torn.complaint(problem.latent_names) and "LocScaleReparam" in torn.complaint(
        problem.latent_names
    )
    stuck = examine(*synthetic(energy_step=0.05))
    assert not stuck.sound and "E-BFMI" in stuck.complaint(problem.latent_names)


def funnel(y):
    """A latent scale far from known: what centred hierarchies are warned of."""
    mu = numpyro.param("mu", 0.0)
    s = numpyro.sample("s", dist.Normal(0.0, 3.0))
    with numpyro.plate("groups", len(y)):
        z = numpyro.sample("z", dist.Normal(mu, jnp.exp(s / 2)))
        numpyro.sample("y", dist.Normal(z, 10.0), obs=y)


@pytest.mark.slow
def test_sick_chains_do_not_converge(caplog, optimized):
    y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    with caplog.at_level(logging.WARNING, "ppl_em"):
        result = EM(funnel, "nuts").run(jax.random.key(SEED), y, progress_bar=False)
    assert result.status is Status.UNHEALTHY and not result.converged
    assert "Sites 's', 'z'" in caplog.text and "Reparameterise" in caplog.text
    assert np.isfinite(result.params["mu"])


@pytest.mark.slow
def test_too_few_draws_are_said_with_how_many_it_takes(caplog, optimized):
    toy = logit_normal()
    stopping = Stopping(mcse_fraction=1e-3, max_draws=2000)
    with caplog.at_level(logging.WARNING, "ppl_em"):
        result = EM(toy.model, CONFIG, stopping=stopping).run(
            jax.random.key(SEED), progress_bar=False, **toy.data
        )
    assert result.status is Status.NOISE_LIMITED
    assert "draws would be needed" in caplog.text
    summary = result.summary()
    assert list(summary.columns[-2:]) == ["total", "se_mcse"]
    np.testing.assert_allclose(summary["total"], np.hypot(summary["se"], summary["mcse"]))
    assert np.all(summary["se_mcse"] > 0)
    assert set(result.history["verdict"]) <= {"up", "within noise", "down"}
