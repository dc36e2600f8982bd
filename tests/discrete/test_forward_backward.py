"""Sums over paths against the algorithm in logarithms, by numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SEED

from ppl_em.discrete import LOG_ZERO, forward_backward

NUM_STATES, NUM_STEPS, NUM_CHAINS = 4, 30, 3


def reference(initial, transition, emission):
    """Log Z and the marginals of first state, pairs and states, of one chain."""
    alphas, betas = [initial], [np.zeros_like(initial)]
    for move, emit in zip(transition, emission, strict=True):
        alphas.append(np.logaddexp.reduce(alphas[-1][:, None] + move, 0) + emit)
    for move, emit in zip(transition[::-1], emission[::-1], strict=True):
        betas.append(np.logaddexp.reduce(move + emit + betas[-1], 1))
    alphas, betas = np.array(alphas), np.array(betas[::-1])
    value = np.logaddexp.reduce(alphas[-1])
    states = np.exp(alphas + betas - value)
    messages = (emission + betas[1:])[:, None, :]
    pairs = np.exp(alphas[:-1, :, None] + transition + messages - value)
    return value, states[0], pairs, states[1:]


def potentials(structure, gap, constant, dtype):
    """Chains in a plate with outliers of `gap` nats in some steps."""
    rng = np.random.default_rng(SEED)
    count = 1 if constant else NUM_STEPS
    moves = rng.dirichlet(np.ones(NUM_STATES), size=(count, NUM_CHAINS, NUM_STATES))
    first = rng.dirichlet(np.ones(NUM_STATES), size=NUM_CHAINS)
    identity = np.eye(NUM_STATES)
    if structure == "left to right":
        moves, first = moves * np.triu(np.ones_like(identity)), first * identity[0]
    if structure == "cycle":
        moves = moves * (identity + np.roll(identity, 1, axis=1))
    with np.errstate(divide="ignore"):
        logs = [np.maximum(np.log(a), LOG_ZERO) for a in (first, moves)]
    shape = (NUM_STEPS, NUM_CHAINS, NUM_STATES)
    outlier = rng.random((NUM_STEPS, 1, 1)) < 0.3
    emission = rng.normal(size=shape) * np.where(outlier, gap, 1.0)
    return [a.astype(dtype) for a in (*logs, emission)]


@jax.jit
def value_and_marginals(inputs):
    def total(inputs):
        return jnp.sum(forward_backward.contract(*inputs, "sum_once"))

    return jax.value_and_grad(total)(tuple(inputs))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("gap", [1.0, 10.0, 100.0, 1e3, 1e5])
@pytest.mark.parametrize("structure", ["full", "left to right", "cycle"])
def test_sums_do_not_underflow(structure, gap, constant, dtype):
    inputs = potentials(structure, gap, constant, dtype)
    value, found = value_and_marginals(inputs)
    first, move, emit = (np.asarray(a, float) for a in inputs)
    move = np.broadcast_to(move, (NUM_STEPS, *move.shape[1:]))
    expected = [reference(first[b], move[:, b], emit[:, b]) for b in range(NUM_CHAINS)]
    total = sum(e[0] for e in expected)
    largest = max(np.abs(e[0]) for e in expected)
    eps = np.finfo(dtype).eps
    assert abs(float(value) - total) < 50 * eps * (NUM_STEPS + NUM_CHAINS * largest)
    # Logarithms of size `largest` carry this many digits, and every step rounds once.
    rounding = 10 * NUM_STEPS * eps * (10 + largest)
    for b, (_, states, pairs, others) in enumerate(expected):
        pairs = pairs.sum(0)[None] if constant else pairs
        assert np.max(np.abs(found[0][b] - states)) < rounding
        assert np.max(np.abs(found[1][:, b] - pairs)) < rounding * (NUM_STEPS if constant else 1)
        assert np.max(np.abs(found[2][:, b] - others)) < rounding


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_what_underflows_and_is_harmless_stays_fast(dtype):
    """A left-to-right chain leaves its first states for good: no need for logarithms."""
    inputs = [jnp.asarray(a) for a in potentials("left to right", 10.0, True, dtype)]
    inputs[2] = jnp.tile(inputs[2], (40, 1, 1))
    assert jnp.all(forward_backward._by_probabilities(*inputs)[1])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_down_up_and_down_again_is_noticed(dtype):
    """Both passes lose the path that stays in state 0; nothing of what is left is not finite."""
    deep = 1.1 * np.log(np.finfo(dtype).tiny)
    first = np.array([0.0, LOG_ZERO])
    move = np.array([[[np.log(0.5), np.log(0.5)], [LOG_ZERO, 0.0]]])
    emission = np.zeros((22, 2))
    emission[[0, 21], 0] = deep
    emission[1:21, 1] = 1.9 * deep / 20
    expected = reference(first, np.repeat(move, 22, 0), emission)
    inputs = [a.astype(dtype)[..., None, :] for a in (first, emission)]
    value, found = value_and_marginals((inputs[0], move.astype(dtype)[:, None], inputs[1]))
    assert abs(float(value) - expected[0]) < 1e3 * np.finfo(dtype).eps * abs(deep)
    assert np.max(np.abs(found[2][:, 0] - expected[3])) < 1e3 * np.finfo(dtype).eps * abs(deep)


def test_an_impossible_sum_has_no_marginals():
    first, move = jnp.array([0.0, LOG_ZERO]), jnp.array([[[0.0, LOG_ZERO], [LOG_ZERO, 0.0]]])
    emission = jnp.array([[LOG_ZERO, 0.0]] * 3)
    value, found = value_and_marginals((first[None], move[:, None], emission[:, None]))
    assert value < LOG_ZERO / 2
    assert all(np.all(np.asarray(part) == 0) for part in found)


def test_second_derivatives_next_to_outliers():
    """Of the sum in logarithms, against differences of marginals."""
    inputs = [jnp.asarray(a) for a in potentials("left to right", 1e3, True, np.float64)]
    direction = jnp.asarray(np.random.default_rng(SEED).normal(size=inputs[2].shape))

    def along(mode, h):
        emission = inputs[2] + h * direction
        return jnp.sum(forward_backward.contract(*inputs[:2], emission, mode))

    second = jax.jit(jax.grad(jax.grad(lambda h: along("sum", h))))(0.0)
    slope = jax.jit(jax.grad(lambda h: along("sum_once", h)))
    h = 1e-4
    expected = (8 * (slope(h) - slope(-h)) - (slope(2 * h) - slope(-2 * h))) / (12 * h)
    assert abs(second - expected) < 1e-6 * (1 + abs(second))
