"""A log-likelihood by independent groups or rows: what each element of a plate adds to it."""

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.params import Params
from ppl_em.posterior import Posterior
from ppl_em.problem import Problem, check_unchanged, terms_by_plate
from ppl_em.structure import NotAdditive, by_block, owners
from ppl_em.util import alone, compiled


def by_plate(
    rng_key: jax.Array, problem: Problem, x: jax.Array, posterior: Posterior
) -> dict[str, np.ndarray]:
    """Log-likelihoods by plate at `x` (p,), see `Evaluated.log_likelihoods`."""
    with alone():
        check_unchanged(problem)
        return _by_plate(rng_key, problem, x, posterior)


def _by_plate(
    rng_key: jax.Array, problem: Problem, x: jax.Array, posterior: Posterior
) -> dict[str, np.ndarray]:
    if not problem.spec.latents:
        return jax.device_get(_of_rows(problem, problem.constrain(x)))
    found = {}
    for name, size in _plates(problem).items():
        labels = _labels(problem, name, size)
        try:
            center, integrals = posterior.integrals(rng_key, problem, x, labels)
        except NotAdditive:
            continue
        owner = owners(problem, x, center, labels)
        if owner is not None:
            count = int(labels.max()) + 1
            here = _by_group(count, problem, x, jax.device_put(center), owner)
            found[name] = (np.asarray(here)[:-1] + integrals)[:size]
    return found


@compiled
def _of_rows(problem: Problem, params: Params) -> dict[str, jax.Array]:
    return terms_by_plate(problem, params)


@compiled(static_argnums=0)
def _by_group(
    count: int, problem: Problem, x: jax.Array, center: jax.Array, owner: jax.Array
) -> jax.Array:
    """The log-joint at the latents `center` (D,) by group, and of none, (count + 1,)."""
    return by_block(problem, problem.constrain(x), center, jnp.asarray(owner), count)


def _plates(problem: Problem) -> dict[str, int]:
    """Plates around continuous latents, and their sizes."""
    return {
        name: site.shape_u[axis]
        for site in problem.spec.latents
        for name, axis in site.plates
        if site.shape_u[axis] > 0
    }


def _labels(problem: Problem, plate: str, size: int) -> np.ndarray:
    """The element of `plate` that every latent is in, (D,); its size where it is in none."""
    parts = []
    for site in problem.spec.latents:
        own = np.full(site.shape_u, size)
        axis = dict(site.plates).get(plate)
        if axis is not None:
            index = np.arange(size).reshape(-1, *(1,) * (-axis - 1))
            own = np.broadcast_to(index, site.shape_u)
        parts.append(own.ravel())
    return np.concatenate(parts)
