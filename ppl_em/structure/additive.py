"""The log-joint as a sum of functions of independent components of the latents.

A term of the log-joint mostly depends on the latents of one component only. Which one is found by
derivatives along directions that move half of the components: with number k of a component in
binary, the term moves with the components that have a certain bit, or with those that have not. A
term that moves with both depends on two components.

Where all terms belong to one component each, one run of the model is enough to see the components
apart; where not, line integrals of the gradient tell them apart.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.params import Params
from ppl_em.problem import Problem, look
from ppl_em.problem.terms import terms
from ppl_em.util import compiled, moved_by

CHUNK = 512
"""Points per call: programs are compiled for this number alone."""

SIDE_BY_SIDE = 64
"""Points evaluated side by side, at most."""

MAX_NUMBERS = 4_000_000
"""Terms at points side by side, at most."""

NODES = (8, 16, 32)
"""Nodes of line integrals, until the pieces add up."""

PLACES = ((0.1, 0.3), (0.1, 0.0), (0.1, 0.03), (1.0, 0.0), (10.0, 0.0), (100.0, 0.0))
"""How far from the center latents are, and parameters from their own values, where terms are told
apart. Not at the parameters first: Beta(1, 1), say, does not depend on its latent."""

Target = Callable[[np.ndarray], tuple[np.ndarray, float]]
"""Points (n, D) to the log-joint of every component relative to a center, (n, G), and there."""


Read = Callable[[np.ndarray, np.ndarray, int], np.ndarray | None]
"""The owners of terms, (E,), from what they depend on, (2 bits, E), the bits, and how many own."""


class NotAdditive(ValueError):
    """The log-joint is not a sum of functions of the proposed components."""


def targets(
    problem: Problem, x: jax.Array, center: np.ndarray, labels: np.ndarray
) -> Iterator[Target]:
    """Ways to see the components of the log-joint apart, the fastest first.

    Each raises `NotAdditive` if its pieces do not add up to the log-joint at some point.

    Parameters
    ----------
    problem, x
        The problem and its unconstrained parameters, shape (p,).
    center
        The point where all pieces are 0, shape (D,).
    labels
        The component of every latent, shape (D,).

    Yields
    ------
    Target
        One run of the model for each point, where terms belong to one component each; otherwise
        line integrals of the gradient from the center, by Gauss-Legendre rules of 8 to 32 nodes.
    """
    count = int(labels.max()) + 1

    def pieces(function: Callable, points: np.ndarray) -> tuple[np.ndarray, float]:
        return _added_up(*_in_chunks(function, np.concatenate([points, center[None]])))

    if count == 1:
        yield partial(_whole, problem, x, center)
        return
    owner = owners(problem, x, center, labels)
    if owner is not None:
        yield partial(pieces, lambda p: _sums(count, problem, x, center, owner, p))
    for num_nodes in NODES:
        nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
        rule = (nodes + 1) / 2, weights / 2
        integrals = partial(_line_integrals, count, problem, x, center, labels, *rule)
        yield partial(pieces, integrals)


def by_component(log_joints: Callable[[np.ndarray], np.ndarray], center: np.ndarray) -> Target:
    """A target from the log-joint by component: points (n, D) to (n, G + 1), of none last."""

    def target(points: np.ndarray) -> tuple[np.ndarray, float]:
        found = log_joints(np.concatenate([points, center[None]]))
        change = found - found[-1]
        return _added_up(change[:, :-1], found.sum(axis=1))

    return target


def _added_up(found: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, float]:
    """Pieces (n, G) and what they add up to, (n,), at points of which the last is the center."""
    limit = max(1e-3, 20 * float(np.finfo(total.dtype).eps) * abs(total[-1]))
    added, change = found.sum(axis=1), total - total[-1]
    same = np.isneginf(added) & np.isneginf(change)
    if not np.max(np.abs(np.where(same, 0, added) - np.where(same, 0, change))) < limit:
        raise NotAdditive("the pieces do not add up to the log-joint")
    return found[:-1], float(total[-1])


def _whole(
    problem: Problem, x: jax.Array, center: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, float]:
    total = log_joints(problem, x, np.concatenate([points, center[None]]))
    return (total[:-1] - total[-1])[:, None], float(total[-1])


def log_joints(problem: Problem, x: jax.Array, points: np.ndarray) -> np.ndarray:
    """The log-joint at `points` (n, D) of the unconstrained latents, shape (n,)."""
    return _in_chunks(lambda p: (_log_joints(problem, x, p),), points)[0]


def _in_chunks(function: Callable, points: np.ndarray) -> tuple[np.ndarray, ...]:
    """Outputs of `function` at all points, called with `CHUNK` of them at a time."""
    size = len(points)
    points = points[np.minimum(np.arange(-(-size // CHUNK) * CHUNK), size - 1)]
    chunks = [function(part) for part in points.reshape(-1, CHUNK, points.shape[1])]
    return tuple(
        np.concatenate([np.asarray(part, float) for part in parts])[:size]
        for parts in zip(*chunks, strict=True)
    )


@compiled
def _log_joints(problem: Problem, x: jax.Array, points: jax.Array) -> jax.Array:
    params = problem.constrain(x)
    return jax.lax.map(problem.density(params), points, batch_size=SIDE_BY_SIDE)


@compiled(static_argnums=0)
def _sums(
    count: int,
    problem: Problem,
    x: jax.Array,
    center: np.ndarray,
    owner: jax.Array,
    points: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Terms relative to the center by component, (n, G), and the log-joint, (n,)."""
    params = problem.constrain(x)
    start = terms(problem, params, jnp.asarray(center))

    def at(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        pieces = by_block(problem, params, u, owner, count, start)[:-1]
        return pieces, problem.log_joint_unconstrained(params, u)

    return jax.lax.map(at, points, batch_size=_side_by_side(owner.size))


@compiled(static_argnums=0)
def _line_integrals(
    count: int,
    problem: Problem,
    x: jax.Array,
    center: np.ndarray,
    labels: jax.Array,
    nodes: jax.Array,
    weights: jax.Array,
    points: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Integrals of the gradient from the center by component, (n, G), and the log-joint, (n,)."""
    params = problem.constrain(x)

    density = problem.density(params)

    def at(point: jax.Array) -> tuple[jax.Array, jax.Array]:
        path = point - center
        slopes = jax.vmap(lambda t: jax.grad(density)(center + t * path))(nodes)
        change = jnp.asarray(weights, path.dtype) @ slopes * path
        return jax.ops.segment_sum(change, labels, num_segments=count), density(point)

    return jax.lax.map(at, points, batch_size=_side_by_side(8 * labels.size))


def _side_by_side(terms: int) -> int:
    """A power of two, so that it divides `CHUNK`."""
    return 1 << (max(1, min(SIDE_BY_SIDE, MAX_NUMBERS // max(terms, 1))).bit_length() - 1)


def by_block(
    problem: Problem,
    params: Params,
    u: jax.Array,
    owner: jax.Array,
    number: int,
    start: jax.Array | None = None,
) -> jax.Array:
    """The log-joint at `u` (D,) by block, (number + 1,): last what belongs to none.

    `owner` (E,) is the block of every term, as `owners` has it. Relative to the terms `start`
    (E,), if given.
    """
    values = terms(problem, params, u)
    values = values if start is None else values - start
    return jax.ops.segment_sum(values, owner, num_segments=number + 1)


def owners(
    problem: Problem, x: jax.Array, center: np.ndarray, labels: np.ndarray
) -> np.ndarray | None:
    """The component of every term, G for constants, (E,); None where terms depend on two.

    A slope of exactly 0 may only mean that a term is saturated there. So directions are NaN as
    well: NaN times 0 is NaN, and reaches all that depends on them. Sums of products with zeros
    are reached needlessly; slopes at several places, near and far, then have to do.
    """
    return told_apart(problem, x, center, labels, _owner, _slopes)


def told_apart(
    problem: Problem,
    x: jax.Array,
    center: np.ndarray,
    labels: np.ndarray,
    read: Read,
    slopes_of: Callable,
) -> np.ndarray | None:
    """As `owners`, by any way to `read` the owners of terms, and for any terms with slopes."""
    if problem.spec.has_moving_supports:
        return None
    count = int(labels.max()) + 1
    rng = np.random.default_rng(0)
    bits = np.arange(max(1, int(count - 1).bit_length()))
    has = (labels >> bits[:, None]) & 1 == 1
    moved = np.concatenate([has, ~has])
    seen = np.zeros(1, bool)
    for scale, spread in PLACES:
        if scale > 1 and problem.spec.gradients is not None:
            break  # a solver of differential equations may have no end so far out
        there = moved_by(x, spread * rng.normal(size=x.shape))
        point = center + scale * rng.uniform(1.0, 2.0, len(labels)) * rng.choice([-1, 1])
        ways = moved * rng.uniform(1.0, 2.0, len(labels))
        point = point.astype(center.dtype)
        slopes = np.asarray(slopes_of(problem, there, point, ways.astype(center.dtype)))
        marks = np.where(moved, np.nan, 0.0).astype(center.dtype)
        reached = ~np.isfinite(np.asarray(slopes_of(problem, there, point, marks)))
        if not np.all(np.isfinite(slopes)):
            continue
        seen = seen | (slopes != 0)
        owner = read(seen | reached, bits, count)
        if owner is not None:
            return owner
    return read(seen, bits, count) if seen.size > 1 else None


def _owner(depends: np.ndarray, bits: np.ndarray, count: int) -> np.ndarray | None:
    """The component of every term by what it depends on, (2 bits, E); None if on two."""
    with_bit, without = np.split(depends, 2)
    constant = ~np.any(depends, axis=0)
    if not np.all((with_bit ^ without) | constant):
        return None
    return np.where(constant, count, np.sum(with_bit << bits[:, None], axis=0))


def _slopes(
    problem: Problem, x: jax.Array, point: np.ndarray, directions: np.ndarray
) -> np.ndarray:
    """Derivatives of the terms at `point` (D,) along `directions` (n, D), shape (n, E)."""
    if problem.spec.term_slopes:
        points = np.broadcast_to(point, directions.shape)
        return np.asarray(look(problem, x, points, directions).slopes)
    return np.asarray(_slopes_alone(problem, x, point, directions))


@compiled
def _slopes_alone(problem: Problem, x: jax.Array, u: jax.Array, directions: jax.Array) -> jax.Array:
    """The same where nothing else is looked at."""

    def slope(direction: jax.Array) -> jax.Array:
        return jax.jvp(lambda u: terms(problem, problem.constrain(x), u), (u,), (direction,))[1]

    return jax.lax.map(slope, directions)
