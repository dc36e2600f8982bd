"""What is asked of the draws of one Monte Carlo E-step, all of it one compiled program.

Scores and their moments, how the latents move along with the parameters, what a step leaves out,
and the log-joint by component: each is a task of the same program, so the model is compiled once
for all of them.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.likelihood.louis import Components, ScoreMoments, by_component, pieces
from ppl_em.likelihood.transport import Motion, log_joint, shift, still
from ppl_em.optimize import hessian_on_host
from ppl_em.posterior import WeightedDraws
from ppl_em.problem import Problem
from ppl_em.util import compiled

MAX_NUMBERS = 4_000_000
"""Scores of terms held at once, at most."""

SIDE_BY_SIDE = 1_000_000
"""Terms at draws that are evaluated side by side, at most."""

NUM_PLACES = 4
"""Parameters for which scores are returned draw by draw."""

DIFFERENCE = 0.05
"""Part of a Newton step over which scores are differenced."""


class Task(IntEnum):
    """What is done. Gradients at given parameters come with all but the last."""

    GRADIENTS = 0
    SHIFT = 1
    SCORES = 2
    PIECES = 3


class Asked(NamedTuple):
    """A task, parameters `places` (m, p), and the number of those for gradients, from the first."""

    task: Any
    places: Any
    number: Any


class Evaluated(NamedTuple):
    """What was found over n draws; zeros where nothing was asked.

    At the first four places `scores` (4, n, p), at all of them their means, `gradients` (m, p).
    Shifts of the latents, `shift` (D, p), with the gradients in them, `slopes` (n, D). By component
    `score` (n, p), `means` (G + 1, p) and `outer` (p, p) as in `ScoreMoments`. At the first place
    `parts` (n, G + 1), the log-joint by component and that of none.
    """

    scores: jax.Array
    gradients: jax.Array
    slopes: jax.Array
    shift: jax.Array
    score: jax.Array
    means: jax.Array
    outer: jax.Array
    parts: jax.Array


@compiled(static_argnums=0)
def evaluate(
    number: int,
    problem: Problem,
    motion: Motion,
    owner: jax.Array | None,
    draws: jax.Array,
    asked: Asked,
) -> Evaluated:
    """Do what is asked with draws (chain, draw, D), `number` and `owner` as in `Components`."""
    flat = draws.reshape(-1, draws.shape[-1])
    terms = flat.shape[1] if owner is None else owner.size

    def of_all(function: Callable, flat: jax.Array) -> Any:
        found = jax.lax.map(jax.vmap(function), _in_parts(flat, SIDE_BY_SIDE // terms))
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found)

    def at_place(index: jax.Array, found: Evaluated) -> Evaluated:
        # No values: without them much of the model need not be evaluated.
        function = jax.grad(partial(log_joint, problem, motion))
        scores = of_all(partial(function, asked.places[index]), flat)
        place = jnp.minimum(index, NUM_PLACES - 1)
        return found._replace(
            scores=found.scores.at[place].set(scores),
            gradients=found.gradients.at[index].set(jnp.mean(scores, axis=0)),
        )

    def with_scores(found: Evaluated) -> Evaluated:
        def add(sums: tuple, some: jax.Array) -> tuple:
            scores = jax.vmap(partial(by_component, number, owner, problem, motion))(some)
            outer = jnp.einsum("ngi,ngj->ij", scores, scores)
            return (sums[0] + scores.sum(axis=0), sums[1] + outer), scores.sum(axis=1)

        parts = _in_parts(flat, MAX_NUMBERS // (terms * (motion.start.size + 1)))
        score: jax.Array
        (means, outer), score = jax.lax.scan(add, (found.means, found.outer), parts)
        score = score.reshape(found.score.shape)
        return found._replace(score=score, means=means / len(flat), outer=outer / len(flat))

    def with_parts(found: Evaluated) -> Evaluated:
        function = partial(pieces, number, owner, problem, motion, asked.places[0])
        return found._replace(parts=of_all(function, flat))

    def with_shift(found: Evaluated) -> Evaluated:
        function = jax.grad(partial(log_joint, problem, motion, motion.start))
        slopes = of_all(function, flat)
        return found._replace(slopes=slopes, shift=shift(problem, motion.start, motion.center))

    found = _nothing(number + 1, flat, asked.places)
    found = jax.lax.fori_loop(0, asked.number, at_place, found)
    return jax.lax.switch(asked.task, (lambda f: f, with_shift, with_scores, with_parts), found)


def _in_parts(flat: jax.Array, most: int) -> jax.Array:
    """Draws (n, D) as (parts, side, D), with at most so many side by side."""
    count, size = flat.shape
    side = max(d for d in range(1, count + 1) if count % d == 0 and d <= max(most, 1))
    return flat.reshape(-1, side, size)


def _nothing(rows: int, flat: jax.Array, places: jax.Array) -> Evaluated:
    """Zeros, for `rows` scores by component and draws `flat` (n, D)."""
    (m, p), (count, size) = places.shape, flat.shape
    shapes = [(NUM_PLACES, count, p), (m, p), (count, size), (size, p)]
    shapes += [(count, p), (rows, p), (p, p), (count, rows)]
    return Evaluated(*(jnp.zeros(shape, places.dtype) for shape in shapes))


def _evaluated(
    problem: Problem,
    motion: Motion,
    components: Components,
    draws: Any,
    task: Task,
    places: Sequence[np.ndarray] | np.ndarray,
) -> Evaluated:
    x = np.asarray(motion.start)
    rows = np.zeros((max(2 * x.size, NUM_PLACES), x.size), x.dtype)
    rows[: len(places)] = places
    asked = Asked(np.asarray(int(task)), rows, np.asarray(len(places) * (task is not Task.PIECES)))
    return evaluate(components.number, problem, motion, components.owner, draws, asked)


def find_motion(
    problem: Problem, x: jax.Array, posterior: WeightedDraws, components: Components
) -> Motion:
    """Follow the posterior from `x` (p,), as far as draws there tell.

    The shift is that of the mode of the quadratic model about the mean of the draws. Stretchings
    are found by regression of the scores that remain. Whatever does not lower the variance of the
    scores over the draws is left out; the scores' means are right for any motion, but where the
    log-joint jumps: there nothing moves.
    """
    draws = np.asarray(posterior.draws).reshape(-1, posterior.draws.shape[-1])
    center = draws.mean(axis=0)
    motion = still(x, center)
    if problem.spec.jumps:  # there is no integration by parts across a jump
        return motion
    found = _evaluated(problem, motion, components, posterior.draws, Task.SHIFT, [np.asarray(x)])
    shift, slopes, scores = jax.device_get((found.shift, found.slopes, found.scores))
    scores = scores[0]
    shift = np.where(_lowers(scores, slopes @ shift), shift, 0.0)
    scores = scores + slopes @ shift

    sites = np.concatenate(
        [np.full(int(np.prod(site.shape_u)), i) for i, site in enumerate(problem.spec.latents)]
    )
    stretching = 1 + (draws - center) * slopes  # mean zero, by parts
    by_site = stretching @ (sites[:, None] == np.arange(sites.max() + 1))
    by_site -= by_site.mean(axis=0)
    coefficients = np.zeros((by_site.shape[1], x.size))
    if np.all(np.isfinite(by_site)) and np.all(np.isfinite(scores)):
        coefficients = -np.linalg.lstsq(by_site, scores)[0]
        coefficients = np.where(_lowers(scores, by_site @ coefficients), coefficients, 0.0)
    maps = (a.astype(x.dtype) for a in (shift, coefficients[sites]))
    return Motion(x, motion.center, *jax.device_put(tuple(maps)))


def _lowers(scores: np.ndarray, added: np.ndarray) -> np.ndarray:
    """Which columns (p,) of `scores` (n, p) vary less with `added` (n, p)."""
    return np.var(scores + added, axis=0) < np.var(scores, axis=0)  # False where NaN


def score_moments(
    problem: Problem, posterior: WeightedDraws, components: Components, motion: Motion
) -> ScoreMoments:
    """Complete-data scores and Hessian over equally weighted draws at `motion.start`."""
    found: Any = None

    def gradients(places: np.ndarray) -> np.ndarray:
        nonlocal found
        found = _evaluated(problem, motion, components, posterior.draws, Task.SCORES, places)
        return np.asarray(found.gradients)[: len(places)]

    hessian: Any = hessian_on_host(gradients, np.asarray(motion.start))[0]
    means, outer, score = jax.device_get((found.means, found.outer, found.score))
    score = score.reshape(*posterior.draws.shape[:2], -1)
    return ScoreMoments(score, means, outer, hessian)


def curvature_of_score(
    problem: Problem,
    motion: Motion,
    components: Components,
    step: np.ndarray,
    draws: Sequence[np.ndarray],
) -> tuple[np.ndarray, float]:
    """What a Newton step leaves out: the score after `step` (p,), beyond the linear prediction.

    Draws at `motion.start`, arrays (chain, draw, D), are reweighted to where the step leads. The
    same draws make the prediction, so their noise cancels to the first order. Returns the
    difference (p,) and the largest weight in units of the mean.
    """
    # The derivative along the step is a difference: its errors are of the third order.
    shares = np.array([0.0, -DIFFERENCE, DIFFERENCE, 1.0])
    places = np.asarray(motion.start) + shares[:, None] * step
    ratios, scores = [], []
    for some in draws:
        evaluated = partial(_evaluated, problem, motion, components, some)
        parts = np.array([evaluated(Task.PIECES, [place]).parts for place in places], float)
        ratios.append((parts - parts[0]).sum(axis=2))
        scores.append(np.asarray(evaluated(Task.GRADIENTS, places).scores, float))
    with np.errstate(invalid="ignore"):  # what is not finite stays so
        weights = np.concatenate(ratios, axis=1)
        weights = np.exp(weights - weights.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
    moved = np.concatenate(scores, axis=1)
    here, backward, forward, there = np.einsum("sn,sni->si", weights, moved)
    slope = (forward - backward) / (2 * DIFFERENCE)
    return there - here - slope, float(np.max(weights) * weights.shape[1])


def known_blocks(
    problem: Problem, x: jax.Array, components: Components | None, shape: tuple[int, ...]
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]] | None:
    """Blocks of latents, (D,), and a function of points (n, D): the log-joint at `x` by block.

    Its values are (n, G + 1), with what belongs to none last. `shape` is that of draws,
    (chain, draw, D), for which the program was compiled. None if the components are not known.
    """
    if components is None or components.labels is None:
        return None

    def by_block(points: np.ndarray) -> np.ndarray:
        size, count = shape[0] * shape[1], len(points)
        points = points[np.minimum(np.arange(-(-count // size) * size), count - 1)]
        found = [
            _evaluated(problem, motion, components, some, Task.PIECES, [np.asarray(x)]).parts
            for some in points.reshape(-1, *shape)
        ]
        return np.concatenate(found)[:count].astype(float)

    motion = still(x, np.zeros(shape[2]))
    return components.labels, by_block
