"""Covariances carried to the parameters' own scale."""

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from ppl_em.problem import Problem
from ppl_em.util import compiled


def constrained_covariance(problem: Problem, x: jax.Array, covariance: np.ndarray) -> np.ndarray:
    """Delta method: covariance of all flattened parameters on their own scale, (P, P).

    Rows are in the order of `params.flat_labels`; fixed parameters have zeros.
    """
    jacobian = np.asarray(flat_and_jacobian(problem, x)[1])
    return jacobian @ covariance @ jacobian.T


@compiled
def flat_and_jacobian(problem: Problem, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """All flattened parameters on their own scale, (P,), and their derivatives in `x`, (P, p)."""

    def flat(x: jax.Array) -> jax.Array:
        return ravel_pytree(problem.constrain(x))[0]

    return flat(x), jax.jacobian(flat)(x)
