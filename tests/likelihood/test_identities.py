"""Identities that an exact E-step must satisfy, against brute force and closed forms."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SEED
from small_models import CASES, DISCRETE, GAUSSIAN, Case

from ppl_em import e_step as e_steps
from ppl_em.posterior import Posterior
from ppl_em.problem import Problem, build_problem
from ppl_em.result import LatentPosterior


def table(cases: dict[str, Case]) -> list:
    """Names for `parametrize`; the costlier ones are marked slow."""
    marks = {"latent_class": [pytest.mark.slow], "missing": [pytest.mark.slow]}
    marks["slope"] = [pytest.mark.long]  # blocks of two: `test_evidence` and sleepstudy have them
    return [pytest.param(n, marks=marks.get(n, [])) for n in cases]


class Setting(NamedTuple):
    """A case as the library sees it, at two random values of the unconstrained parameters.

    `library` and `reference` hold what the library and what brute force or a closed form say:
    log-likelihood, gradients, Q and its derivatives.
    """

    case: Case
    problem: Problem
    engine: Any
    here: jax.Array
    there: jax.Array
    posterior: Posterior
    library: dict[str, np.ndarray]
    reference: dict[str, np.ndarray]


@cache
def setting(name: str) -> Setting:
    case = CASES[name]
    keys = jax.random.split(jax.random.key(SEED), 5)
    problem, params = build_problem(keys[0], case.model, case.args, {})
    engine = e_steps.Exact().resolve(keys[1], problem, params)
    x = problem.unconstrain(params)
    here, there = (x + 0.4 * jax.random.normal(key, x.shape) for key in keys[2:4])
    state = engine.init(keys[4], problem, params)

    def step(x: jax.Array) -> tuple:
        return engine.step(problem, problem.constrain(x), state)

    def q_function(there: jax.Array, here: jax.Array) -> jax.Array:
        return step(here)[0].expected_log_joint(problem, problem.constrain(there))

    def library(here: jax.Array, there: jax.Array) -> tuple:
        gradient = jax.grad(q_function)
        complete, mixed = jax.jacobian(gradient, argnums=(0, 1))(here, here)
        posterior, _, info = step(here)
        return posterior, {
            "log_likelihood": info.objective,
            "as_function": engine.log_likelihood(problem, problem.constrain(here), state),
            "q": posterior.expected_log_joint(problem, problem.constrain(there)),
            "q_gradient": gradient(here, here),
            "q_hessian": complete,
            "q_mixed": mixed,
        }

    def log_likelihood(x: jax.Array) -> jax.Array:
        return case.log_likelihood(problem.constrain(x))

    def reference(here: jax.Array) -> dict:
        return {
            "log_likelihood": log_likelihood(here),
            "gradient": jax.grad(log_likelihood)(here),
            "hessian": jax.hessian(log_likelihood)(here),
        }

    posterior, by_library = jax.jit(library)(here, there)
    by_library, by_reference = jax.device_get((by_library, jax.jit(reference)(here)))
    return Setting(case, problem, engine, here, there, posterior, by_library, by_reference)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", table(CASES))
def test_log_likelihood(name):
    s = setting(name)
    expected = s.reference["log_likelihood"]
    np.testing.assert_allclose(s.library["log_likelihood"], expected, rtol=1e-12)
    np.testing.assert_allclose(s.library["as_function"], expected, rtol=1e-12)


@pytest.mark.parametrize("name", table(CASES))
def test_fisher(name):
    """The gradient of Q(. given theta) at theta is that of the log-likelihood."""
    s = setting(name)
    assert relative(s.library["q_gradient"], s.reference["gradient"]) < 1e-8


@pytest.mark.parametrize("name", table(CASES))
def test_oakes(name):
    """d11 Q + d12 Q is the Hessian of the log-likelihood."""
    s = setting(name)
    found = s.library["q_hessian"] + s.library["q_mixed"]
    assert relative(found, s.reference["hessian"]) < 1e-8


@pytest.mark.parametrize("name", table(CASES))
def test_louis(name):
    """Complete minus missing information is the observed one; missing is the variance of scores."""
    s = setting(name)
    missing = score_variance(s)
    assert relative(-s.library["q_hessian"] - missing, -s.reference["hessian"]) < 1e-6
    assert relative(s.library["q_mixed"], missing) < 1e-6


def score_variance(s: Setting) -> np.ndarray:
    """Var of the complete-data score given y: by brute force, or for scores quadratic in u.

    If S_a(u) has gradient g_a and Hessian H_a at the mean of u ~ N(m, V), then
    Cov(S_a, S_b) = g_a' V g_b + tr(H_a V H_b V) / 2.
    """
    if s.case.sites is not None:

        @jax.jit
        def by_configuration(x: jax.Array) -> tuple:
            def log_joints(x: jax.Array) -> jax.Array:
                return s.case.log_joints(s.problem.constrain(x))

            return jax.nn.softmax(log_joints(x)), jax.jacobian(log_joints)(x)

        weights, scores = jax.device_get(by_configuration(s.here))
        return np.cov(scores.T, aweights=weights, ddof=0)

    def log_joint(x: jax.Array, u: jax.Array) -> jax.Array:
        return s.problem.log_joint_unconstrained(s.problem.constrain(x), u)

    @jax.jit
    def variance(x: jax.Array) -> jax.Array:
        zero = jnp.zeros(s.problem.num_latents)
        by_u = jax.grad(log_joint, argnums=1)
        covariance = jnp.linalg.inv(-jax.jacobian(by_u, argnums=1)(x, zero))
        mean = covariance @ by_u(x, zero)
        slope = jax.jacobian(jax.grad(log_joint), argnums=1)
        g, h = slope(x, mean), jax.jacobian(slope, argnums=1)(x, mean)
        return g @ covariance @ g.T + 0.5 * jnp.einsum(
            "aij,bji->ab", h @ covariance, h @ covariance
        )

    return np.asarray(variance(s.here))


@pytest.mark.parametrize("name", table(DISCRETE))
def test_q_and_probs_by_brute_force(name):
    s = setting(name)
    log_joints = jax.jit(lambda x: s.case.log_joints(s.problem.constrain(x)))
    weights = np.asarray(jax.nn.softmax(log_joints(s.here)))
    np.testing.assert_allclose(s.library["q"], weights @ log_joints(s.there), rtol=1e-11)

    params = s.problem.constrain(s.here)
    latents = LatentPosterior(s.problem, params, s.posterior, jax.random.key(SEED))
    configurations = s.case.configurations()
    probs, means = latents.probs(), latents.mean()
    for site, (shape, size) in s.case.sites.items():
        indicator = configurations[site][..., None] == np.arange(size)
        expected = np.tensordot(weights, indicator, axes=1)
        assert probs[site].shape == (*shape, size)
        np.testing.assert_allclose(probs[site], expected, atol=1e-12)
        np.testing.assert_allclose(means[site], expected @ np.arange(size), atol=1e-12)


@pytest.mark.parametrize("name", ["nested", "masked"])
def test_discrete_draws_have_the_posterior_law(name, rng_key):
    s = setting(name)
    params = s.problem.constrain(s.here)
    latents = LatentPosterior(s.problem, params, s.posterior, rng_key)
    draws, probs = latents.sample(rng_key, 2000), latents.probs()
    for site, (shape, size) in s.case.sites.items():
        assert draws[site].shape == (2000, *shape)
        found = (np.asarray(draws[site])[..., None] == np.arange(size)).mean(axis=0)
        error = np.sqrt(probs[site] * (1 - probs[site]) / 2000)
        assert np.all(np.abs(found - probs[site]) <= 4.5 * error + 1e-12)


@pytest.mark.parametrize("name", table(GAUSSIAN))
def test_gaussian_posterior_by_dense_algebra(name):
    """The posterior is N(V g(0), V); Q is the integral of the log-joint over it."""
    s = setting(name)

    def density(u: jax.Array, x: jax.Array) -> jax.Array:
        return s.problem.log_joint_unconstrained(s.problem.constrain(x), u)

    @jax.jit
    def dense(here: jax.Array, there: jax.Array) -> tuple:
        zero = jnp.zeros(s.problem.num_latents)
        covariance = jnp.linalg.inv(-jax.hessian(density)(zero, here))
        mean = covariance @ jax.grad(density)(zero, here)
        curvature = jax.hessian(density)(mean, there)
        q = density(mean, there) + 0.5 * jnp.sum(curvature * covariance)
        return mean, covariance, curvature, q

    mean, covariance, curvature, q = jax.device_get(dense(s.here, s.there))
    np.testing.assert_allclose(s.posterior.center, mean, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(s.library["q"], q, rtol=1e-11)
    away = np.asarray(s.posterior.points() - s.posterior.center)
    coupled = np.abs(curvature) > 1e-12
    moments = away.T @ away / len(away)
    np.testing.assert_allclose(moments[coupled], covariance[coupled], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", table(GAUSSIAN))
def test_the_finest_blocks_are_found(name):
    """One block for each group in long format, whatever the index says; also if crossed."""
    s = setting(name)
    (part,) = s.engine.parts
    assert part.structure.num_blocks == s.case.num_blocks
    assert part.structure.colors.shape == (s.problem.num_latents,)
