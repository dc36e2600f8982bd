"""Where restarts begin: given by the user, drawn around the initial values, or from priors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro import handlers

from ppl_em.params import Params, as_value, check_start, check_value
from ppl_em.problem import Problem, density_and_gradients
from ppl_em.util import ModelError, check_known, check_mapping

SPREAD = 1.0
"""Standard deviation of starts on the unconstrained scale: e for a positive parameter."""

MAX_TRIES = 20
"""Draws of one start until its log-joint is finite, each nearer to the initial values."""


def split_starts(init_params: Any) -> tuple[Params | None, list[Params]]:
    """The first start that a user gave, None for the model's own, and all others."""
    if not isinstance(init_params, list | tuple):
        return init_params, []
    if not init_params:
        raise ModelError("Option `init_params`: found an empty list. Give at least one start.")
    return init_params[0], list(init_params[1:])


def all_starts(
    rng_key: jax.Array, problem: Problem, params: Params, more: list[Params], count: int
) -> list[Params]:
    """At least `count` starts: `params`, what the user gave `more`, and others around `params`."""
    starts = [params, *_given(problem, params, more)]
    return starts + _drawn(rng_key, problem, params, count - len(starts))


def _given(problem: Problem, params: Params, values: list[Params]) -> list[Params]:
    """Starts that the user gave, each filled up from the initial values `params`.

    Raises
    ------
    ModelError
        If one of them is no dictionary, names an unknown site, or is outside its constraint.
    """
    starts = []
    space = problem.space
    for value in values:
        found = check_mapping("init_params", value)
        check_known("init_params", found, space.names, "parameter")
        found = {k: check_value(k, "init_params", v, params[k]) for k, v in found.items()}
        starts.append({**params, **found})
        check_start(space, starts[-1])
    return starts


def _drawn(rng_key: jax.Array, problem: Problem, params: Params, count: int) -> list[Params]:
    """`count` starts around the initial values `params`, with sites of `map_sites` from priors.

    Normal around them on the unconstrained scale, with a standard deviation of 1, or of the values
    of a site among themselves if that is more. A draw without a finite log-joint and gradient is
    drawn again, nearer.

    Raises
    ------
    ModelError
        If no draw is finite.
    """
    if count < 1:
        return []
    center = problem.unconstrain(params)
    scale = _spread(problem, center)
    starts = []
    for key in jax.random.split(rng_key, count):
        for attempt, key_try in enumerate(jax.random.split(key, MAX_TRIES)):
            key_noise, key_prior = jax.random.split(key_try)
            noise = jax.random.normal(key_noise, center.shape, center.dtype)
            x = center + 2.0 ** -max(attempt - 3, 0) * scale * noise
            start = problem.constrain(x)
            if attempt < MAX_TRIES // 2 and any(s.is_sample for s in problem.space.sites):
                start |= {k: as_value(v) for k, v in _priors(key_prior, problem, start).items()}
            if bool(_usable(problem, problem.unconstrain(start))):
                starts.append(start)
                break
        else:
            raise ModelError(
                f"Option `num_restarts`: {MAX_TRIES} draws around the initial values have no "
                f"finite log-joint. Give the starts: `init_params=[{{...}}, {{...}}]`."
            )
    return starts


def _spread(problem: Problem, center: jax.Array) -> np.ndarray:
    """Standard deviation of every coordinate of a start, (p,)."""
    parts = problem.space.unravel(center)
    wide = jax.tree.map(lambda v: jnp.full(v.shape, jnp.maximum(SPREAD, jnp.std(v))), parts)
    return np.asarray(ravel_pytree(wide)[0])


@jax.jit
def _usable(problem: Problem, x: jax.Array) -> jax.Array:
    value, gradients = density_and_gradients(problem, x, problem.start)
    return jnp.isfinite(value) & jnp.all(jnp.isfinite(gradients[0]))


@jax.jit
def _priors(rng_key: jax.Array, problem: Problem, params: Params) -> Params:
    """A draw of the sites that are maximised, from their priors at `params`."""
    args, kwargs = problem.arguments
    drawn = {site.name for site in problem.space.sites if site.is_sample}
    known = {name: value for name, value in params.items() if name not in drawn}
    program = handlers.seed(handlers.substitute(problem.spec.model, data=known), rng_key)
    trace = handlers.trace(program).get_trace(*args, **kwargs)
    return {name: trace[name]["value"] for name in drawn}
