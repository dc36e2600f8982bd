"""How far parameters may move where something is to be proved of a model: in their own units."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.optimize import hessian_on_host
from ppl_em.problem import Problem, look

MAX_PARAMS = 300
"""Parameters up to which they are measured: each costs two looks at the model or more."""


def in_own_units(problem: Problem, x: jax.Array) -> Problem | None:
    """The problem with `units`; None if these are 1, or known already.

    A distance of 1 on the unconstrained scale is fine for logarithms and the like, but real
    parameters have units: the coefficient of a predictor in the thousands, say. None moves further
    than the standard error that one datum would give it if the latents were known.
    """
    if problem.units is not None or not 0 < x.size <= MAX_PARAMS:
        return None
    start = np.asarray(problem.start)[None]

    def gradients(places: np.ndarray) -> np.ndarray:
        found = [look(problem, place.astype(x.dtype), start).by_param[0] for place in places]
        return np.asarray(found, float)

    curvature = np.abs(np.diag(hessian_on_host(gradients, np.asarray(x))[0]))
    data = max(sum(np.size(leaf) for leaf in problem.leaves), 1)
    units = np.sqrt(data / np.maximum(np.where(np.isfinite(curvature), curvature, 0.0), data))
    if np.all(units == 1):
        return None
    return replace(problem, units=jnp.asarray(units, x.dtype))
