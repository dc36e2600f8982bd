"""Draws behind leave-one-group-out: the marginal log-likelihood at drawn parameters."""

import jax
import numpy as np

from ppl_em.fit.after.by_group import ByGroup
from ppl_em.fit.after.draws import draw_params
from ppl_em.result import LeftOut

NUM_DRAWS = 1000
"""Draws of the parameters."""


def left_out(
    by_group: ByGroup, x: jax.Array, covariance: np.ndarray, rng_key: jax.Array
) -> LeftOut:
    """Log-densities of groups at parameters drawn from their normal law.

    Parameters
    ----------
    by_group
        The marginal log-likelihood by group.
    x, covariance
        Unconstrained estimates (p,) and their covariance, (p, p), zero for what is held.
    rng_key
        Of the draws.
    """
    found = by_group(np.asarray(draw_params(rng_key, x, covariance, NUM_DRAWS)))
    return LeftOut(found, by_group.groups.cells)
