"""Terms of the log-joint that are no likelihood: priors of maximised sites, penalties.

EM maximises the log-joint with all of its terms. Those that depend on parameters alone, on no
latent and no data, can be told apart: the log-likelihood is reported without them.
"""

from functools import partial

import jax
import numpy as np
from numpyro.infer.util import compute_log_probs

from ppl_em.params import Params
from ppl_em.problem.problem import Problem
from ppl_em.util import compiled, sources


def penalties(problem: Problem, params: Params) -> dict[str, float]:
    """Log-density by site of what was maximised beside the log-likelihood, at `params`.

    These are priors of sites that are maximised, unless they depend on latents, and
    `numpyro.factor` statements on parameters. A factor that depends on latents, or on an array
    among the model's arguments, is part of the model. So is one that depends on any array that
    the model has from elsewhere, if nothing but factors is observed, or if the model needs the
    concrete values of an argument.

    Parameters
    ----------
    problem
        The model with its data.
    params
        All parameters, fixed ones included.

    Returns
    -------
    dict
        Empty for models without such sites, which are not run for that.
    """
    priors = tuple(site.name for site in problem.space.sites if site.is_sample)
    candidates = (*priors, *problem.spec.factors)
    if not candidates:
        return {}
    u = problem.start
    hidden = jax.device_get(problem.constrain_latents(params, u))
    for site in problem.spec.discrete:
        first = np.asarray(site.values.value)[0]
        hidden[site.name] = np.broadcast_to(first, site.shape)
    free = {name: params[name] for name in problem.space.names}
    free_leaves, hidden_leaves = jax.tree.leaves(free), jax.tree.leaves(hidden)
    evaluated = partial(_terms, candidates, problem)
    traced = jax.make_jaxpr(evaluated)(free, hidden, problem.leaves)
    arrays = [{"data"} if np.ndim(leaf) > 0 else set() for leaf in problem.leaves]
    marks = [*({"free"} for _ in free_leaves), *({"hidden"} for _ in hidden_leaves), *arrays]
    held = frozenset({"data"} if _holds_data(problem) else ())
    reached = sources(traced.jaxpr, [frozenset(mark) for mark in marks], held)
    chosen = tuple(
        name
        for name, by in zip(candidates, reached, strict=True)
        if "free" in by and "hidden" not in by and (name in priors or "data" not in by)
    )
    if not chosen:
        return {}
    values = jax.device_get(_evaluate(chosen, problem, free, hidden))
    return {name: float(value) for name, value in zip(chosen, values, strict=True)}


def _terms(
    names: tuple[str, ...], problem: Problem, free: Params, hidden: Params, leaves: tuple
) -> list[jax.Array]:
    args, kwargs = problem.spec.arguments.rebuild(leaves)
    values = {**free, **problem.fixed, **hidden}
    terms = compute_log_probs(problem.spec.model, args, kwargs, values)[0]
    return [terms[name] for name in names]


@compiled(static_argnums=0)
def _evaluate(
    names: tuple[str, ...], problem: Problem, free: Params, hidden: Params
) -> list[jax.Array]:
    return _terms(names, problem, free, hidden, problem.leaves)


def _holds_data(problem: Problem) -> bool:
    """Whether arrays that the model does not get as traced arguments may be data."""
    constants = problem.spec.arguments.constants
    held = any(c is not None and np.ndim(c.value) > 0 for c in constants)
    return held or set(problem.spec.observed) <= set(problem.spec.factors)
