"""Exact sums over discrete latents against the enumeration of every configuration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SEED
from hypothesis import Phase, example, given, seed, settings
from random_models import Node, Spec, build, configurations, data, log_joints, sites, specs

from ppl_em.discrete import marginalization
from ppl_em.e_step.exact.enumeration import Enumeration
from ppl_em.problem import build_problem

TOP = Node((), 2, (), True, False, True, False)
LEAF = Node(("a",), 2, (0,), True, False, False, True)
FULL = Spec((TOP, LEAF), 3, False, False, True, True, True, 3)
"""A chain whose transitions follow a site outside, which has a leaf in a plate."""

THETA, OTHER = jnp.array([0.4, -0.7]), jnp.array([-0.2, 0.9])


def close(a, b, scale=1.0):
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * scale)


def check(spec: Spec) -> None:
    y = data(spec)
    problem, _ = build_problem(jax.random.key(0), build(spec), (y,), {})
    ours, brute = jax.device_get((_ours(problem), _brute(spec, y)))
    close(ours["log_z"], brute["log_z"])
    close(ours["objective"], brute["log_z"])
    close(ours["parallel"], brute["log_z"])
    close(ours["q"], brute["q"], 1 + abs(brute["q"]))
    close(ours["q_gradient"], brute["q_gradient"], 1 + np.abs(brute["q_gradient"]).max())
    # Fisher's identity
    close(ours["q_score"], ours["score"], 1 + np.abs(ours["score"]).max())
    table = configurations(spec)
    joint, weights = brute["joint"], np.exp(brute["joint"] - brute["log_z"])
    top = int(np.argmax(joint))
    unique = np.sum(joint > joint[top] - 1e-9) == 1
    for name, (size, shape) in sites(spec).items():
        for k in range(size):
            expected = np.tensordot(weights, np.asarray(table[name] == k, float), 1)
            close(np.reshape(ours["probs"][name][..., k], shape), expected)
        if unique:
            chosen = np.reshape(np.argmax(ours["best"][name], -1), shape)
            np.testing.assert_array_equal(chosen, table[name][top])


CHOICES = {"deadline": None, "database": None, "phases": [Phase.explicit, Phase.generate]}


@pytest.mark.slow
@seed(SEED)
@settings(max_examples=3, **CHOICES)
@example(FULL)
@given(specs())
def test_sums_equal_full_enumeration(spec: Spec):
    check(spec)


@pytest.mark.long
@seed(SEED)
@settings(max_examples=40, **CHOICES)
@given(specs())
def test_sums_of_more_models_equal_full_enumeration(spec: Spec):
    check(spec)


@jax.jit
def _ours(problem) -> dict:
    params = {"theta": THETA}
    posterior, _, info = Enumeration().step(problem, params, {})
    factors = problem.log_factors(params, {})

    def q_function(theta):
        return posterior.expected_log_joint(problem, {"theta": theta})

    def marginal(theta):
        return problem.log_joint({"theta": theta}, {})

    value, gradient = jax.value_and_grad(q_function)(OTHER)
    log_z, score = jax.value_and_grad(marginal)(THETA)
    return {
        "log_z": log_z,
        "objective": info.objective,
        "parallel": marginalization.log_normalizer(factors, "sum_parallel"),
        "q": value,
        "q_gradient": gradient,
        "q_score": jax.grad(q_function)(THETA),
        "score": score,
        "probs": marginalization.site_probs(factors),
        "best": marginalization.most_probable(factors),
    }


@jax.jit(static_argnums=0)
def _brute(spec: Spec, y: jax.Array) -> dict:
    joint = log_joints(spec, THETA, y)
    total = jax.nn.logsumexp(joint)
    weights = jnp.exp(joint - total)

    def q_function(theta):
        terms = log_joints(spec, theta, y)
        return jnp.sum(weights * jnp.where(weights > 0, terms, 0.0))

    value, gradient = jax.value_and_grad(q_function)(OTHER)
    return {"joint": joint, "log_z": total, "q": value, "q_gradient": gradient}


@pytest.mark.long
def test_draws_have_the_exact_probabilities():
    """Frequencies of whole configurations within 5 standard errors of their probabilities."""
    spec = FULL
    assert len(configurations(spec)["s"]) < 300
    y = data(spec)
    problem, _ = build_problem(jax.random.key(0), build(spec), (y,), {})
    factors = problem.log_factors({"theta": THETA}, {})
    weights = np.asarray(jax.nn.softmax(log_joints(spec, THETA, y)))
    count = 10_000
    keys = jax.random.split(jax.random.key(SEED), count)
    draws = jax.vmap(lambda key: marginalization.sample(factors, key))(keys)
    table = configurations(spec)
    code, codes, base = np.zeros(count, int), np.zeros(len(weights), int), 1
    for name, (size, _) in sites(spec).items():
        values = np.argmax(draws[name], -1).reshape(count, -1)
        known = np.asarray(table[name]).reshape(len(weights), -1)
        for column in range(known.shape[1]):
            code, codes = code + base * values[:, column], codes + base * known[:, column]
            base *= size
    frequency = np.array([np.mean(code == c) for c in codes])
    error = np.sqrt(weights * (1 - weights) / count) + 1 / count
    assert np.max(np.abs(frequency - weights) / error) < 5
    assert frequency[weights == 0].sum() == 0
