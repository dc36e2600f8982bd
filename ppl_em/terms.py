"""The terms of the log-joint, and which independent component of the latents each depends on.

The log-joint of a model is a sum of terms: the log-density of every element of every site, discrete
sites summed out as far as their plates go, and the log-Jacobian of every latent. A term mostly
depends on the latents of one component only. Which one is found by derivatives along directions
that move half of the components: with number k of a component in binary, the term moves with the
components that have a certain bit, or with those that have not. A term that moves with both depends
on two components.
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.util import compute_log_probs

from ppl_em import summation
from ppl_em.params import Params
from ppl_em.problem import Problem


def terms(problem: Problem, params: Params, u: jax.Array) -> jax.Array:
    """Terms whose sum is the log-joint at the unconstrained latents `u` (D,); no support moves.

    Shape (E,): as many as the plates of the model tell apart.
    """
    u, idle = problem.without_idle(u)
    parts = [idle]
    values = problem.unravel(u)
    latents = {}
    for site in problem.spec.latents:
        latents[site.name] = value = site.transform(values[site.name])
        parts.append(site.transform.log_abs_det_jacobian(values[site.name], value))
    if problem.spec.discrete:
        parts.append(summation.log_terms(problem.log_factors(params, latents)))
    else:
        args, kwargs = problem.arguments
        log_probs, _ = compute_log_probs(
            problem.spec.model, args, kwargs, {**params, **latents}, sum_log_prob=False
        )
        parts += log_probs.values()
    return jnp.concatenate([jnp.ravel(jnp.asarray(part, u.dtype)) for part in parts])


def owners(
    problem: Problem, x: jax.Array, center: np.ndarray, labels: np.ndarray
) -> np.ndarray | None:
    """The component of every term, G for constants, (E,); None where terms depend on two."""
    if any(site.support is None for site in problem.spec.latents):
        return None
    count = int(labels.max()) + 1
    rng = np.random.default_rng(0)
    bits = np.arange(int(count - 1).bit_length())
    has = (labels >> bits[:, None]) & 1 == 1
    moved = np.concatenate([has, ~has]) * rng.uniform(1.0, 2.0, len(labels))
    point = center + 0.1 * rng.uniform(1.0, 2.0, len(labels))
    dtype = center.dtype
    slopes = np.asarray(_slopes(problem, x, jnp.asarray(point, dtype), jnp.asarray(moved, dtype)))
    with_bit, without = np.split(slopes != 0, 2)
    constant = ~np.any(with_bit | without, axis=0)
    if not np.all(np.isfinite(slopes)) or not np.all((with_bit ^ without) | constant):
        return None
    return np.where(constant, count, np.sum(with_bit << bits[:, None], axis=0))


@jax.jit
def _slopes(problem: Problem, x: jax.Array, u: jax.Array, directions: jax.Array) -> jax.Array:
    def slope(direction: jax.Array) -> jax.Array:
        return jax.jvp(lambda u: terms(problem, problem.constrain(x), u), (u,), (direction,))[1]

    return jax.lax.map(slope, directions)
