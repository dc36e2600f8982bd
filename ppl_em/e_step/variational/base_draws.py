"""Standard-normal points that stay fixed: what deterministic expectations are averaged over."""

import jax
import numpy as np
from scipy.special import ndtri

from ppl_em.structure import Blocks
from ppl_em.util import generator


def base_draws(rng_key: jax.Array, num_particles: int, blocks: Blocks) -> np.ndarray:
    """Fixed standard-normal points, (n, D): stratified, antithetic, standardised in each block.

    A Latin hypercube (McKay, Beckman & Conover 1979). Blocks of n / 4 coordinates or more have unit
    variances only; smaller ones have unit covariance, and integrate every quadratic exactly.
    """
    half, (groups, width) = num_particles // 2, blocks.index.value.shape
    size = groups * width
    order = generator(rng_key).permuted(np.tile(np.arange(half), (size, 1)), axis=1).T
    upper = ndtri((order + 0.5) / half)
    points = np.concatenate([upper, -upper])
    if width >= half // 2:
        return points / np.sqrt(np.mean(points**2, axis=0))
    standard = np.moveaxis(points[:, blocks.index.value], 0, -1)
    covariance = standard @ np.swapaxes(standard, -1, -2) / len(points)
    standard = np.linalg.solve(np.linalg.cholesky(covariance), standard)
    points[:, blocks.index.value] = np.moveaxis(standard, -1, 0)
    return points
