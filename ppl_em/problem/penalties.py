"""Terms of the log-joint that are no likelihood: priors of maximised sites, penalties.

EM maximises the log-joint with all of its terms. Those that depend on parameters alone, on no
latent and no data, can be told apart: the log-likelihood is reported without them.
"""

from typing import Any

import jax
import numpy as np
from numpyro.infer.util import compute_log_probs

from ppl_em.params import Params
from ppl_em.problem.problem import Problem


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
    inputs = (free, hidden, problem.leaves)
    traced = jax.make_jaxpr(lambda *some: _terms(candidates, problem, *some))(*inputs)
    flags = [[False] * len(jax.tree.leaves(part)) for part in inputs]
    by_free = _reached(traced, [[True] * len(flags[0]), *flags[1:]])
    by_hidden = _reached(traced, [flags[0], [True] * len(flags[1]), flags[2]])
    arrays = [np.ndim(leaf) > 0 for leaf in problem.leaves]
    by_data = _reached(traced, [*flags[:2], arrays], _holds_data(problem))
    chosen = tuple(
        name
        for i, name in enumerate(candidates)
        if by_free[i] and not by_hidden[i] and (name in priors or not by_data[i])
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


@jax.jit(static_argnums=0)
def _evaluate(
    names: tuple[str, ...], problem: Problem, free: Params, hidden: Params
) -> list[jax.Array]:
    return _terms(names, problem, free, hidden, problem.leaves)


def _holds_data(problem: Problem) -> bool:
    """Whether arrays that the model does not get as traced arguments may be data."""
    constants = problem.spec.arguments.constants
    held = any(c is not None and np.ndim(c.value) > 0 for c in constants)
    return held or set(problem.spec.observed) <= set(problem.spec.factors)


def _reached(traced: Any, inputs: list[list[bool]], constants: bool = False) -> list[bool]:
    """Which results of a traced function depend on marked inputs, or on arrays it holds."""
    jaxpr = traced.jaxpr
    marks = [mark for part in inputs for mark in part]
    reached = {var for var, mark in zip(jaxpr.invars, marks, strict=True) if mark}
    if constants:
        reached |= {var for var in jaxpr.constvars if var.aval.shape}

    def is_reached(atom: Any) -> bool:
        if hasattr(atom, "val"):  # a literal
            return constants and np.ndim(atom.val) > 0
        return atom in reached

    for equation in jaxpr.eqns:
        if any(map(is_reached, equation.invars)):
            reached |= set(equation.outvars)
    return [is_reached(atom) for atom in jaxpr.outvars]
