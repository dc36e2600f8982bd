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

    Inside the loop a message is divided by the sum of the one before, and nothing guards that
    division: the loop is then one fused kernel, several times faster. What follows an impossible
    observation is set to 0 afterwards.
    """
    constant = len(transition) == 1
    whole = transition[0]

    def step(alpha: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
        emit, move = inputs
        scale = jnp.sum(alpha, -1, keepdims=True)
        return _times(alpha, whole if constant else move) * (emit / scale), alpha

    moves = None if constant else transition
    last, before = jax.lax.scan(step, initial, (emission, moves))
    alphas = jnp.concatenate([before, last[None]])
    alphas = jnp.where(jnp.isfinite(alphas), alphas, 0.0)
    scales = jnp.sum(alphas, -1)
    return alphas / jnp.where(scales > 0, scales, 1.0)[..., None], scales


def _floored_log(value: jax.Array) -> jax.Array:
    return jnp.where(value > 0, jnp.log(jnp.where(value > 0, value, 1.0)), LOG_ZERO)


@jax.custom_vjp
def _scaled(initial: jax.Array, transition: jax.Array, emission: jax.Array) -> jax.Array:
    """The sum in scaled probabilities, with the forward-backward algorithm as its gradient."""
    return _scaled_forward(initial, transition, emission)[0]


def _scaled_forward(initial: jax.Array, transition: jax.Array, emission: jax.Array) -> tuple:
    first, move, emit, total = _shifted(initial, transition, emission)
    alphas, scales = _filter(first, move, emit)
    return total + jnp.sum(_floored_log(scales), 0), (move, emit, alphas, scales[1:])


def _scaled_backward(residuals: tuple, cotangent: jax.Array) -> tuple:
    move, emit, alphas, scales = residuals
    constant = len(move) == 1
    whole = move[0]
    weights = emit / jnp.where(scales > 0, scales, 1.0)[..., None]

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
    by_pair = pairs * move * cotangent[..., None, None]
    return (
        alphas[0] * beta * cotangent[..., None],
        by_pair,
        alphas[1:] * betas * cotangent[..., None],
    )


_scaled.defvjp(_scaled_forward, _scaled_backward)
