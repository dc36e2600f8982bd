"""Information of an importance-sampled log-likelihood, and when it stands in for Louis's."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED
from jax.flatten_util import ravel_pytree
from numpyro.distributions import constraints
from toy_models import logit_normal, logit_normal_log_likelihood, normal_normal

import ppl_em.algorithms.confirmation
import ppl_em.fit.fitted
from ppl_em import EM, Status, Stopping
from ppl_em.e_step import NUTS, expectation
from ppl_em.likelihood import (
    constrained_covariance,
    find,
    find_motion,
    louis_information,
    sampled_information,
    score_moments,
)
from ppl_em.likelihood.importance_information import METHOD
from ppl_em.likelihood.transport import still
from ppl_em.optimize.differences import hessian
from ppl_em.posterior import WeightedDraws
from ppl_em.problem import build_problem
from ppl_em.stats.proposals import Proposal


def at(toy, params, draws, follow):
    """The information from posterior draws (chain, draw, D)."""
    problem, start = build_problem(
        jax.random.key(SEED), toy.model, (), toy.data, init_params=jax.tree.map(jnp.asarray, params)
    )
    x, posterior = problem.unconstrain(start), WeightedDraws.equal(jnp.asarray(draws))
    components = find(problem, x, posterior)
    motion = find_motion(problem, x, posterior, components) if follow else still(x, draws[0, 0])
    return problem, x, sampled_information(problem, x, draws, components, motion)


@pytest.mark.parametrize("follow", [True, False])
def test_normal_toy(follow):
    """l'(t) = sum (y_i - t) / 2, l''(t) = -D / 2; nothing varies where the latents follow."""
    toy = normal_normal(40)
    y, rng = toy.data["y"], np.random.default_rng(SEED)
    draws = (y + 0.7) / 2 + np.sqrt(0.5) * rng.standard_normal((4, 100, 40))
    _, _, found = at(toy, {"theta": 0.7}, draws, follow)
    assert found.precise and found.method == METHOD
    assert len(found.replicates) == 8
    error = np.sqrt(found.score_error[0, 0])
    assert abs(found.gradient[0] - np.sum(y - 0.7) / 2) < max(4 * error, 1e-9)
    assert abs(found.covariance[0, 0] * 20 - 1) < max(8 * found.se_noise, 1e-6)
    assert (error < 1e-9) == follow


@pytest.mark.long
def test_errors_are_honest():
    """Score and information of the logit-normal toy, in units of the reported errors."""
    toy = logit_normal()
    scores = []
    for seed in range(8):
        draws = np.random.default_rng([SEED, seed]).normal(0.0, 1.2, (4, 50, 10))
        problem, x, found = at(toy, {"beta": 5.0, "sigma2": 1.2}, draws, False)

        def exact(x, problem=problem):
            return logit_normal_log_likelihood(ravel_pytree(problem.constrain(x))[0], toy.data["y"])

        covariance = np.linalg.inv(-np.asarray(jax.hessian(exact)(x)))
        apart = np.asarray(jax.grad(exact)(x)) - found.gradient
        scores += list(apart / np.sqrt(np.diag(found.score_error)))
        ratio = np.sqrt(np.diag(found.covariance) / np.diag(covariance)) - 1
        assert np.all(np.abs(ratio) < 6 * found.se_noise) and found.se_noise < 0.02
    # With eight parts the errors are Student-t, of seven degrees of freedom.
    assert np.mean(np.abs(scores) < 2.5) > 0.85 and np.max(np.abs(scores)) < 7


def test_even_draws_have_less_error_and_the_same_law():
    rng = np.random.default_rng(SEED)
    proposal = Proposal.fit(rng.standard_normal((200, 3, 2)) @ np.array([[1.0, 0.5], [0, 2]]), 7.0)
    points, log_density = proposal.sample_evenly(rng, 8, 512)
    assert points.shape == (4096, 3, 2)
    np.testing.assert_allclose(proposal.log_density(points), log_density, atol=1e-8)
    parts = (points - proposal.mean).reshape(8, 512, 3, 2)
    scale = np.diagonal(proposal.tril @ np.swapaxes(proposal.tril, 1, 2), axis1=1, axis2=2)
    mean, square = parts.mean(axis=1), np.mean(parts**2, axis=1)
    spread = proposal.degrees / (proposal.degrees - 2) * scale
    for values, truth, plain in ((mean, 0.0, spread), (square, spread, 3 * spread**2)):
        error = values.std(axis=0, ddof=1) / np.sqrt(8)
        assert np.all(np.abs(values.mean(axis=0) - truth) < 6 * error)
        assert np.median(error / np.sqrt(plain / 4096)) < 0.7


