"""The terms of the log-joint: the log-density of every element of every site.

Discrete sites are summed out as far as their plates go, and the log-Jacobian of every latent is a
term as well.
"""

import jax
import jax.numpy as jnp
from numpyro.infer.util import compute_log_probs

from ppl_em.discrete import marginalization
from ppl_em.params import Params
from ppl_em.problem.problem import Latents, Problem


def terms(problem: Problem, params: Params, u: jax.Array) -> jax.Array:
    """Terms whose sum is the log-joint at the unconstrained latents `u` (D,); no support moves.

    Shape (E,): as many as the plates of the model tell apart.
    """
    u, idle = problem.without_idle(u)
    latents, jacobians = problem.transformed(u)
    parts = [idle, *jacobians]
    if problem.spec.discrete:
        parts.append(marginalization.log_terms(problem.log_factors(params, latents)))
    else:
        parts += problem.smooth(_log_probs, (params, latents), problem).values()
    return jnp.concatenate([jnp.ravel(jnp.asarray(part, u.dtype)) for part in parts])


def _log_probs(inputs: tuple[Params, Latents], problem: Problem) -> dict[str, jax.Array]:
    """The log-density of every element of each site."""
    args, kwargs = problem.arguments
    values = {**inputs[0], **inputs[1]}
    model = problem.spec.model
    found: dict[str, jax.Array] = compute_log_probs(
        model, args, kwargs, values, sum_log_prob=False
    )[0]
    return found


def terms_by_plate(problem: Problem, params: Params) -> dict[str, jax.Array]:
    """What the cells of every plate add to the log-joint of a model without continuous latents.

    Plate to array of its size, with the sum over everything else; only plates along which the
    log-joint is a sum.
    """
    found: dict[str, jax.Array] = {}
    for names, values in marginalization.log_cells(problem.log_factors(params, {})):
        for axis, name in enumerate(names):
            others = tuple(i for i in range(len(names)) if i != axis)
            found[name] = found.get(name, 0.0) + jnp.sum(values, others)
    return found
