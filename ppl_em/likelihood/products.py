"""The information of many parameters, which is never written down: its products with vectors."""

from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, cg, eigsh

from ppl_em.e_step import DeterministicEStep
from ppl_em.likelihood.observed import WIDTH, value_and_score
from ppl_em.problem import Problem
from ppl_em.util import compiled

PROBES = 16
"""Random signs from which the diagonal is estimated."""

MAX_PRODUCTS = 200
"""Products of the conjugate gradients, and of the Lanczos iterations."""

ACCURACY = 1e-3
"""Relative accuracy of the step, and of the smallest eigenvalue next to the largest."""


class Spectrum(NamedTuple):
    """What products tell of the information I and the score g, both at one place.

    `step` (p,) is I⁻¹ g, `promised` the gain g' I⁻¹ g / 2, `scale` (p,) the roots of the inverse
    diagonal, `smallest` the smallest eigenvalue of I in units of `scale`, with its `direction`
    (p,).
    """

    step: np.ndarray
    promised: float
    scale: np.ndarray
    smallest: float
    direction: np.ndarray


@compiled(static_argnums=0)
def _product(
    e_step: DeterministicEStep, problem: Problem, x: jax.Array, state: Any, direction: jax.Array
) -> jax.Array:
    def objective(x: jax.Array) -> jax.Array:
        return e_step.log_likelihood(problem, problem.constrain(x), state)

    return -jax.jvp(jax.grad(objective), (x,), (direction,))[1]


def spectrum(
    e_step: DeterministicEStep, problem: Problem, x: jax.Array, state: Any
) -> Spectrum | None:
    """Step, promised gain and smallest eigenvalue at `x` (p,); None where products fail.

    References
    ----------
    Bekas, Kokiopoulou & Saad (2007), An estimator for the diagonal of a matrix; Lehoucq, Sorensen &
    Yang (1998), ARPACK Users' Guide.
    """
    size = x.size

    def score(x: jax.Array) -> np.ndarray:
        # Not by the program for differences, which takes 2p + 1 points at once.
        return np.asarray(value_and_score(e_step, problem, x, state)[1], float)

    gradient = score(x)

    def product(v: np.ndarray) -> np.ndarray:
        v = np.ravel(v)
        if e_step.noise is None:
            return np.asarray(_product(e_step, problem, x, state, v.astype(x.dtype)), float)
        length = WIDTH / max(np.max(np.abs(v)), 1e-300)
        ahead, behind = (score(x + s * length * v.astype(x.dtype)) for s in (1, -1))
        return (behind - ahead) / (2 * length)

    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], (PROBES, size))
    diagonal = np.abs(np.mean([v * product(v) for v in signs], axis=0))
    if not (np.all(np.isfinite(diagonal)) and np.all(np.isfinite(gradient)) and diagonal.any()):
        return None
    scale = 1 / np.sqrt(np.maximum(diagonal, 1e-6 * np.max(diagonal)))
    scaled = LinearOperator(
        (size, size), lambda v: scale * product(scale * np.ravel(v)), dtype=float
    )
    try:
        values, vectors = eigsh(
            scaled, 1, which="SA", v0=rng.normal(size=size), tol=ACCURACY, maxiter=MAX_PRODUCTS
        )
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    if not len(values):
        return None
    step = scale * cg(scaled, scale * gradient, rtol=ACCURACY, maxiter=MAX_PRODUCTS)[0]
    promised = float(0.5 * gradient @ step)
    return Spectrum(step, promised, scale, float(values[0]), scale * vectors[:, 0])
