"""A log-likelihood by independent groups or rows: what each element of a plate adds to it."""

import jax
import numpy as np

from ppl_em.params import Params
from ppl_em.posterior import LogLikelihood, Posterior
from ppl_em.problem import Problem, terms_by_plate
from ppl_em.util import compiled


def by_plate(
    rng_key: jax.Array,
    problem: Problem,
    x: jax.Array,
    posterior: Posterior,
    total: LogLikelihood,
) -> dict[str, np.ndarray]:
    """Log-likelihoods by plate, see `Evaluated.log_likelihoods`."""
    params = problem.constrain(x)
    if not problem.spec.latents:
        return jax.device_get(_by_plate(problem, params))
    return {}


@compiled
def _by_plate(problem: Problem, params: Params) -> dict[str, jax.Array]:
    return terms_by_plate(problem, params)
