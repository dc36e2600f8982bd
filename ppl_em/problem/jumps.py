"""Does the log-joint jump as a latent moves, where its gradient cannot see it?

A comparison, a rounding, an index: the derivative of each is 0 wherever it exists, so curvature and
gradients show nothing, and laws proved by them alone would be wrong. The program tells where a jump
may be; values then tell whether there is one.
"""

import jax
import numpy as np

from ppl_em.problem.derivatives import WIDE, look
from ppl_em.problem.problem import Problem
from ppl_em.util import Step, find_steps

REACHES = (0.5, 2.0, 6.0, 40.0)
"""How far each coordinate moves to both sides at least, and at most twice as far, on the lines on
which a jump is looked for."""

PIECES = 64
"""Equal pieces of a line; the worst one is divided again."""

KEPT = 0.3
"""Share of a gap that stays where it is not that of a smooth function or a kink."""

EDGES_WITHIN = 2.0
"""Reach up to which an end of the density counts: further out numbers themselves end."""

FLAT = 0.05
"""Change of the log-joint over the last piece, in nats, up to which it does not go to -inf."""

MATERIAL = 50.0
"""Nats below the top of a line from which nothing matters."""

DIVISIONS = {4: 3, 8: 4}
"""How often, by bytes of a number."""


def possible_steps(problem: Problem, x: jax.Array) -> list[Step]:
    """Operations without a gradient through which latents reach the log-joint, by the program."""
    params = problem.constrain(x)
    latents = jax.eval_shape(problem.constrain_latents, params, problem.start)
    names = [path[0].key for path, _ in jax.tree_util.tree_flatten_with_path(latents)[0]]
    closed = jax.make_jaxpr(lambda values: problem.log_joint(params, values))(latents)
    (reached,) = find_steps(closed.jaxpr, [frozenset({name}) for name in names])
    found = {mark for mark in reached if isinstance(mark, Step)}
    return sorted(found, key=lambda step: ("/numpyro/" in step.where, step))


def is_misled(
    problem: Problem, x: jax.Array, u: np.ndarray, moving: np.ndarray, rng: np.random.Generator
) -> bool:
    """Whether gradients near `u` (D,) miss changes as the coordinates `moving` (D,) bool move.

    Parameters differ from line to line: at the first ones, both sides of a jump may be alike.
    """
    for spread in (0.0, 0.3):
        there = jax.device_put((np.asarray(x) + spread * rng.normal(size=x.shape)).astype(x.dtype))
        for reach in REACHES:
            if reach > EDGES_WITHIN and problem.spec.gradients is not None:
                break  # a solver of differential equations may have no end so far out
            signs = rng.choice([-1.0, 1.0], u.size)
            way = np.where(moving, reach * signs * rng.uniform(1.0, 2.0, u.size), 0.0)
            if _misses(problem, there, u - way, u + way):
                return True
            if reach <= EDGES_WITHIN and _ends(problem, there, u - way, u + way):
                return True
    return False


def _ends(problem: Problem, x: jax.Array, first: np.ndarray, last: np.ndarray) -> bool:
    """Whether the log-joint ends on a line, as where data leave their support: it is -inf beyond.

    A density that goes to 0 has a slope there; one that is cut off has not.
    """
    low, high, top = 0.0, 1.0, -np.inf
    for _ in range(DIVISIONS[problem.start.dtype.itemsize]):
        shares = np.linspace(low, high, PIECES + 1)
        values, along = _along(problem, x, first, last, shares)
        inside, outside = np.isfinite(values), np.isneginf(values)
        edges = (inside[1:] & outside[:-1]) | (inside[:-1] & outside[1:])
        if not edges.any():
            return False
        side = np.where(inside[:-1], values[:-1], values[1:])
        edge = int(np.argmax(np.where(edges, side, -np.inf)))
        last_inside = edge if inside[edge] else edge + 1
        low, high = shares[edge], shares[edge + 1]
        top = max(top, np.max(values[inside]))
    change = abs(along[last_inside]) * (high - low)
    return bool(change < FLAT and values[last_inside] > top - MATERIAL)


def _along(
    problem: Problem, x: jax.Array, first: np.ndarray, last: np.ndarray, shares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values of the log-joint at `shares` (n,) of a line, and its slopes along the line, (n,)."""
    points = (first + shares[:, None] * (last - first)).astype(problem.start.dtype)
    seen = look(problem, x, points, np.zeros_like(points) if len(first) <= WIDE else None)
    values, slopes = (np.asarray(part, float) for part in (seen.density, seen.by_latent))
    with np.errstate(invalid="ignore", over="ignore"):
        return values, slopes @ (last - first)


def _misses(problem: Problem, x: jax.Array, first: np.ndarray, last: np.ndarray) -> bool:
    """Whether slopes on a line miss a change that does not go away as the line is divided.

    A gap is the change of the log-joint over a piece less what the slopes at its ends promise.
    Divided, a piece that is smooth loses all but 1/4096 of its gap, one with a kink 1/64, and one
    with a jump, or with a gradient that is not that of the value, nothing.
    """
    dtype = problem.start.dtype
    low, high, top, before, kept = 0.0, 1.0, -np.inf, np.inf, 0.0
    for _ in range(DIVISIONS[dtype.itemsize]):
        shares = np.linspace(low, high, PIECES + 1)
        values, along = _along(problem, x, first, last, shares)
        with np.errstate(invalid="ignore", over="ignore"):
            gaps = np.diff(values) - np.diff(shares) * (along[1:] + along[:-1]) / 2
        sides = np.maximum(values[1:], values[:-1])
        top = max(top, np.max(sides, where=np.isfinite(sides), initial=-np.inf))
        good = np.isfinite(gaps) & (sides > top - MATERIAL)
        if not good.any():
            return False
        largest = np.max(np.abs(sides[good]))
        limit = 1e-6 + 1e3 * float(np.finfo(dtype).eps) * largest
        gaps = np.where(good, gaps, 0.0)
        total = abs(np.sum(gaps))
        kept = min(total / before, total / (np.sum(np.abs(gaps)) + 1e-300))  # noise cancels
        worst = int(np.argmax(np.abs(gaps)))
        if abs(gaps[worst]) <= limit:
            break
        low, high, before = shares[worst], shares[worst + 1], abs(gaps[worst])
    return bool(kept > KEPT and before < np.inf)
