"""The two halves of one EM step, each compiled once and shared by every phase of a run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.e_step import EStep, expectation
from ppl_em.growth import grow, simplex_sites
from ppl_em.m_step import MStep
from ppl_em.params import Params
from ppl_em.posterior import Posterior, WeightedDraws
from ppl_em.problem import Problem

__all__ = ["Maximized", "draws_at", "expectation", "maximization"]


class Maximized(NamedTuple):
    """What an M-step reports: the new `x` (p,), its state and info, and Monte Carlo gains.

    `forward` and `backward` are mean and error of the change in log-joint over the E-step's
    draws, from `x` to the new one and from the one before to `x`; zeros if deterministic.
    """

    x: jax.Array
    state: Any
    info: Any
    forward: jax.Array
    backward: jax.Array


@jax.jit(static_argnums=0)
def maximization(
    m_step: MStep,
    problem: Problem,
    x: jax.Array,
    x_before: jax.Array,
    posterior: Posterior,
    state: Any,
) -> Maximized:
    """M-step on Q under `posterior`; compiled once per problem and configuration.

    Probability vectors first go where Q would be largest if it were a multinomial log-likelihood.
    """

    def q_of_params(free: Params) -> jax.Array:
        return posterior.expected_log_joint(problem, {**free, **problem.fixed})

    def q_function(x: jax.Array) -> jax.Array:
        return posterior.expected_log_joint(problem, problem.constrain(x))

    if simplex_sites(problem.spec.space):
        grown = grow(problem.spec.space, q_of_params, x)
        new_x, state, info = m_step.step(q_function, grown.x, state)
        info = info._replace(q_start=grown.start_value)
    else:
        new_x, state, info = m_step.step(q_function, x, state)
    forward = backward = jnp.zeros(2, x.dtype)
    if isinstance(posterior, WeightedDraws):
        before, here, after = (
            posterior.log_joints(problem, problem.constrain(point))
            for point in (x_before, x, new_x)
        )
        forward = _mean_and_error(after - here, posterior.weights)
        backward = _mean_and_error(here - before, posterior.weights)
    return Maximized(new_x, state, info, forward, backward)


def _mean_and_error(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted mean of `values` (chain, draw), standard error by batch means; shape (2,)."""
    chains, draws = values.shape
    batches = min(max(2, min(5, draws // 5)), draws)
    length = draws // batches
    mean = jnp.sum(weights * values)

    def by_batch(terms: jax.Array) -> jax.Array:
        return terms[:, : batches * length].reshape(chains * batches, length).sum(axis=1)

    count = chains * batches
    error = jnp.sqrt(jnp.sum(by_batch(weights * (values - mean)) ** 2) * count / (count - 1))
    return jnp.stack([mean, error])


def draws_at(
    sampler: EStep, problem: Problem, x: jax.Array, state: Any, num_steps: int
) -> tuple[WeightedDraws, Any]:
    """Equally weighted draws of `num_steps` E-steps at `x` (p,), and the state after them."""
    parts: list[WeightedDraws] = []
    for _ in range(num_steps):
        posterior, state, _ = expectation(sampler, problem, x, state)
        parts.append(posterior)
    each = [jax.device_get((part.draws, part.stats)) for part in parts]
    joined = jax.tree.map(lambda *some: np.concatenate(some, axis=1), *each)
    return WeightedDraws.equal(*jax.device_put(joined)), state
