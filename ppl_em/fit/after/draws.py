"""Draws of the parameters from their law, and of the latents given each of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.algorithms import Sampler
from ppl_em.e_step import DeterministicEStep, evaluated
from ppl_em.fit.after.by_group import value_by_group
from ppl_em.fit.after.groups import Groups
from ppl_em.posterior import constrain_draws
from ppl_em.problem import Problem, is_inside
from ppl_em.result import draw_discrete
from ppl_em.util import by_chunks, compiled, generator

SIDE_BY_SIDE, AT_ONCE = 40, 4_000_000
"""Draws whose E-steps are evaluated side by side, and numbers that these may handle."""


class Drawn(NamedTuple):
    """n draws of the latents, each given its own parameters.

    Attributes
    ----------
    latents
        All sites on the model's own scale, (n, *site_shape).
    objective
        The E-step's log-likelihood at the parameters, or its bound, (n,); of E-steps by draws the
        log-joint. Not finite where there is none, and then no latents either.
    groups
        The log-likelihood by group, (n, G); (n, 0) if not asked for.
    stats
        What a sampler says of each draw, (n,).
    """

    latents: dict[str, np.ndarray]
    objective: np.ndarray
    groups: np.ndarray
    stats: dict[str, np.ndarray]


def draw_params(rng_key: jax.Array, x: jax.Array, covariance: np.ndarray, num: int) -> jax.Array:
    """Draws from N(x, covariance), (num, p), on the unconstrained scale.

    The covariance (p, p) may be singular: where it is zero, nothing moves.
    """
    scale = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    unit = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(covariance / unit / unit[:, None])
    root = scale[:, None] * vectors * np.sqrt(np.maximum(values, 0.0))
    noise = generator(rng_key).standard_normal((num, len(scale)))
    return jax.device_put((np.asarray(x) + noise @ root.T).astype(x.dtype))


def draw_latents(
    rng_key: jax.Array,
    problem: Problem,
    e_step: DeterministicEStep,
    state: Any,
    xs: jax.Array,
    groups: Groups | None = None,
) -> Drawn:
    """A draw of the latents from the E-step's posterior at each of `xs` (n, p).

    One program evaluates the E-step at all of them, from the same `state`. With `groups`, it also
    tells the log-likelihood by group.
    """
    inputs = jax.device_get((xs, jax.random.split(rng_key, len(xs))))
    size = sum(np.size(leaf) for leaf in jax.tree.leaves((problem.leaves, state)))
    number, where = 0, ()
    if groups is not None:
        number, where = groups.number, jax.device_put((groups.owner, groups.labels))
    side = max(1, min(SIDE_BY_SIDE, AT_ONCE // (problem.num_latents + size + 1)))

    def found(state: Any) -> tuple:
        def program(some: tuple) -> tuple:
            return _drawn(e_step, number, problem, state, *some, where)

        return by_chunks(program, inputs, side)

    parts = evaluated(e_step, problem, xs[0], state, found, lambda parts: parts[1])
    latents, objective, by_group = parts
    return Drawn(latents, objective, by_group, {})


@compiled(static_argnums=(0, 1))
def _drawn(
    e_step: DeterministicEStep,
    number: int,
    problem: Problem,
    state: Any,
    xs: jax.Array,
    keys: jax.Array,
    where: tuple,
) -> tuple:
    def one(x: jax.Array, key: jax.Array) -> tuple:
        params, (key_draw, key_discrete) = problem.constrain(x), jax.random.split(key)
        posterior, _, info = e_step.step(problem, params, state)
        draws = posterior.sample(problem, params, key_draw, 1)
        latents = {name: values[0] for name, values in draws.items()}
        latents |= draw_discrete(problem, params, key_discrete, latents)
        if not where:
            return latents, info.objective, jnp.zeros(0)
        return latents, info.objective, value_by_group(problem, params, posterior, number, *where)

    return jax.vmap(one)(xs, keys)


def draw_by_chains(
    rng_key: jax.Array, problem: Problem, sampler: Sampler, state: Any, xs: jax.Array
) -> Drawn:
    """The same by a sampler, whose chains go on from one value of the parameters to the next.

    They make an E-step's transitions at each of `xs` (n, p) before one of them, in turn, gives its
    last state.
    """
    points, stats = [], []
    for i, x in enumerate(xs):
        posterior, state, _ = sampler.draw(problem, x, state)
        chain = i % len(posterior.draws)
        points.append(posterior.draws[chain, -1])
        stats.append({name: values[chain, -1] for name, values in posterior.stats.items()})
    keys = jax.random.split(rng_key, len(xs))
    latents, objective = jax.device_get(_completed(problem, xs, jnp.stack(points), keys))
    told = jax.tree.map(lambda *values: np.stack(values), *jax.device_get(stats))
    return Drawn(latents, objective, np.zeros((len(xs), 0)), told)


@compiled
def _completed(problem: Problem, xs: jax.Array, points: jax.Array, keys: jax.Array) -> tuple:
    """Latents of all sites, and the log-joint, at parameters (n, p) and points (n, D)."""

    def one(x: jax.Array, u: jax.Array, key: jax.Array) -> tuple:
        params = problem.constrain(x)
        latents = {name: v[0] for name, v in constrain_draws(problem, params, u[None]).items()}
        value = problem.log_joint_unconstrained(params, u)
        return latents | draw_discrete(problem, params, key, latents), value

    return jax.vmap(one)(xs, points, keys)


def inside(problem: Problem, xs: jax.Array) -> np.ndarray:
    """At which of `xs` (n, p) all constraints on functions of the parameters hold, (n,)."""
    if not problem.spec.restrictions:
        return np.ones(len(xs), bool)
    return np.asarray(_inside(problem, xs))


@compiled
def _inside(problem: Problem, xs: jax.Array) -> jax.Array:
    return jax.vmap(lambda x: is_inside(problem, x))(xs)
