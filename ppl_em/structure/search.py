"""Choose the cheapest structure that the numbers confirm."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from ppl_em.problem import WIDE, Problem, look
from ppl_em.structure.base import Structure, hessian_product, tolerance
from ppl_em.structure.blocks import Blocks
from ppl_em.structure.candidates import (
    arrow_candidates,
    block_candidates,
    chain_candidates,
    coordinates,
)
from ppl_em.structure.own_units import in_own_units
from ppl_em.util import Static, compiled, generator

S = TypeVar("S", bound=Structure)


def find_structure(
    problem: Problem,
    x: jax.Array,
    u: jax.Array,
    rng_key: jax.Array,
    names: tuple[str, ...] | None = None,
) -> Structure:
    """Find the cheapest structure of a quadratic log-joint; one dense block if there is none.

    The check is at the initial parameters and at others around them: a covariance that starts
    out diagonal would hide what it couples later.

    Parameters
    ----------
    problem, x
        The problem and its unconstrained parameters, shape (p,).
    u
        A point of finite log-joint, shape (D,).
    rng_key
        Draws the probe points and directions.
    names
        The latent sites to divide, all by default; the others are held at `u`. Positions then
        count the coordinates of these sites only.
    """
    proposed: list[Structure] = [
        *block_candidates(problem, names),
        *chain_candidates(problem, names),
        *arrow_candidates(problem, names),
    ]
    return _cheapest(proposed, problem, x, u, rng_key, names, (0.0, 0.3, 0.3))


def find_blocks(
    problem: Problem, x: jax.Array, u: jax.Array, rng_key: jax.Array, spread: float = 0.0
) -> Blocks:
    """Find the finest partition into blocks that are independent at the parameters `x` (p,).

    With a `spread`, at others around them too, as far away on the unconstrained scale.
    """
    proposed = list(block_candidates(problem))
    return _cheapest(proposed, problem, x, u, rng_key, None, (0.0, spread, spread))


def not_excluded(
    proposed: Sequence[S], problem: Problem, x: jax.Array, rng_key: jax.Array
) -> list[S]:
    """Those structures over all latents that a few products of the Hessian leave possible."""
    every = np.arange(problem.num_latents)
    probe = _Probe.around(problem, x, problem.start, every, rng_key, (0.0, 0.3))
    return _screened(proposed, probe) if proposed else []


def _cheapest(
    proposed: Sequence[S],
    problem: Problem,
    x: jax.Array,
    u: jax.Array,
    rng_key: jax.Array,
    names: tuple[str, ...] | None,
    spreads: tuple[float, ...],
) -> S | Blocks:
    index = coordinates(problem, names)
    dense = Blocks(Static(np.arange(len(index))[None]))
    able = sorted((c for c in proposed if c.cost < dense.cost), key=lambda c: c.cost)
    if not able:
        return dense
    probe = _Probe.around(problem, x, u, index, rng_key, spreads)
    limit = tolerance(u.dtype)
    for candidate in _screened(able, probe):
        error, seen = _compared(candidate, probe)
        if error < limit:
            thin = candidate.thinned(seen)
            return thin if thin is candidate or _compared(thin, probe)[0] < limit else candidate
    measured = in_own_units(problem, x) if any(spreads) else None
    if measured is None:
        return dense
    return _cheapest(proposed, measured, x, u, rng_key, names, spreads)


class _Probe(NamedTuple):
    """Parameters (n, p) and latents (n, d) at which Hessians over `coordinates` are seen."""

    problem: Problem
    x: np.ndarray
    u: jax.Array
    points: np.ndarray
    coordinates: np.ndarray
    rng: np.random.Generator

    @classmethod
    def around(
        cls,
        problem: Problem,
        x: jax.Array,
        u: jax.Array,
        index: np.ndarray,
        rng_key: jax.Array,
        spreads: tuple[float, ...],
    ) -> "_Probe":
        rng = generator(rng_key)
        away = np.array(spreads)[:, None] * rng.normal(size=(len(spreads), x.size))
        away = away if problem.units is None else away * np.asarray(problem.units)
        start = np.asarray(u)[index]
        near = 0.3 * rng.normal(size=(len(spreads), start.size))
        points = (start + near).astype(u.dtype)
        return cls(problem, np.asarray(x) + away.astype(x.dtype), u, points, index, rng)

    def products(self, place: int, directions: np.ndarray) -> np.ndarray:
        """Hessian products at one of the points with `directions`, (n, d) to (n, d)."""
        points = np.tile(np.asarray(self.u), (len(directions), 1))
        points[:, self.coordinates] = self.points[place]
        along = np.zeros_like(points)
        along[:, self.coordinates] = directions
        if along.shape[1] <= WIDE:
            found = np.asarray(look(self.problem, self.x[place], points, along).products)
        else:
            rows = zip(points, along, strict=True)
            found = np.stack([_product(self.problem, self.x[place], *row) for row in rows])
        return found[:, self.coordinates]


@compiled
def _product(problem: Problem, x: jax.Array, u: jax.Array, direction: jax.Array) -> jax.Array:
    params = problem.constrain(x)
    return hessian_product(problem.density(params), u, direction)


def _multiply(structure: Structure, products: Any, vector: Any) -> Any:
    return structure.multiply(structure.unpack(products), vector)


_multiply_compiled = compiled(_multiply, static_argnums=0)


def _screened(candidates: Sequence[S], probe: _Probe) -> list[S]:
    """Those whose necessary condition holds: a few products for all of them together."""
    passed = np.ones(len(candidates), bool)
    limit = tolerance(probe.u.dtype)
    for place in range(len(probe.x)):
        screens = [candidate.screen(probe.rng) for candidate in candidates]
        support = np.stack([screen.support for screen in screens])
        allowed = np.stack([screen.allowed for screen in screens])
        found = probe.products(place, support * probe.rng.normal(size=support.shape))
        outside = np.max(np.abs(found), axis=1, where=~allowed, initial=0.0)
        passed &= outside <= limit * np.max(np.abs(found), axis=1)
    return [candidate for candidate, good in zip(candidates, passed, strict=True) if good]


def _compared(structure: Structure, probe: _Probe) -> tuple[float, np.ndarray]:
    """Largest gap between products of the Hessian and of its pieces, relative, over all points.

    And where products with the colors are not zero, (num_colors, D). Coordinates are scaled so
    that the diagonal is one: none can hide behind another's units.
    """
    colors, errors = structure.colors, []
    seen = np.zeros((structure.num_colors, colors.size), bool)
    for place in range(len(probe.x)):
        directions = (colors == np.arange(structure.num_colors)[:, None]).astype(float)
        products = probe.products(place, directions)
        seen |= products != 0
        diagonal = np.abs(products[colors, np.arange(colors.size)])
        with np.errstate(divide="ignore"):
            scale = np.where(diagonal > 0, diagonal**-0.5, 1.0)
        direction = scale * probe.rng.normal(size=colors.size)
        full = scale * probe.products(place, direction[None])[0]
        vector = direction.astype(probe.u.dtype)
        multiply = _multiply if isinstance(structure, Blocks) else _multiply_compiled
        within = scale * np.asarray(multiply(structure, products, vector))
        gap = np.max(np.abs(full - within)) / (np.max(np.abs(full)) + 1e-30)
        errors.append(gap if np.isfinite(gap) else np.inf)
    return float(np.max(errors)), seen
