"""The two halves of one EM step, each compiled once and shared by every phase of a run."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ppl_em.e_step import expectation
from ppl_em.m_step import ClosedForm, HostMStep, MStep, Region, TracedMStep, grow, simplex_sites
from ppl_em.params import Params
from ppl_em.posterior import Expectation, Posterior, WeightedDraws
from ppl_em.problem import Problem, barrier_weights, bounds, conditions, has_barrier, is_inside
from ppl_em.problem.barrier import barrier
from ppl_em.stats import mean_and_error
from ppl_em.util import ModelError, check_known, compiled

__all__ = ["Maximized", "checked", "expectation", "maximization", "traced_maximization"]

logger = logging.getLogger("ppl_em")

BLIND = 0.1
"""Weight of barriers where no gradient says what it should be, in units of log-likelihood."""


class Maximized(NamedTuple):
    """What an M-step reports: the new `x` (p,), its state and info, and Monte Carlo gains.

    `forward` and `backward` are mean and error of the change in log-joint over the E-step's
    draws, from `x` to the new one and from the one before to `x`; zeros if deterministic. `fall` is
    what values of a `ClosedForm` that were not used would have lost, else 0.
    """

    x: jax.Array
    state: Any
    info: Any
    forward: jax.Array
    backward: jax.Array
    fall: jax.Array | float = 0.0


def maximization(
    m_step: MStep,
    problem: Problem,
    x: jax.Array,
    x_before: jax.Array,
    posterior: Posterior,
    state: Any,
) -> Maximized:
    """M-step on Q under `posterior`; everything is compiled once per problem and configuration.

    Probability vectors first go where Q would be largest if it were a multinomial log-likelihood.
    Barriers that keep constraints are part of Q.
    """
    if isinstance(m_step, HostMStep):
        return _on_host(m_step, problem, x, x_before, posterior, state)
    traced = cast(TracedMStep, m_step)
    return checked(traced, traced_maximization(traced, problem, x, x_before, posterior, state))


def checked(m_step: TracedMStep, out: Maximized) -> Maximized:
    """The same; with a warning if values of a `ClosedForm` were not used."""
    if isinstance(m_step, ClosedForm) and not float(out.fall) <= 0:
        logger.warning(
            "Option `m_step`: the values of ClosedForm lower Q by %.3g and are not used in this "
            "step. Check that they maximise Q given the other parameters.",
            float(out.fall),
        )
    return out


@compiled(static_argnums=0)
def traced_maximization(
    m_step: TracedMStep,
    problem: Problem,
    x: jax.Array,
    x_before: jax.Array,
    posterior: Posterior,
    state: Any,
) -> Maximized:
    """`maximization` as compiled, to be part of larger programs."""
    weights = _barrier_weights(problem, posterior, x)
    start, start_value = _grown(problem, posterior, x, weights)

    def q_function(new_x: jax.Array) -> jax.Array:
        return _q(problem, posterior, new_x, x, weights)

    fall = jnp.zeros((), x.dtype)
    if isinstance(m_step, ClosedForm):
        start_value = q_function(x)
        start, objective, fall = _closed_form(m_step, problem, posterior, q_function, x)
        new_x, state, info = m_step.step(objective, start, state)
    else:
        new_x, state, info = m_step.step(q_function, start, state)
    if start_value is not None:
        info = info._replace(q_start=start_value)
    gains = _gains(problem, posterior, x_before, x, new_x)
    return Maximized(new_x, state, info, *gains, fall)


def _closed_form(
    m_step: ClosedForm,
    problem: Problem,
    posterior: Posterior,
    q_function: Callable[[jax.Array], jax.Array],
    x: jax.Array,
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array], jax.Array]:
    """Where the user's values lead from `x` (p,), and Q with these held; or `x` and Q itself.

    Last, what the values would lose if they were used although they lower Q.
    """
    moved, is_set = closed_form(m_step, problem, posterior, x)
    before, after = q_function(x), q_function(moved)
    fine = after >= before - 100 * jnp.finfo(x.dtype).eps * (1 + jnp.abs(before))
    start = jnp.where(fine, moved, x)
    fall = jnp.where(fine, 0.0, before - after)
    return start, lambda new_x: q_function(jnp.where(fine & is_set, start, new_x)), fall


def _on_host(
    m_step: HostMStep,
    problem: Problem,
    x: jax.Array,
    x_before: jax.Array,
    posterior: Posterior,
    state: Any,
) -> Maximized:
    """The same with a maximiser that calls compiled functions."""
    start, start_value, weights = x, None, None
    if m_step.with_gradient:
        weights = _weights_at(problem, posterior, x)
        start, start_value = _grown_at(problem, posterior, x, weights)

    def q_function(new_x: np.ndarray) -> Any:
        point = jax.device_put(np.asarray(new_x, x.dtype))
        if not m_step.with_gradient:
            return jax.device_get(_q_at(problem, posterior, point, x, weights))
        return jax.device_get(_q_and_gradient(problem, posterior, point, x, weights))

    limits = Region(bounds(problem), conditions(problem))
    new_x, state, info = m_step.search(q_function, np.asarray(start, float), state, limits)
    if start_value is not None:
        info = info._replace(q_start=start_value)
    new_x = jax.device_put(np.asarray(new_x, x.dtype))
    gains = _gains_at(problem, posterior, x_before, x, new_x)
    return Maximized(new_x, state, info, *gains)


def _q(
    problem: Problem,
    posterior: Posterior,
    x: jax.Array,
    x_before: jax.Array,
    weights: jax.Array | None,
) -> jax.Array:
    """Q at `x` (p,) and what barriers add in a step from `x_before`."""
    value = posterior.expected_log_joint(problem, problem.constrain(x))
    if not has_barrier(problem):
        return value
    return value + barrier(problem, x, x_before, jnp.asarray(BLIND) if weights is None else weights)


def _barrier_weights(problem: Problem, posterior: Posterior, x: jax.Array) -> jax.Array | None:
    if not has_barrier(problem):
        return None

    def q_function(x: jax.Array) -> jax.Array:
        return posterior.expected_log_joint(problem, problem.constrain(x))

    return barrier_weights(problem, x, jax.grad(q_function)(x))


def _grown(
    problem: Problem, posterior: Posterior, x: jax.Array, weights: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Probability vectors in closed form, and Q before; `x` (p,) and None if there are none."""

    def q_of_params(free: Params) -> jax.Array:
        return posterior.expected_log_joint(problem, {**free, **problem.fixed})

    if not simplex_sites(problem.space):
        return x, None
    grown = grow(problem.space, q_of_params, x)
    if not problem.spec.restrictions:
        return grown.x, grown.start_value
    here = _q(problem, posterior, x, x, weights)
    there = _q(problem, posterior, grown.x, x, weights)
    better = is_inside(problem, grown.x) & (there >= here)
    return jnp.where(better, grown.x, x), here


