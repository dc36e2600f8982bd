"""Small factorizations against LAPACK's and against extended precision, with derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppl_em.posterior import Gaussian
from ppl_em.structure import Blocks
from ppl_em.util import Static, small_matrices
from ppl_em.util.small_matrices import SMALL

cholesky = jax.jit(small_matrices.cholesky)
inverse_lower = jax.jit(small_matrices.inverse_lower)
solve = jax.jit(small_matrices.solve)
solve_lower = jax.jit(small_matrices.solve_lower)
solve_lower_transposed = jax.jit(small_matrices.solve_lower_transposed)

SIZES = (1, 2, 3, 5, 8, 9)
"""Rows; the last are LAPACK's."""

assert SIZES[-2] == SMALL


def positive(size: int, batch: tuple[int, ...] = (4, 3)) -> np.ndarray:
    """Positive definite matrices, (*batch, size, size)."""
    half = np.random.default_rng(size).normal(size=(*batch, size, 2 * size))
    return half @ np.swapaxes(half, -1, -2)


def ill_conditioned(size: int) -> np.ndarray:
    """Hilbert's matrix; one with units 1e-150 to 1e150; one next to singular; (3, size, size)."""
    i = np.arange(size)
    units = 10.0 ** np.linspace(-150, 150, size)
    near = np.ones((size, size)) + 1e-13 * np.eye(size)
    return np.stack([1 / (1 + i[:, None] + i), np.outer(units, units) * positive(size, ()), near])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_factors_multiply_to_the_matrix(size, dtype):
    cases = positive(size)
    if dtype == np.float64:
        cases = np.concatenate([cases.reshape(-1, size, size), ill_conditioned(size)])
    matrix = jnp.asarray(cases, dtype)
    tril = cholesky(matrix)
    assert tril.dtype == dtype
    assert np.all(np.triu(tril, 1) == 0)
    wide, exact = np.asarray(tril, np.longdouble), np.asarray(matrix, np.longdouble)
    diagonal = np.sqrt(np.diagonal(exact, axis1=-2, axis2=-1))
    error = np.abs(wide @ np.swapaxes(wide, -1, -2) - exact)
    limit = (size + 2) * np.finfo(dtype).eps  # Higham (2002), theorem 10.3
    assert np.all(error <= limit * diagonal[..., :, None] * diagonal[..., None, :])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_solutions_fit_their_systems(size, dtype):
    rng = np.random.default_rng(0)
    matrix = np.concatenate([positive(size).reshape(-1, size, size), ill_conditioned(size)[[0]]])
    tril = cholesky(jnp.asarray(matrix, dtype))[:-1] if dtype == np.float32 else cholesky(matrix)
    right = jnp.asarray(rng.normal(size=(*tril.shape[:-1], 2)), dtype)
    wide = np.asarray(tril, np.longdouble)
    upper = np.swapaxes(wide, -1, -2)
    for left, found in (
        (wide, solve_lower(tril, right)),
        (upper, solve_lower_transposed(tril, right)),
    ):
        assert found.dtype == dtype
        error = np.abs(left @ np.asarray(found, np.longdouble) - np.asarray(right))
        limit = (size + 1) * np.finfo(dtype).eps * (np.abs(left) @ np.abs(found))
        assert np.all(error <= limit)  # theorem 8.5: each row is solved as it should
    inverse = np.asarray(inverse_lower(tril), np.longdouble)
    assert np.all(np.triu(inverse, 1) == 0)
    limit = (size + 1) * np.finfo(dtype).eps * (np.abs(wide) @ np.abs(inverse))
    assert np.all(np.abs(wide @ inverse - np.eye(size)) <= limit)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_elimination_takes_the_largest_pivot(size, dtype):
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(50, size, size))
    if size > 1:
        matrix[:, 0, 0] = 1e-30 if dtype == np.float64 else 0.0  # no pivot
    matrix, right = jnp.asarray(matrix, dtype), jnp.asarray(rng.normal(size=(50, size, 2)), dtype)
    found = solve(matrix, right)
    assert found.dtype == dtype
    wide = np.asarray(matrix, np.longdouble)
    error = np.abs(wide @ np.asarray(found, np.longdouble) - np.asarray(right))
    scale = np.linalg.norm(matrix, axis=(-2, -1)) * np.linalg.norm(found, axis=(-2, -1))
    # Gauss-Jordan's residual has the condition in it where the matrix is far from diagonal.
    condition = np.linalg.cond(np.asarray(matrix, float))
    assert np.all(
        np.max(error, axis=(-2, -1)) <= 8 * size * np.finfo(dtype).eps * scale * condition
    )
    assert np.median(np.max(error, axis=(-2, -1)) / scale) <= size * np.finfo(dtype).eps


