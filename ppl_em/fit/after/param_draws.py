"""Draws of parameters from their law, and of latents given each of them."""

from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.e_step import EStep, StochasticEStep, expectation
from ppl_em.fit.after.draws import draw_params, inside
from ppl_em.params import Params
from ppl_em.posterior import Posterior
from ppl_em.problem import Latents, Problem
from ppl_em.result import draw_discrete
from ppl_em.util import ModelError, compiled, split

PER_DRAW = 10
"""Transitions of each chain from one draw of the parameters to the next."""

ROUNDS = 20
"""Times, at most, that draws outside of constraints are made anew."""


def draw_inside(
    rng_key: jax.Array, problem: Problem, x: jax.Array, covariance: np.ndarray, count: int
) -> jax.Array:
    """Draws of the unconstrained parameters, (count, p), normal around `x` (p,).

    What has no variance, as it is held, stays. Draws outside of constraints on functions of the
    parameters are made anew; equations hold to first order.
    """
    keys = split(rng_key, ROUNDS)
    xs = np.array(draw_params(keys[0], x, covariance, count))
    for key in keys[1:] if problem.spec.restrictions else ():
        outside = ~inside(problem, jax.device_put(xs))
        if not outside.any() or outside.all():
            break
        xs[outside] = draw_params(key, x, covariance, int(outside.sum()))
    return jax.device_put(xs)


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
        # A fit ends with the state of a fresh one.
        own, state = sampler.fresh(sampler.resume(state))
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
    latents = {name: jnp.asarray(value)[0] for name, value in draws.items()}
    return latents | draw_discrete(problem, params, key_discrete, latents)
