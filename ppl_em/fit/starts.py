"""Where restarts begin: given by the user, drawn around the initial values, or from priors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro import handlers

from ppl_em.algorithms import maximized
from ppl_em.e_step import EStep, expectation
from ppl_em.m_step import MStep
from ppl_em.params import Params, as_value, check_start, check_value
from ppl_em.posterior import Expectation, Posterior
from ppl_em.problem import Problem, density_and_gradients, look
from ppl_em.util import ModelError, check_known, check_mapping, compiled, moved_by, split

SPREAD = 1.0
"""Standard deviation of starts on the unconstrained scale: e for a positive parameter."""

NUDGE = 1e-3
"""Size of a random first step where the E-step looks for modes of the latents.

Automatic differentiation gets densities in logits wrong at a logit of exactly 0, which is where
parameters and latents that start at 0 put it.
"""

RUNS, SHORT = 8, 3
"""Short runs from random responsibilities, of which the best is a start, and their EM steps."""

TOO_FEW = 3.0
"""Rows of a component from which its parameters are not estimated."""

PER_STATE = (2, 1)
"""Rows for each state that they look at to begin with, by turns."""

MAX_TRIES = 20
"""Draws of one start until its log-joint is finite, each nearer to the initial values."""


def split_starts(init_params: Any) -> tuple[Params | None, list[Params]]:
    """The first start that a user gave, None for the model's own, and all others."""
    if not isinstance(init_params, list | tuple):
        return init_params, []
    if not init_params:
        raise ModelError("Option `init_params`: found an empty list. Give at least one start.")
    return init_params[0], list(init_params[1:])


def given_starts(problem: Problem, params: Params, values: list[Params]) -> list[Params]:
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


def drawn_starts(
    rng_key: jax.Array, problem: Problem, params: Params, count: int, e_step: EStep, m_step: MStep
) -> list[Params]:
    """`count` starts that know nothing of one another.

    Where there are discrete latents, the best of several short runs, each from responsibilities
    drawn at random. Else, and where that is of no use, as of `_around`.

    References
    ----------
    Biernacki, Celeux & Govaert (2003), Computational Statistics & Data Analysis 41: short runs.
    """
    if count < 1:
        return []
    state = None if e_step.stochastic else e_step.init(rng_key, problem, params)
    starts = []
    for key in jax.random.split(rng_key, count):
        found = None
        if state is not None:
            found = _best_of_short_runs(key, problem, params, e_step, m_step, state)
        starts.append(found or _around(key, problem, params, 1)[0])
    return starts


def _best_of_short_runs(
    rng_key: jax.Array, problem: Problem, params: Params, e_step: EStep, m_step: MStep, state: Any
) -> Params | None:
    """Where a few EM steps lead from random responsibilities; None if there are none."""
    best, height = None, (False, -np.inf)
    for number, key in enumerate(split(rng_key, RUNS)):
        posterior = _at_random(e_step, key, problem, params, state, PER_STATE[number % 2])
        if posterior is None:
            return None
        x = problem.unconstrain(params)
        for _ in range(SHORT + 1):
            x = maximized(m_step, problem, x, x, posterior, m_step.init(x)).x
            posterior, _, info = expectation(e_step, problem, x, state)
        # Where the likelihood has no bound, the highest are next to a component of a row or two.
        found = float(_fewest(problem, posterior, x)) > TOO_FEW, float(info.objective)
        if np.isfinite(found[1]) and found > height:
            start = problem.constrain(x)
            if bool(_usable(problem, problem.unconstrain(start))):
                best, height = start, found
    return best


@compiled
def _fewest(problem: Problem, posterior: Posterior, x: jax.Array) -> jax.Array:
    """Expected number of rows that the rarest value of a discrete site has."""
    expected = Expectation(problem, posterior, problem.constrain(x))
    tables = [expected.probs(site.name) for site in problem.spec.discrete]
    rows = [probs.reshape(-1, probs.shape[-1]) for probs in tables]
    counts = [jnp.min(jnp.sum(probs, axis=0)) for probs in rows if len(probs) > 1]
    return jnp.min(jnp.stack(counts)) if counts else jnp.asarray(jnp.inf)


@compiled(static_argnums=(0, 5))
def _at_random(
    e_step: EStep, rng_key: jax.Array, problem: Problem, params: Params, state: Any, per_state: int
) -> Any:
    return e_step.at_random(rng_key, problem, params, state, per_state)


def _around(rng_key: jax.Array, problem: Problem, params: Params, count: int) -> list[Params]:
    """`count` starts around the initial values `params`, with sites of `map_sites` from priors.

    Normal around them on the unconstrained scale, with a standard deviation of 1, or of the values
    of a site among themselves if that is more. A draw without a finite log-joint and gradient is
    drawn again, nearer.

    Raises
    ------
    ModelError
        If no draw is finite.
    """
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


def nudged(rng_key: jax.Array, problem: Problem, params: Params) -> Params:
    """A small random step away from a start, by no more than a change of 1 in the log-joint."""
    x = problem.unconstrain(params)
    slope = np.abs(look(problem, x, np.asarray(problem.start)[None]).by_param[0])
    with np.errstate(divide="ignore"):
        most = np.where(np.isfinite(slope), np.minimum(NUDGE, 1 / slope), NUDGE)
    noise = np.asarray(jax.random.normal(rng_key, x.shape, x.dtype))
    return problem.constrain(moved_by(x, most * noise))


@compiled
def _usable(problem: Problem, x: jax.Array) -> jax.Array:
    value, gradients = density_and_gradients(problem, x, problem.start)
    return jnp.isfinite(value) & jnp.all(jnp.isfinite(gradients[0]))


@compiled
def _priors(rng_key: jax.Array, problem: Problem, params: Params) -> Params:
    """A draw of the sites that are maximised, from their priors at `params`."""
    args, kwargs = problem.arguments
    drawn = {site.name for site in problem.space.sites if site.is_sample}
    known = {name: value for name, value in params.items() if name not in drawn}
    program = handlers.seed(handlers.substitute(problem.spec.model, data=known), rng_key)
    trace = handlers.trace(program).get_trace(*args, **kwargs)
    return {name: trace[name]["value"] for name in drawn}