def slopes(y, x):
    """Few binary outcomes in each group, many of them all alike: much is missing."""
    beta = numpyro.param("beta", jnp.array([-1.0, 0.0]))
    sd = numpyro.param("sd", jnp.array([6.0, 7.0]), constraint=constraints.positive)
    with numpyro.plate("groups", len(y)):
        a = numpyro.sample("a", dist.Normal(beta[0], sd[0]))
        b = numpyro.sample("b", dist.Normal(beta[1], sd[1]))
        law = dist.Bernoulli(logits=a[:, None] + b[:, None] * x)
        numpyro.sample("y", law.to_event(1), obs=y)


def slopes_law(params, y, x):
    """The log-likelihood on a grid."""
    beta, sd, z = params["beta"], params["sd"], jnp.linspace(-9, 9, 181)
    weight = dist.Normal().log_prob(z) + jnp.log(z[1] - z[0])
    a, b = beta[0] + sd[0] * z, beta[1] + sd[1] * z

    def group(row):
        signed = (2 * row[0] - 1) * (a[:, None, None] + b[:, None] * row[1])
        terms = -jnp.sum(jnp.logaddexp(0.0, -signed), axis=-1)
        return jax.nn.logsumexp(terms + weight + weight[:, None])

    return jnp.sum(jax.lax.map(group, (y, x)))


def slopes_data():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(20, 6))
    eta = 4 * rng.normal(size=(20, 1)) + (1 + 4 * rng.normal(size=(20, 1))) * x
    return (rng.random((20, 6)) < 1 / (1 + np.exp(-eta))).astype(int), x


@pytest.mark.long
def test_two_hundred_draws_are_enough(optimized):
    """Where Louis's identity gives standard errors that are off by tens of percent, or none.

    About one set of draws in 24 is no fit for proposals, which k-hat then says.
    """
    data = slopes_data()
    problem, params = build_problem(jax.random.key(SEED), slopes, data, {})
    at, config = problem.unconstrain(params), NUTS(num_samples=5, num_warmup=150)

    def law(point):
        return slopes_law(problem.constrain(point), *data)

    exact = jax.jit(lambda v: hessian(jax.grad(law), v)[0])(at)
    truth = np.sqrt(np.diag(np.linalg.inv(-np.asarray(exact))))
    failed, refused, apart = 0, 0, []
    for seed in range(6):
        state = config.init(jax.random.key(SEED + seed), problem, params)
        posteriors = []
        for _ in range(10):
            posterior, state, _ = expectation(config, problem, at, state)
            posteriors.append(posterior)
        components = find(problem, at, posteriors[0])
        motion = find_motion(problem, at, posteriors[0], components)
        moments = [score_moments(problem, some, components, motion) for some in posteriors]
        failed += not louis_information(problem, at, moments).precise
        draws = np.concatenate([np.asarray(some.draws) for some in posteriors], axis=1)
        found = sampled_information(problem, at, draws, components, motion)
        if not found.precise:
            assert "k-hat" in found.reason
            refused += 1
            continue
        assert found.se_noise < 0.05
        se = np.sqrt(np.diagonal(found.replicates, axis1=1, axis2=2))
        error = np.sqrt(7 * np.var(se, axis=0))
        apart.append((np.sqrt(np.diag(found.covariance)) - truth) / error)
    assert failed and refused <= 1
    assert np.sqrt(np.mean(np.square(apart))) < 2 and np.max(np.abs(apart)) < 6


@pytest.mark.long
def test_runs_are_confirmed_on_few_draws(optimized):
    """What is called converged is near the maximum on the grid, in units of the reported error."""
    data = slopes_data()
    config, stopping = NUTS(num_samples=5, num_warmup=150), Stopping(max_draws=200)
    confirmed = 0
    for seed in range(20):  # a run in ten needs no more draws than these
        result = EM(slopes, config, stopping=stopping).run(
            jax.random.key(SEED + seed), *data, progress_bar=False
        )
        if not (result.converged and result.covariance().attrs["method"] == METHOD):
            continue
        confirmed += 1
        problem, x = result.parts.problem, result.parts.x

        def law(point, problem=problem):
            return slopes_law(problem.constrain(point), *data)

        score = np.asarray(jax.jit(jax.grad(law))(x))
        exact = np.asarray(jax.jit(lambda v, law=law: hessian(jax.grad(law), v)[0])(x))
        mcse = np.sqrt(np.diag(result.parts.polish.mcse_x))
        assert np.all(np.abs(np.linalg.solve(-exact, score)) < 6 * mcse)
        found = result.parts.uncertainty().covariance
        truth = constrained_covariance(problem, x, np.linalg.inv(-exact))
        np.testing.assert_allclose(np.sqrt(np.diag(found) / np.diag(truth)), 1.0, atol=0.1)
    assert confirmed


