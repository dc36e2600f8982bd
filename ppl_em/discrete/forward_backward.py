"""Sum over the paths of a Markov chain of discrete states: the inner part of a `scan`.

On a CPU a sequential O(T K^2) scan; on accelerators a product of matrices in pairs, O(T K^3) work
in O(log T) steps.

References
----------
Rabiner (1989), A tutorial on hidden Markov models, Proceedings of the IEEE 77, section III and V
(scaling); Sarkka and Garcia-Fernandez (2021), Temporal parallelization of Bayesian smoothers,
IEEE Transactions on Automatic Control 66.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppl_em.discrete import elimination
from ppl_em.discrete.elimination import LOG_ZERO

Step = Callable[[jax.Array, jax.Array, int], jax.Array]
"""A reduction with a random key: key, array, negative axis."""


def contract(
    initial: jax.Array,
    transition: jax.Array,
    emission: jax.Array,
    mode: str,
    rng_key: jax.Array | None = None,
) -> jax.Array:
    """Sum, maximise or sample over all paths of a chain.

    Parameters
    ----------
    initial
        Log-potential of the first state, shape (*batch, K).
    transition
        Log-potentials from a state (second last axis) to the next (last axis), shape
        (T, *batch, K, K), or (1, *batch, K, K) if the same at every step.
    emission
        Log-potentials of the states after the first, shape (T, *batch, K).
    mode
        `"sum"`, `"sum_parallel"`, `"sum_once"` (for one gradient only, the fastest), `"max"` or
        `"sample"`.
    rng_key
        For `"sample"`.

    Returns
    -------
    jax.Array
        Log of the sum over paths, shape (*batch,); its gradients hold the marginals of each
        potential, or a one-hot path for `"max"` and `"sample"`.
    """
    batch = jnp.broadcast_shapes(initial.shape[:-1], transition.shape[1:-2], emission.shape[1:-1])
    size, length = initial.shape[-1], emission.shape[0]
    initial = jnp.broadcast_to(initial, (*batch, size))
    emission = jnp.broadcast_to(emission, (length, *batch, size))
    transition = jnp.broadcast_to(transition, (len(transition), *batch, size, size))
    if mode == "sum_parallel":
        return _parallel(initial, transition, emission)
    if mode == "sum_once":
        return _scaled(initial, transition, emission)
    if mode == "sum":
        return _sequential(initial, transition, emission, lambda _, a, i: elimination.log_sum(a, i))
    if mode == "max":
        return _sequential(initial, transition, emission, lambda _, a, i: elimination.maximum(a, i))
    return _sequential(initial, transition, emission, elimination.drawn, rng_key)


def _sequential(
    initial: jax.Array,
    transition: jax.Array,
    emission: jax.Array,
    reduce: Step,
    rng_key: jax.Array | None = None,
) -> jax.Array:
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    keys = jax.random.split(rng_key, len(emission) + 1)
    constant = len(transition) == 1

    def step(alpha: jax.Array, inputs: tuple) -> tuple[jax.Array, None]:
        key, emit, move = inputs
        move = transition[0] if constant else move
        return reduce(key, alpha[..., :, None] + move, -2) + emit, None

    moves = None if constant else transition
    alpha, _ = jax.lax.scan(step, initial, (keys[1:], emission, moves))
    return reduce(keys[0], alpha, -1)


def _parallel(initial: jax.Array, transition: jax.Array, emission: jax.Array) -> jax.Array:
    """Multiply neighbouring matrices in pairs until one is left."""
    matrices = transition + emission[..., None, :]
    while len(matrices) > 1:
        odd = matrices[len(matrices) - 1 :] if len(matrices) % 2 else matrices[:0]
        left, right = matrices[: len(matrices) - len(odd) : 2], matrices[1::2]
        joined = elimination.log_sum(left[..., :, :, None] + right[..., None, :, :], -2)
        matrices = jnp.concatenate([joined, odd])
    last = elimination.log_sum(initial[..., :, None] + matrices[0], -2)
    return elimination.log_sum(last, -1)


def _shifted(initial: jax.Array, transition: jax.Array, emission: jax.Array) -> tuple:
    """Potentials scaled so that the largest entry of each is one, and the logs of the scales."""
    shifts = [
        jnp.max(a, axis, keepdims=True)
        for a, axis in ((initial, -1), (transition, (-2, -1)), (emission, -1))
    ]
    scaled = [jnp.exp(a - s) for a, s in zip((initial, transition, emission), shifts, strict=True)]
    moves = shifts[1][..., 0, 0]
    steps = len(emission) // len(transition)
    total = shifts[0][..., 0] + jnp.sum(moves, 0) * steps + jnp.sum(shifts[2][..., 0], 0)
    return (*scaled, total)


def _times(vector: jax.Array, matrix: jax.Array) -> jax.Array:
    """Row vectors (..., K) times matrices (..., K, K); fused rather than a call for small K."""
    if vector.shape[-1] > 32:
        return jnp.einsum("...i,...ij->...j", vector, matrix)
    return jnp.sum(vector[..., :, None] * matrix, axis=-2)


def _filter(initial: jax.Array, transition: jax.Array, emission: jax.Array) -> tuple:
    """Normalised forward messages of all steps and their normalisers, in probabilities.

    What underflows is replaced by more than it was, so that no message is too small. Nothing
    guards the division: the loop is then one fused kernel, several times faster.
    """
    constant = len(transition) == 1
    whole = transition[0]
    floor = 4 * (initial.shape[-1] + 1) * jnp.finfo(initial.dtype).tiny

    def step(alpha: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
        emit, move = inputs
        inverse = 1 / jnp.sum(alpha, -1, keepdims=True)
        return _times(alpha * inverse, whole if constant else move) * emit + floor, alpha

    moves = None if constant else transition
    last, before = jax.lax.scan(step, initial, (emission, moves))
    alphas = jnp.concatenate([before, last[None]])
    scales = jnp.sum(alphas, -1)
    return alphas / scales[..., None], scales


class _Sum(NamedTuple):
    """Log of the sum over paths, (*batch,), and its derivatives in the three potentials."""

    value: jax.Array
    initial: jax.Array
    transition: jax.Array
    emission: jax.Array


@jax.custom_vjp
def _scaled(initial: jax.Array, transition: jax.Array, emission: jax.Array) -> jax.Array:
    """The sum over paths, with the forward-backward algorithm as its gradient."""
    return _sum_and_marginals(initial, transition, emission).value


def _scaled_forward(initial: jax.Array, transition: jax.Array, emission: jax.Array) -> tuple:
    found = _sum_and_marginals(initial, transition, emission)
    return found.value, found


def _scaled_backward(found: _Sum, cotangent: jax.Array) -> tuple:
    return (
        found.initial * cotangent[..., None],
        found.transition * cotangent[..., None, None],
        found.emission * cotangent[..., None],
    )


_scaled.defvjp(_scaled_forward, _scaled_backward)


def _sum_and_marginals(initial: jax.Array, transition: jax.Array, emission: jax.Array) -> _Sum:
    """By probabilities where they hold, else by their logarithms.

    The choice is a loop of no turn or one: under `vmap`, `lax.cond` would always do both.
    """
    found, good = _by_probabilities(initial, transition, emission)

    def by_logs(chosen: tuple) -> tuple:
        found, good = chosen
        safe = _by_logs(initial, transition, emission)
        each = good[..., None]
        holds = _Sum(good, each, each[..., None], each)
        return jax.tree.map(jnp.where, holds, found, safe), jnp.ones_like(good)

    return jax.lax.while_loop(lambda chosen: ~jnp.all(chosen[1]), by_logs, (found, good))[0]


def _by_probabilities(
    initial: jax.Array, transition: jax.Array, emission: jax.Array
) -> tuple[_Sum, jax.Array]:
    """The sum in scaled probabilities, and whether nothing that underflows counts, (*batch,).

    Underflow only raises the forward messages, see `_filter`, and lowers the backward ones. So
    the sum by the first is an upper bound, that by the second a lower one, and both are right if
    they agree: if the two messages of the first state have a product of one.
    """
    first, move, emit, total = _shifted(initial, transition, emission)
    alphas, scales = _filter(first, move, emit)
    constant = len(move) == 1
    whole = move[0]
    weights = emit / scales[1:, ..., None]

    def step(beta: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
        weight, matrix = inputs
        matrix = whole if constant else matrix
        return _times(weight * beta, jnp.swapaxes(matrix, -1, -2)), beta

    inputs = (weights, None if constant else move)
    beta, betas = jax.lax.scan(step, jnp.ones_like(alphas[0]), inputs, reverse=True)
    messages = weights * betas
    if constant:
        pairs = jnp.einsum("t...i,t...j->...ij", alphas[:-1], messages)[None]
    else:
        pairs = alphas[:-1, ..., :, None] * messages[..., None, :]
    at_first = alphas[0] * beta
    rounding = 16 * jnp.finfo(beta.dtype).eps * (len(emission) + 10)
    good = jnp.abs(jnp.sum(at_first, -1) - 1) < rounding
    value = total + jnp.sum(jnp.log(scales), 0)
    return _Sum(value, at_first, pairs * move, alphas[1:] * betas), good


def _by_logs(initial: jax.Array, transition: jax.Array, emission: jax.Array) -> _Sum:
    """The same in logarithms, several times slower; derivatives of an impossible sum are 0."""
    constant = len(transition) == 1
    whole = transition[0]
    inputs = (emission, None if constant else transition)

    def forward(alpha: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
        emit, move = inputs
        move = whole if constant else move
        return elimination.log_sum(alpha[..., :, None] + move, -2) + emit, alpha

    def backward(beta: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
        emit, move = inputs
        move = whole if constant else move
        return elimination.log_sum((emit + beta)[..., None, :] + move, -1), beta

    last, alphas = jax.lax.scan(forward, initial, inputs)
    beta, betas = jax.lax.scan(backward, jnp.zeros_like(initial), inputs, reverse=True)
    value = elimination.log_sum(last, -1)

    def shares(logs: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        """Probabilities, from logarithms that are normalised at each step."""
        level = jax.nn.logsumexp(logs, axes, keepdims=True)
        possible = jnp.expand_dims(value > LOG_ZERO / 2, axes)
        return jnp.where(possible, jnp.exp(logs - level), 0.0)

    def pair(alpha: jax.Array, inputs: tuple) -> jax.Array:
        move, message = inputs
        return shares(alpha[..., :, None] + move + message[..., None, :], (-2, -1))

    messages = emission + betas
    if constant:

        def add(total: jax.Array, inputs: tuple) -> tuple[jax.Array, None]:
            alpha, message = inputs
            return total + pair(alpha, (whole, message)), None

        pairs = jax.lax.scan(add, jnp.zeros_like(whole), (alphas, messages))[0][None]
    else:
        pairs = pair(alphas, (transition, messages))
    after = jnp.concatenate([alphas[1:], last[None]]) + betas
    return _Sum(value, shares(initial + beta, (-1,)), pairs, shares(after, (-1,)))