@pytest.mark.parametrize("size", SIZES)
def test_only_what_is_not_positive_definite_is_nan(size):
    good = positive(size, (4,))
    bad = good.copy()
    bad[1] = -bad[1]
    bad[2, -1, -1] = -1.0
    bad[3] = np.ones((size, size)) if size > 1 else 0.0  # semidefinite
    found, lapack = cholesky(bad), jnp.linalg.cholesky(bad)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(lapack))
    np.testing.assert_array_equal(
        np.isnan(found[1:]), np.broadcast_to(np.tri(size), (3, size, size))
    )
    np.testing.assert_array_equal(found[0], cholesky(good)[0])


def scalar(chol, lower, upper, general):
    """A function of one vector in which all that is tested here has a part."""

    def value(x, matrix, right):
        size = matrix.shape[-1]
        tril = chol(matrix * x[0] ** 2 + jnp.eye(size) * jnp.exp(x[1]))
        half = lower(tril, right * x[2] + x[3])
        moved = upper(tril, jnp.sin(half))
        other = general(matrix - x[1] * jnp.eye(size), jnp.cos(moved))
        return jnp.sum(jnp.log(jnp.diagonal(tril, axis1=-2, axis2=-1))) + jnp.sum(
            half**2 + jnp.cos(moved) + 0.1 * other
        )

    return value


def lapack(transposed):
    return lambda tril, right: jax.lax.linalg.triangular_solve(
        tril, right, left_side=True, lower=True, transpose_a=transposed
    )


OURS = scalar(cholesky, solve_lower, solve_lower_transposed, solve)
LAPACK = scalar(jnp.linalg.cholesky, lapack(False), lapack(True), jnp.linalg.solve)


@pytest.mark.parametrize("size", [1, 2, *(pytest.param(k, marks=pytest.mark.long) for k in (3, 8))])
def test_derivatives_are_those_of_lapack(size):
    matrix, rng = positive(size, (3,)), np.random.default_rng(2)
    right, x = rng.normal(size=(3, size, 2)), jnp.array([1.0, 0.1, 0.2, 0.3])

    def all_orders(function):
        """Value, gradients in everything, Hessian as algorithms take it, forward over reverse."""
        gradient = jax.grad(function)

        def columns(x):
            def column(d):
                return jax.jvp(lambda x: gradient(x, matrix, right), (x,), (d,))[1]

            return jax.lax.map(column, jnp.eye(4), batch_size=4)

        return (
            jax.jit(jax.value_and_grad(function, (0, 1, 2)))(x, matrix, right),
            jax.jit(columns)(x),
            jax.jit(jax.hessian(lambda x: function(x, matrix, right)))(x),
        )

    ours, theirs = all_orders(OURS), all_orders(LAPACK)
    limit = 1e3 * np.finfo(float).eps * np.max(np.linalg.cond(matrix))
    for found, right_one in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if found.shape == matrix.shape:  # of a symmetric matrix: only the sum of a pair counts
            found, right_one = (a + jnp.swapaxes(a, -1, -2) for a in (found, right_one))
        assert jnp.max(jnp.abs(found - right_one)) <= limit * jnp.max(jnp.abs(right_one))


def test_third_derivative_and_reverse_over_reverse():
    def log_det(x):
        matrix = jnp.array([[jnp.exp(x), x], [x, 2.0]])
        return jnp.sum(jnp.log(jnp.diagonal(cholesky(matrix))))

    def by_hand(x):
        return 0.5 * jnp.log(2 * jnp.exp(x) - x**2)

    def orders(function):
        third, second = jax.grad(jax.grad(jax.grad(function))), jax.jacrev(jax.jacrev(function))
        return jax.jit(lambda x: jnp.array([third(x), second(x)]))(0.5)

    np.testing.assert_allclose(orders(log_det), orders(by_hand), rtol=1e-12)


@pytest.mark.parametrize("size", [SMALL, SMALL + 1])
def test_second_derivatives_of_blocks_call_no_lapack(size):
    index = np.arange(3 * size).reshape(3, size)
    blocks = Blocks(Static(index))
    precision = jnp.asarray(positive(size, (3,)))

    def value(x):
        u = jnp.full(blocks.index.value.size, x[1])
        law = Gaussian.around(blocks, precision * jnp.exp(x[0]), u, jnp.sin(u))
        return law.log_density(u) + jnp.sum(law.points() ** 2)

    program = jax.jit(jax.hessian(value)).lower(jnp.ones(2)).as_text()
    assert ("lapack" in program) == (size > SMALL)