def ridge(y):
    """A narrow curved posterior, to which no Student-t law is near."""
    mu = numpyro.param("mu", 0.0)
    a = numpyro.sample("a", dist.Normal(mu, 1.0))
    b = numpyro.sample("b", dist.Normal(5 * a**2, 0.05))
    numpyro.sample("y", dist.Normal(a + 0 * b, 1.0), obs=y)


def long_walk(y):
    """More latents that depend on one another than importance sampling can do with."""
    scale = numpyro.param("scale", 1.0)
    u = numpyro.sample("u", dist.GaussianRandomWalk(0.5, num_steps=len(y)))
    numpyro.sample("y", dist.Normal(scale * u, 1.0).to_event(1), obs=y)


def regression(y):
    """More parameters than scores are taken apart for."""
    mu = numpyro.param("mu", jnp.zeros(70))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu + z, 1.0).to_event(1), obs=y)


def on_the_ridge(rng):
    a = rng.standard_normal((4, 300))
    return np.stack([a, 5 * a**2 + 0.05 * rng.standard_normal(a.shape)], axis=-1)


@pytest.mark.parametrize(
    "model, args, draws, reason",
    [
        (ridge, (0.5,), on_the_ridge, "Pareto k-hat of"),
        (
            long_walk,
            (np.zeros(40),),
            lambda rng: rng.standard_normal((4, 50, 40)),
            "40 latents depend on one another",
        ),
        (regression, (np.zeros(70),), lambda rng: rng.standard_normal((4, 50, 1)), "70 parameters"),
    ],
)
def test_withheld(model, args, draws, reason):
    problem, params = build_problem(jax.random.key(SEED), model, args, {})
    x, some = problem.unconstrain(params), draws(np.random.default_rng(SEED))
    components = find(problem, x, WeightedDraws.equal(jnp.asarray(some)))
    found = sampled_information(problem, x, some, components, still(x, some[0, 0]))
    assert not found.precise and not found.usable
    assert reason in found.reason
    assert np.all(np.isnan(found.covariance))


def spoiled(how):
    """Louis's identity as it is with too few draws."""

    def louis(problem, x, moments):
        found = louis_information(problem, x, moments)
        if how == "singular":
            return replace(found, reason="not positive definite", replicates=None)
        if how == "noisy":
            return replace(
                found, replicates=found.covariance * np.linspace(0.7, 1.3, 8)[:, None, None]
            )
        return found

    return louis


@pytest.mark.parametrize("how", ["good", "noisy", "singular"])
@pytest.mark.parametrize("heavy", [False, pytest.param(True, marks=pytest.mark.long)])
def test_it_stands_in_exactly_where_louis_is_not_good_enough(monkeypatch, how, heavy):
    """Runs are confirmed with it, and standard errors come from it; or both are withheld."""
    toy = normal_normal(30)
    calls = []

    def sampled(*args):
        calls.append(args)
        found = sampled_information(*args)
        return replace(found, reason="its weights have a Pareto k-hat") if heavy else found

    for module in (ppl_em.algorithms.confirmation, ppl_em.fit.fitted):
        monkeypatch.setattr(module, "louis_information", spoiled(how))
        monkeypatch.setattr(module, "sampled_information", sampled)
    result = EM(toy.model, NUTS(num_warmup=100), stopping=Stopping(max_draws=2000)).run(
        jax.random.key(SEED), progress_bar=False, **toy.data
    )
    uncertainty = result.uncertainty
    assert bool(calls) == (how != "good")
    if heavy and how != "good":
        expected = {"noisy": Status.NOISE_LIMITED, "singular": Status.SINGULAR}
        assert result.status is expected[how]
        assert np.all(np.isnan(uncertainty.covariance))
        assert "by Louis's identity" in uncertainty.reason
        assert f"by {METHOD}, its weights have a Pareto k-hat" in uncertainty.reason
        assert "max_draws" in uncertainty.reason
        return
    assert result.status is Status.CONVERGED
    assert result.covariance().attrs["method"] == ("Louis's identity" if how == "good" else METHOD)
    assert uncertainty.reason == ""
    reference = toy.reference
    assert abs(float(result.params["theta"]) - reference["params"]["theta"]) < 1e-4
    se = float(result.standard_errors()["theta"])
    assert se == pytest.approx(float(reference["standard_errors"]["theta"]), rel=1e-6)
