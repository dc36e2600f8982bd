"""Draws of parameters from their law, and of latents given each of them."""

from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.e_step import EStep, StochasticEStep, expectation
from ppl_em.params import Params
from ppl_em.posterior import Posterior
from ppl_em.problem import Latents, Problem, is_inside
from ppl_em.result.latents import _sample_discrete
from ppl_em.util import ModelError, compiled, generator, split

PER_DRAW = 10
"""Transitions of each chain from one draw of the parameters to the next."""


ROUNDS = 20
"""Times, at most, that draws outside of constraints are made anew."""


def draw_params(
    rng_key: jax.Array, problem: Problem, x: jax.Array, covariance: np.ndarray, count: int
) -> jax.Array:
    """Draws of the unconstrained parameters, (count, p), normal around `x` (p,).

    What has no variance, as it is held, stays. Draws outside of constraints on functions of the
    parameters are made anew; equations hold to first order.
    """
    scale = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    unit = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(covariance / unit / unit[:, None])
    root = scale[:, None] * vectors * np.sqrt(np.maximum(values, 0.0))
    rng, center = generator(rng_key), np.asarray(x)

    def draws(count: int) -> np.ndarray:
        return (center + rng.normal(size=(count, len(values))) @ root.T).astype(x.dtype)

    xs = draws(count)
    for _ in range(ROUNDS if problem.spec.restrictions else 0):
        outside = ~np.asarray(_inside(problem, xs))
        if not outside.any() or outside.all():
            break
        xs[outside] = draws(int(outside.sum()))
    return jax.device_put(xs)


@compiled
def _inside(problem: Problem, xs: jax.Array) -> jax.Array:
    return jax.vmap(lambda x: is_inside(problem, x))(xs)


def draw_latents(
    rng_key: jax.Array, problem: Problem, e_step: EStep, state: Any, xs: jax.Array
) -> Latents:
    """One joint draw of all latents for each of the parameters `xs` (n, p), from `state`.

    Every site has shape (n, *site_shape); by one program for all.
    """
    keys = split(rng_key)
    draws_keys = jax.random.split(keys[0], len(xs))
    if e_step.stochastic:
        sampler = cast(StochasticEStep, e_step)
        own, state = sampler.fresh(
            sampler.resume(state)
        )  # a fit ends with the state of a fresh one
        own = replace(own, num_samples=min(own.num_samples, PER_DRAW))  # type: ignore[type-var]
        return _along(own, problem, xs, draws_keys, state)
    draws, values = _given(e_step, problem, xs, draws_keys, state)
    bad = np.flatnonzero(~np.isfinite(np.asarray(values)))
    if not len(bad):
        return cast(Latents, draws)
    found = {name: np.array(value) for name, value in draws.items()}
    for i in bad:  # these need a firmer state
        posterior, _, info = expectation(e_step, problem, xs[i], state)
        if not np.isfinite(info.objective):
            raise ModelError(
                "`result.predict`: the E-step fails at some draws of the parameters, whose law is "
                "too wide for it. Pass `uncertainty=False`."
            )
        one = _joint(posterior, problem, problem.constrain(xs[i]), draws_keys[i])
        for name, value in one.items():
            found[name][i] = value
    return jax.device_put(found)


@compiled(static_argnums=0)
def _given(
    e_step: EStep, problem: Problem, xs: jax.Array, keys: jax.Array, state: Any
) -> tuple[Latents, jax.Array]:
    """A draw at each of `xs` (n, p), and the value of the E-step there, (n,)."""

    def one(inputs: tuple[jax.Array, jax.Array]) -> tuple[Latents, jax.Array]:
        params = problem.constrain(inputs[0])
        posterior, _, info = e_step.step(problem, params, state)
        return _drawn(posterior, problem, params, inputs[1]), info.objective

    return jax.lax.map(one, (xs, keys))


@compiled(static_argnums=0)
def _along(e_step: EStep, problem: Problem, xs: jax.Array, keys: jax.Array, state: Any) -> Latents:
    """A draw at each of `xs` (n, p), by chains that go from one to the next."""

    def one(state: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, Latents]:
        params = problem.constrain(inputs[0])
        posterior, state, _ = e_step.step(problem, params, state)
        return state, _drawn(posterior, problem, params, inputs[1])

    return jax.lax.scan(one, state, (xs, keys))[1]


@compiled
def _joint(posterior: Posterior, problem: Problem, params: Params, key: jax.Array) -> Latents:
    return _drawn(posterior, problem, params, key)


def _drawn(posterior: Posterior, problem: Problem, params: Params, key: jax.Array) -> Latents:
    """One draw of all latents, discrete ones included."""
    key_continuous, key_discrete = jax.random.split(key)
    draws = posterior.sample(problem, params, key_continuous, 1)
    if problem.spec.discrete:
        draws = {**draws, **_sample_discrete(problem, params, key_discrete[None], draws)}
    return jax.tree.map(lambda value: jnp.asarray(value)[0], draws)
