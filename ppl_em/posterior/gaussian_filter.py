"""Chains of Gaussian states by their transitions: right for state variances down to zero.

A precision has entries 1 / variance, beside which all else loses its digits as the variance goes
to zero. Here the states follow u_t = A_t u_(t-1) + b_t + e_t with e_t ~ N(0, Q_t), and are seen
through L_t' u_t = y_t + noise of variance one: Kalman's filter, with covariances in Joseph's
form, which are sums of squares.

References
----------
Anderson & Moore (1979), Optimal Filtering, chapters 3 and 7 (the filter, fixed-interval
smoothing); Bucy & Joseph (1968), Filtering for Stochastic Processes (the update).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppl_em.posterior.gaussian_chain import GaussianChain, mul, transpose
from ppl_em.posterior.linalg import inverse_transpose, log_det
from ppl_em.structure import Chain
from ppl_em.util import cholesky


class Transitions(NamedTuple):
    """Time in front of B chains: `move` A_t (T, B, k, k), `shift` b_t (T, B, k).

    `root` (T, B, k, k) is a root of Q_t, where small variances stand apart from large ones.
    """

    move: jax.Array
    shift: jax.Array
    root: jax.Array


class Sightings(NamedTuple):
    """What is seen of block t: `tril` L_t (T, B, k, k), and a point where `rest` is left of it.

    The log-density of the data given the states is a constant minus half the square of
    L_t' (u_t - place_t) - rest_t, both (T, B, k).
    """

    tril: jax.Array
    place: jax.Array
    rest: jax.Array


def filtered(
    chain: Chain, here: jax.Array, transitions: Transitions, sightings: Sightings
) -> tuple[jax.Array, GaussianChain]:
    """Log-density of what is seen, up to its constant, and the law of the states given it.

    `here` (D,) is the origin of all coordinates.
    """
    one = jnp.eye(chain.block_size, dtype=here.dtype)

    def step(before: tuple, inputs: tuple) -> tuple:
        mean, spread = before
        (move, shift, own), (tril, place, rest) = inputs
        mean = mul(move, mean[..., None])[..., 0] + shift
        ahead = mul(mul(move, spread), transpose(move)) + mul(own, transpose(own))
        seen = mul(ahead, tril)
        scale = cholesky(one + mul(transpose(tril), seen))
        root = inverse_transpose(scale)
        miss = rest + mul(transpose(tril), (place - mean)[..., None])[..., 0]
        noise = mul(transpose(root), miss[..., None])
        value = -0.5 * jnp.sum(noise**2) - log_det(scale)
        half = mul(seen, root)
        gain = mul(half, transpose(root))
        left = one - mul(gain, transpose(tril))
        spread = mul(mul(left, ahead), transpose(left)) + mul(gain, transpose(gain))
        after = mean + mul(half, noise)[..., 0]
        return (after, spread), (value, mean, ahead, after, spread)

    start = (jnp.zeros_like(transitions.shift[0]), jnp.zeros_like(transitions.root[0]))
    found: tuple = jax.lax.scan(step, start, (transitions, sightings))[1]
    values, ahead_mean, ahead, mean, spread = found
    law = _smoothed(chain, here, transitions, ahead_mean, ahead, mean, spread)
    return jnp.sum(values), law


def _smoothed(
    chain: Chain,
    here: jax.Array,
    transitions: Transitions,
    ahead_mean: jax.Array,
    ahead: jax.Array,
    mean: jax.Array,
    spread: jax.Array,
) -> GaussianChain:
    """Each block given the one after it, and the means given all."""
    one = jnp.eye(chain.block_size, dtype=here.dtype)
    move = transitions.move[1:]
    gain = transpose(_cholesky_solve(semi_cholesky(ahead[1:]), mul(move, spread[:-1])))
    left = one - mul(gain, move)
    # A root of the sum by QR: small rows keep their digits, as they would not in the sum itself.
    halves = jnp.concatenate(
        [mul(left, semi_cholesky(spread[:-1])), mul(gain, transitions.root[1:])], axis=-1
    )
    triangle = transpose(jnp.linalg.qr(transpose(halves), mode="r"))
    triangle *= jnp.where(_diagonal(triangle) < 0, -1.0, 1.0)[..., None, :]
    root = jnp.concatenate([triangle, semi_cholesky(spread[-1:])])
    gain = jnp.concatenate([gain, jnp.zeros_like(spread[-1:])])

    def backward(after: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
        gain, mean, ahead_mean = inputs
        mean = mean + mul(gain, (after - ahead_mean)[..., None])[..., 0]
        return mean, mean

    inputs = (gain, mean, jnp.concatenate([ahead_mean[1:], mean[-1:]]))
    means: jax.Array = jax.lax.scan(backward, mean[-1], inputs, reverse=True)[1]
    identity = jnp.broadcast_to(one, root.shape)
    tril = transpose(semi_solve(root, identity))
    return GaussianChain(here + chain.join(jnp.moveaxis(means, 0, 1)), tril, root, gain, chain)


def semi_cholesky(matrix: jax.Array) -> jax.Array:
    """Lower triangular root of matrices (..., k, k) that are positive semidefinite.

    A pivot that is nothing but rounding is zero, and so is its column.
    """
    size = matrix.shape[-1]
    small = 8 * size * jnp.finfo(matrix.dtype).eps
    whole, columns = _diagonal(matrix), []
    for j in range(size):
        pivot = matrix[..., j, j]
        good = pivot > small * whole[..., j]
        root = jnp.sqrt(jnp.where(good, pivot, 1.0))
        below = jnp.arange(size) >= j
        column = jnp.where(below & good[..., None], matrix[..., :, j] / root[..., None], 0.0)
        matrix = matrix - column[..., :, None] * column[..., None, :]
        columns.append(column)
    return jnp.stack(columns, axis=-1)


def semi_solve(tril: jax.Array, right: jax.Array, transposed: bool = False) -> jax.Array:
    """One solution of triangular systems with right sides (..., k, n), 0 where pivots are 0."""
    size = tril.shape[-1]
    matrix = transpose(tril) if transposed else tril
    rows: dict[int, jax.Array] = {}
    for j in reversed(range(size)) if transposed else range(size):
        left = right[..., j, :]
        for i, row in rows.items():
            left = left - matrix[..., j, i, None] * row
        pivot = tril[..., j, j, None]
        rows[j] = jnp.where(pivot > 0, left / jnp.where(pivot > 0, pivot, 1.0), 0.0)
    return jnp.stack([rows[j] for j in range(size)], axis=-2)


def _cholesky_solve(tril: jax.Array, right: jax.Array) -> jax.Array:
    return semi_solve(tril, semi_solve(tril, right), transposed=True)


def _diagonal(matrix: jax.Array) -> jax.Array:
    return jnp.diagonal(matrix, axis1=-2, axis2=-1)
