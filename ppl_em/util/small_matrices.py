"""Factors of many small matrices at once, written out over the batch.

LAPACK is called once for each matrix of a batch, and derivatives by columns batch these calls
again. Up to `SMALL` rows, plain operations on the whole batch are faster, most of all in second
derivatives, and every processor's pool of threads does them in the same order. Larger matrices go
to LAPACK.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

SMALL = 8
"""Rows up to which a factorization is written out; programs grow with their square."""


def cholesky(matrix: jax.Array) -> jax.Array:
    """Lower factors of symmetric matrices (..., k, k); NaN in those not positive definite."""
    if matrix.shape[-1] > SMALL:
        return jnp.linalg.cholesky(matrix)
    return _kept(_cholesky(_kept((matrix + _t(matrix)) / 2)))


def solve_lower(tril: jax.Array, right: jax.Array) -> jax.Array:
    """L^-1 right, for lower triangular L (..., k, k) and `right` (..., k, n)."""
    if tril.shape[-1] > SMALL:
        return _lapack_solve(tril, right, transposed=False)
    return _kept(_solve_lower(*_kept((tril, right))))


def solve_lower_transposed(tril: jax.Array, right: jax.Array) -> jax.Array:
    """L^-T right, for lower triangular L (..., k, k) and `right` (..., k, n)."""
    if tril.shape[-1] > SMALL:
        return _lapack_solve(tril, right, transposed=True)
    return _kept(_solve_upper(*_kept((_t(tril), right))))


def inverse_lower(tril: jax.Array) -> jax.Array:
    """Of lower triangular matrices (..., k, k)."""
    return solve_lower(tril, _identity(tril))


def solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """Linear systems (..., k, k) with right-hand sides (..., k, n), by elimination with pivots."""
    if matrix.shape[-1] > SMALL:
        return jnp.linalg.solve(matrix, right)
    return _kept(_solve(*_kept((matrix, right))))


@jax.custom_jvp
def _cholesky(matrix: jax.Array) -> jax.Array:
    """Column by column; what is left of the matrix has lost those before."""
    rest, columns = matrix, []
    for j in range(matrix.shape[-1]):
        pivot = rest[..., :1, 0]
        root = jnp.sqrt(jnp.where(pivot > 0, pivot, jnp.nan))
        below = rest[..., 1:, 0] / root
        above = jnp.zeros((*root.shape[:-1], j), root.dtype)
        columns.append(jnp.concatenate([above, root, below], axis=-1))
        rest = rest[..., 1:, 1:] - below[..., :, None] * below[..., None, :]
    # A pivot that is NaN makes all later ones so.
    failed = jnp.isnan(root)[..., None]
    return jnp.tril(jnp.where(failed, jnp.nan, jnp.stack(columns, axis=-1)))


@_cholesky.defjvp
def _cholesky_jvp(primals: tuple, tangents: tuple) -> tuple:
    """L' = L F, where F is the lower half of L^-1 A' L^-T (Murray 2016, arXiv:1602.07527)."""
    tril = _cholesky(*primals)
    inverse = _solve_lower(tril, _identity(tril))
    size = tril.shape[-1]
    half = np.tril(np.ones((size, size)), -1) + np.eye(size) / 2
    inside = _mul(_mul(inverse, tangents[0]), _t(inverse))
    return tril, _mul(tril, inside * jnp.asarray(half, tril.dtype))


def _substitute(triangle: jax.Array, right: jax.Array, order: range) -> jax.Array:
    """Solve for one row after the other, in `order`."""
    rows: dict[int, jax.Array] = {}
    for i in order:
        row = right[..., i, :]
        for j, known in rows.items():
            row = row - triangle[..., i, j, None] * known
        rows[i] = row / triangle[..., i, i, None]
    return jnp.stack([rows[i] for i in sorted(rows)], axis=-2)


@jax.custom_jvp
def _solve_lower(tril: jax.Array, right: jax.Array) -> jax.Array:
    return _substitute(tril, right, range(tril.shape[-1]))


@jax.custom_jvp
def _solve_upper(triu: jax.Array, right: jax.Array) -> jax.Array:
    return _substitute(triu, right, range(triu.shape[-1])[::-1])


@jax.custom_jvp
def _solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """Gauss-Jordan: the pivot's row goes first, is used on all others, and then last."""
    size = matrix.shape[-1]
    batch = jnp.broadcast_shapes(matrix.shape[:-2], right.shape[:-2])
    both = (jnp.broadcast_to(a, (*batch, *a.shape[-2:])) for a in (matrix, right))
    rows = jnp.concatenate(list(both), axis=-1)
    for j in range(size):
        candidates = jnp.abs(rows[..., : size - j, 0])
        best = jnp.argmax(candidates, axis=-1, keepdims=True)
        chosen = jnp.arange(size) == best
        pivot = jnp.sum(jnp.where(chosen[..., None], rows, 0.0), axis=-2, keepdims=True)
        pivot = pivot[..., 1:] / pivot[..., :1]
        others = jnp.where(chosen[..., None], rows[..., :1, :], rows)[..., 1:, :]
        rest = others[..., 1:] - others[..., :1] * pivot
        rows = jnp.concatenate([rest, pivot], axis=-2)
    return rows


def _solve_jvp(solver: Callable, primals: tuple, tangents: tuple) -> tuple:
    """x' = A^-1 (b' - A' x), with the inverse: one product instead of a substitution."""
    matrix, right = primals
    solution = solver(matrix, right)
    inverse = solver(matrix, _identity(matrix))
    return solution, _mul(inverse, tangents[1] - _mul(tangents[0], solution))


for _solver in (_solve_lower, _solve_upper, _solve):
    _solver.defjvp(partial(_solve_jvp, _solver))


_kept = jax.lax.optimization_barrier


def _mul(left: jax.Array, right: jax.Array) -> jax.Array:
    """Products (..., i, j) by (..., j, k): a sum, which is fused with what is around it."""
    return jnp.sum(left[..., :, :, None] * right[..., None, :, :], axis=-2)


def _t(matrix: jax.Array) -> jax.Array:
    return jnp.swapaxes(matrix, -1, -2)


def _identity(matrix: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)


def _lapack_solve(tril: jax.Array, right: jax.Array, transposed: bool) -> jax.Array:
    return jax.lax.linalg.triangular_solve(
        tril, right, left_side=True, lower=True, transpose_a=transposed
    )