def _gains(
    problem: Problem, posterior: Posterior, x_before: jax.Array, x: jax.Array, new_x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`forward` and `backward` of `Maximized`."""
    if not posterior.by_draws:
        return jnp.zeros(2, x.dtype), jnp.zeros(2, x.dtype)
    own = cast(WeightedDraws, posterior)
    before, here, after = (
        own.log_joints(problem, problem.constrain(point)) for point in (x_before, x, new_x)
    )
    forward = mean_and_error(after - here, own.weights)
    return forward, mean_and_error(here - before, own.weights)


_grown_at, _gains_at, _q_at = compiled(_grown), compiled(_gains), compiled(_q)
_weights_at = compiled(_barrier_weights)
_q_and_gradient = compiled(jax.value_and_grad(_q, argnums=2))


def closed_form(
    m_step: ClosedForm, problem: Problem, posterior: Posterior, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Where the user's function leads from `x` (p,), and which coordinates it has set, (p,)."""
    params = problem.constrain(x)
    found = m_step.maximiser(Expectation(problem, posterior, params), params)
    if not isinstance(found, dict) or not found:
        raise ModelError(
            f"Option `m_step`: the function of ClosedForm returned {type(found).__name__}. Return "
            f"a dictionary, site name to value."
        )
    space = problem.space
    check_known("ClosedForm", found, space.names, "free parameter")
    for name, value in found.items():
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(value)]
        known = [jnp.shape(leaf) for leaf in jax.tree.leaves(params[name])]
        if shapes != known:
            raise ModelError(
                f"Site '{name}': ClosedForm gives it the shape {shapes}, the model {known}. "
                f"Return a value of the model's shape."
            )
    new_x = problem.unconstrain({**params, **found})
    marks = space.unravel(jnp.zeros(x.size))
    ones = {name: jax.tree.map(jnp.ones_like, marks[name]) for name in found}
    flat, _ = ravel_pytree({**marks, **ones})
    return jnp.where(flat == 1, new_x, x), flat == 1
