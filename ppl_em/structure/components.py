"""Independent groups of latents of any sizes, in any order."""

import jax
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from ppl_em.problem import Problem
from ppl_em.structure.base import compressed_hessian, tolerance
from ppl_em.structure.blocks import dense
from ppl_em.structure.search import find_blocks
from ppl_em.util import compiled

MAX_DENSE = 2000
"""Largest number of latents for which the whole Hessian is looked at."""


def find_components(
    problem: Problem, x: jax.Array, points: np.ndarray, rng_key: jax.Array
) -> np.ndarray:
    """Find latents that are independent of one another at the parameters `x`.

    Where plates give no equal blocks, the pattern of the Hessian is read as a graph: its connected
    components are independent. Crossed effects fall apart so if no factor connects their groups.

    Parameters
    ----------
    problem, x
        The problem and its unconstrained parameters, shape (p,).
    points
        Where the Hessian is looked at, such as draws from the posterior, shape (n, D).
    rng_key
        Draws the probe points and directions that check blocks along plates.

    Returns
    -------
    numpy.ndarray
        The number of its component, 0, 1, ..., for every latent, shape (D,).

    Notes
    -----
    n D products of the Hessian; one D if the first point already connects everything. Where a
    latent counts through a jump, which derivatives miss, all are one component. A pattern that only
    other points show goes unseen: whoever integrates the components apart has to check that the
    log-joint is a sum of functions of them.
    """
    if problem.spec.jumps:
        return np.zeros(problem.num_latents, int)
    blocks = find_blocks(problem, x, jax.device_put(points[0]), rng_key)
    if blocks.num_blocks > 1:
        return blocks.labels
    whole = np.zeros(problem.num_latents, int)
    if not 1 < problem.num_latents <= MAX_DENSE:
        return whole
    coupled = np.eye(problem.num_latents, dtype=bool)
    for point in points:
        hessian = np.asarray(_hessian(problem, x, point))
        if not np.all(np.isfinite(hessian)):
            return whole
        diagonal = np.abs(np.diagonal(hessian))
        scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
        coupled |= np.abs(hessian) > tolerance(hessian.dtype) * scale * scale[:, None]
        count, labels = connected_components(csr_array(coupled), directed=False)
        if count == 1:
            return whole
    return labels.astype(int)


@compiled
def _hessian(problem: Problem, x: jax.Array, u: jax.Array) -> jax.Array:
    params = problem.constrain(x)
    return compressed_hessian(dense(problem), problem.density(params), u)
