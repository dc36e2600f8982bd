"""Where the nodes of a chain are: evenly spaced on what the posterior of each step reaches.

With even spacing and empty ends the trapezoidal rule is right to all digits once steps are short
next to the density's features (Trefethen & Weideman 2014, SIAM Review 56).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from ppl_em.params import Params
from ppl_em.problem import Problem
from ppl_em.structure.chain import Chain
from ppl_em.util import compiled

FALL = 18.0
"""Fall of a log-density from its maximum, in nats, at which nodes end."""

KEPT = 14.0
"""Fall at which they have to end if nodes that are there already are to stay."""

LEAST = 0.6
"""Share of their range that is reached, from which they stay."""

BEYOND = 0.25
"""Share of a range that is added at an end where the density has not fallen so far."""

DRAWS = 200
"""Draws from the prior that show a first range."""

TAIL = 2.5
"""Percentage of them beyond either end, before that is widened by its own half."""


class Reach(NamedTuple):
    """Where the nodes of every step begin and end, both (B, T)."""

    low: jax.Array
    high: jax.Array

    def nodes(self, count: int) -> jax.Array:
        """That many nodes, (B, T, K)."""
        share = jnp.arange(count) / (count - 1)
        return self.low[..., None] + (self.high - self.low)[..., None] * share

    def log_weights(self, count: int) -> jax.Array:
        """The logarithm of their distance, (B, T)."""
        return jnp.log((self.high - self.low) / (count - 1))


def active(reach: Reach, probs: jax.Array, stays: bool) -> Reach:
    """The range where a density is within `FALL` of its maximum, a node further on either side.

    `probs` (B, T, K) are proportional to it, on nodes that fill the `reach`. A step whose density
    is unknown keeps its range; with `stays` one whose range still does keeps it, too.
    """
    low, high, _ = _ends(reach, probs, FALL)
    known = jnp.all(jnp.isfinite(probs), axis=-1) & (jnp.max(probs, axis=-1) > 0)
    if stays:
        share = (high - low) / (reach.high - reach.low)
        known &= ~(_ends(reach, probs, KEPT)[2] & (share >= LEAST))
    return Reach(jnp.where(known, low, reach.low), jnp.where(known, high, reach.high))


def _ends(reach: Reach, probs: jax.Array, fall: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where a density has fallen so far, (B, T), and whether that is within the range."""
    count = probs.shape[-1]
    inside = probs > jnp.max(probs, axis=-1, keepdims=True) * np.exp(-fall)
    first = jnp.argmax(inside, axis=-1)
    last = count - 1 - jnp.argmax(inside[..., ::-1], axis=-1)
    width = reach.high - reach.low
    step = width / (count - 1)
    below = jnp.where(first == 0, BEYOND * width, step)
    above = jnp.where(last == count - 1, BEYOND * width, step)
    within = (first > 0) & (last < count - 1)
    return reach.low + first * step - below, reach.low + last * step + above, within


def prior_reach(problem: Problem, params: Params, chain: Chain, rng_key: jax.Array) -> Reach | None:
    """A range that the prior of the latents reaches, step by step; None if none can be drawn."""
    try:
        draws = np.asarray(_prior_draws(problem, params, rng_key))
    except NotImplementedError:  # improper laws
        return None
    values = draws[:, chain.index.value[..., 0]]
    if not np.all(np.isfinite(values)):
        return None
    low, high = np.percentile(values, (TAIL, 100 - TAIL), axis=0)
    wide = np.maximum((high - low) / 2, 1e-6 * (1 + np.abs(low)))
    dtype = problem.start.dtype
    return Reach(jnp.asarray(low - wide, dtype), jnp.asarray(high + wide, dtype))


@compiled
def _prior_draws(problem: Problem, params: Params, rng_key: jax.Array) -> jax.Array:
    args, kwargs = problem.arguments

    def one(key: jax.Array) -> jax.Array:
        program = handlers.trace(handlers.seed(problem.at(params), key))
        trace = program.get_trace(*args, **kwargs)
        sites = problem.spec.latents
        return problem.ravel({s.name: s.transform.inv(trace[s.name]["value"]) for s in sites})

    return jax.lax.map(one, jax.random.split(rng_key, DRAWS))
