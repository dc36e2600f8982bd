"""Find the state space model that a chain is, with proof."""

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.e_step.exact.state_space import StateSpace
from ppl_em.posterior import semi_cholesky, semi_solve
from ppl_em.problem import Problem
from ppl_em.structure import Chain, tolerance
from ppl_em.util import Static, compiled

MAX_BLOCK = 16
"""Largest block, in coordinates: its matrices are taken apart one column at a time."""

TAME = 0.1
"""How far from 0 the unconstrained parameters of a proof are, at first."""


def find_state_space(problem: Problem, x: jax.Array, chain: Chain) -> StateSpace | None:
    """The chain as transitions and sightings, with proof; None if it is no such model.

    Parameters
    ----------
    problem, x
        A problem whose latents are one chain, and its unconstrained parameters, shape (p,).
    chain
        The zeros of their Hessian.
    """
    if problem.spec.discrete or problem.spec.idle is not None:
        return None
    if chain.block_size > MAX_BLOCK or problem.spec.has_moving_supports:
        return None
    owned = _owned(problem, x)
    if owned is None:
        return None
    found, key = StateSpace(chain, owned), jax.random.key(0)
    # First where scales are about 1: next to a variance of zero rounding hides much.
    for place in (TAME * jax.random.normal(key, x.shape, x.dtype), x):
        if float(_error(problem, found, place, problem.start, key)) < tolerance(x.dtype):
            return found
    return None


def _owned(problem: Problem, x: jax.Array) -> tuple[tuple[str, Static], ...] | None:
    """Coordinates that each entry of the latent sites' tables owns; None if that is not seen."""
    layouts = []

    def tables(x: jax.Array) -> dict[str, jax.Array]:
        factors = problem.log_factors_unconstrained(problem.constrain(x), problem.start)[0]
        layouts.append(factors.layout)
        return factors.tables

    shapes = {key: table.shape for key, table in jax.eval_shape(tables, x).items()}
    names, times = dict(layouts[0].names), {chain.time for chain in layouts[0].chains}
    first = {key for chain in layouts[0].chains for key in chain.first}
    owned = []
    ends = np.cumsum([0, *(int(np.prod(site.shape_u)) for site in problem.spec.latents)])
    for site, start, end in zip(problem.spec.latents, ends, ends[1:], strict=False):
        every = np.arange(start, end).reshape(site.shape_u)
        scanned = f"{site.name}[0]" in first
        parts = {f"{site.name}[0]": every[:1], site.name: every[1:]} if scanned else {}
        for key, positions in (parts or {site.name: every}).items():
            if not positions.size:
                continue
            if key not in names:
                return None
            plates = [name for name in names[key] if name not in times]
            if not set(plates) <= set(dict(site.plates)):
                return None
            axes = [positions.ndim + dict(site.plates)[name] for name in plates]
            axes = [0, *axes] if scanned else axes
            moved = np.moveaxis(positions, axes, range(len(axes)))
            moved = moved[0] if key in first else moved
            shape = shapes[key]
            if moved.shape[: len(shape)] != shape:
                return None
            owned.append((key, Static(moved.reshape(*shape, -1))))
    return tuple(owned)


@compiled
def _error(
    problem: Problem, found: StateSpace, x: jax.Array, u: jax.Array, rng_key: jax.Array
) -> jax.Array:
    """Largest relative error of the terms as the model says them, at a few places."""

    def compare(inputs: tuple) -> jax.Array:
        spread, key = inputs
        keys = jax.random.split(key, 3)
        params = problem.constrain(x + spread * jax.random.normal(keys[0], x.shape, x.dtype))
        away = u + jax.random.normal(keys[1], u.shape, u.dtype)
        move, shift, factor = found.transitions(problem, params, u)
        noise = factor @ jnp.swapaxes(factor, -1, -2)
        constant, seen = found.sightings(problem, params, u)
        root = semi_cholesky(noise)

        def blocks(point: jax.Array) -> jax.Array:
            return jnp.moveaxis(found.chain.split(point - u), 1, 0)[..., None]

        def prior(point: jax.Array) -> jax.Array:
            at = blocks(point)
            before = jnp.concatenate([jnp.zeros_like(at[:1]), at[:-1]])
            standard = semi_solve(root, at - move @ before - shift[..., None])
            scale = jnp.sum(jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)))
            return -0.5 * (jnp.sum(standard**2) + u.size * np.log(2 * np.pi)) - scale

        def draw(before: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
            move, shift, root, noise = inputs
            after = move @ before + shift[..., None] + root @ noise
            return after, after

        normal = jax.random.normal(keys[2], (*shift.shape, 1), u.dtype)
        start = jnp.zeros_like(normal[0])
        drawn = jax.lax.scan(draw, start, (move, shift, root, normal))[1]
        near = u + found.chain.join(jnp.moveaxis(drawn[..., 0], 0, 1))
        left = jnp.swapaxes(seen.tril, -1, -2) @ (blocks(away) - seen.place[..., None])
        sight = constant - 0.5 * jnp.sum((left - seen.rest[..., None]) ** 2)
        every = -jnp.ones((), int)

        def gap(value: jax.Array, expected: jax.Array, allowed: jax.Array | float) -> jax.Array:
            return (jnp.abs(value - expected) - allowed) / (1 + jnp.abs(expected))

        # A draw is rounded, which counts where its own standard deviations are as small.
        small = jnp.sqrt(jnp.min(jnp.diagonal(noise, axis1=-2, axis2=-1)))
        rounded = jnp.finfo(u.dtype).eps * jnp.max(jnp.abs(near)) / small
        allowed = u.size * jnp.minimum(4 * (rounded + rounded**2), 0.2)
        drawn_gap = gap(prior(near), found.prior(problem, params, near, every), allowed)
        errors = jnp.stack(
            [
                gap(prior(away), found.prior(problem, params, away, every), 0.0),
                jnp.where(rounded < 1e3, drawn_gap, 0.0),  # explosive chains cannot be drawn
                gap(sight, found.likelihood(problem, params, away), 0.0),
            ]
        )
        return jnp.max(jnp.where(jnp.isfinite(errors), errors, jnp.inf))

    scales = jnp.asarray([0.0, 0.3, 0.3], x.dtype)
    return jnp.max(jax.lax.map(compare, (scales, jax.random.split(rng_key, 3))))
