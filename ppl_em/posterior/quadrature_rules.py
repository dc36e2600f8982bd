"""Nodes and weights for integrals over many small blocks, placed around their modes.

Gauss-Hermite rules for each dimension, scaled by the curvature at the mode. For one dimension also
the trapezoidal rule along u = mode + s sinh(t): steps of s near the mode that grow outwards, so
that narrow peaks, long tails and lopsided ones are all seen.

References
----------
Takahasi & Mori (1974), Publ. RIMS 9, for rules by change of variable; Naylor & Smith (1982),
Applied Statistics 31, for Gauss-Hermite rules adapted to posteriors.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.posterior.gaussian_blocks import Gaussian
from ppl_em.util import compiled

DROP = 32.0
"""Fall of the log-density from the mode at which its tails are cut off."""

STEEP = 0.7
"""Fall of the log-density over one length s, at most; half is that of a normal density."""

LADDER = np.arange(-6, 13, 2)
"""Distances at which the density is looked at, in powers of two of its standard deviation."""


class Placed(NamedTuple):
    """Where G blocks of k latents are evaluated: offsets from the mode, (J, G, k), and weights.

    The integral of exp f over block g is the sum over j of exp(f + `log_weights`), (J, G).
    """

    offsets: jax.Array
    log_weights: jax.Array


class Span(NamedTuple):
    """Of each of G densities of one latent: a length s, and where both tails end, all (G,)."""

    length: jax.Array
    left: jax.Array
    right: jax.Array


@compiled(static_argnums=1)
def gauss_hermite(law: Gaussian, num_nodes: int) -> Placed:
    """All combinations of `num_nodes` nodes along each axis of the blocks; one is the mode."""
    nodes, weights = np.polynomial.hermite.hermgauss(num_nodes)
    logs = np.log(np.sqrt(2) * weights) + nodes**2
    size = law.blocks.block_size
    every = np.array(list(itertools.product(np.sqrt(2) * nodes, repeat=size)))
    sums = np.array(list(itertools.product(logs, repeat=size))).sum(axis=1)
    offsets = jnp.einsum("gab,jb->jga", law.root, jnp.asarray(every, law.mean.dtype))
    return Placed(offsets, jnp.asarray(sums, law.mean.dtype)[:, None] + law.log_scale())


def find_span(law: Gaussian, log_density: Callable[[jax.Array], jax.Array]) -> Span:
    """How far the densities of blocks of one latent reach.

    `log_density` maps offsets from the mode, (J, G, 1), to values (J, G).
    """
    scale = law.root[:, 0, 0]
    steps = jnp.asarray(2.0**LADDER, scale.dtype)[:, None] * scale
    distances = jnp.concatenate([jnp.zeros_like(steps[:1]), steps, -steps])
    values = log_density(distances[..., None])
    falls = jnp.nan_to_num(values[0] - values[1:], nan=jnp.inf).reshape(2, *steps.shape)
    left, right = (_crossing(steps, each, DROP) for each in (falls[1], falls[0]))
    length = jnp.min(jnp.stack([_crossing(steps, each, STEEP) for each in falls]), axis=0)
    return Span(length, left, right)


def _crossing(steps: jax.Array, falls: jax.Array, level: float) -> jax.Array:
    """Where falls at growing `steps`, both (S, G), first pass `level`; between two, as powers."""
    passed = falls > level
    place = jnp.where(jnp.any(passed, axis=0), jnp.argmax(passed, axis=0), len(falls) - 1)

    def at(values: jax.Array, place: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values, place[None], axis=0)[0]

    before = jnp.maximum(place - 1, 0)
    near, far, low, high = at(steps, before), at(steps, place), at(falls, before), at(falls, place)
    between = (far > near) & (high > level) & jnp.isfinite(high)
    growth = jnp.log(jnp.where(between, high, 2.0) / jnp.clip(low, 1e-3, level))
    share = jnp.where(between, jnp.log(jnp.where(between, high, level) / level) / growth, 0.0)
    return far * (near / far) ** share


@compiled(static_argnums=1)
def sinh_trapezoid(span: Span, num_nodes: int) -> Placed:
    """`num_nodes` nodes for blocks of one latent, from the end of one tail to that of the other."""
    start = -jnp.arcsinh(span.left / span.length)
    step = (jnp.arcsinh(span.right / span.length) - start) / (num_nodes - 1)
    t = start + step * jnp.arange(num_nodes)[:, None]
    offsets = span.length * jnp.sinh(t)
    return Placed(offsets[..., None], jnp.log(span.length * jnp.cosh(t) * step))
