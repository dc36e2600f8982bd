"""Exchangeable components: permutations of parameters that leave the log-joint as it is.

The components of a mixture can be numbered in any order. Which axes of which parameters they share
is found by trial: axes of the same length are permuted together, and with them those of latents,
until the log-joint stays the same.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.params import Params
from ppl_em.problem import Problem

MAX_TRIALS = 512
"""Sets of axes that are tried for each length."""

MAX_ALL = 6
"""Components up to which all permutations are compared; more are matched by their costs."""


class Group(NamedTuple):
    """`size` exchangeable components, along `axes`: pairs of a leaf of the parameters and its axis.

    Leaves are counted in flattening order, over all parameters, fixed ones included.
    """

    size: int
    axes: tuple[tuple[int, int], ...]


def permuted(params: Params, groups: tuple[Group, ...], orders: list[np.ndarray]) -> Params:
    """The same parameters with component `order[k]` in place k, for every group and its order."""
    leaves, treedef = jax.tree.flatten(params)
    for group, order in zip(groups, orders, strict=True):
        leaves = _permuted(leaves, group.axes, order)
    return jax.tree.unflatten(treedef, leaves)


def exchangeable(problem: Problem, params: Params) -> tuple[Group, ...]:
    """Groups of exchangeable components, found near `params`.

    Every set of axes of one length, at most `MAX_TRIALS`, is tried from the largest on, with one
    exchange of two components and one rotation of all, at two random points.
    """
    points = _points(problem, params)
    leaves, hidden = (jax.tree.leaves(part) for part in points[0])
    held = jax.tree.leaves(
        {k: jax.tree.map(lambda _, k=k: k in problem.fixed, v) for k, v in params.items()}
    )
    places = [
        ((part, i, axis), size)
        for part, arrays in enumerate((leaves, hidden))
        for i, leaf in enumerate(arrays)
        if part or not held[i]
        for axis, size in enumerate(np.shape(leaf))
        if size > 1
    ]
    groups = []
    for size in sorted({size for (part, *_), size in places if not part}):
        left = [place for place, its_size in places if its_size == size]
        while found := _largest(problem, points, size, left):
            groups.append(Group(size, tuple((i, axis) for part, i, axis in found if not part)))
            left = [place for place in left if place not in found]
    return tuple(groups)


def nearest(params: Params, reference: Params, groups: tuple[Group, ...]) -> list[np.ndarray]:
    """Orders of the components of every group that bring `params` nearest to `reference`.

    Distances are in units of the spread of each parameter of the reference over the components.
    """
    orders: list[np.ndarray] = []
    for k, group in enumerate(groups):
        so_far = permuted(params, groups[:k], orders)
        orders.append(_nearest(so_far, reference, group))
    return orders


def _points(problem: Problem, params: Params) -> list[tuple[Params, Params]]:
    """Two random points near `params`: all parameters, and continuous latents."""
    rng = np.random.default_rng(0)
    x, u = np.asarray(problem.unconstrain(params)), np.asarray(problem.start)
    points = []
    for _ in range(2):
        near = problem.constrain(jnp.asarray(x + rng.normal(0.0, 0.3, x.shape), x.dtype))
        moved = jnp.asarray(u + rng.normal(0.0, 0.3, u.shape), u.dtype)
        points.append(jax.device_get((near, problem.constrain_latents(near, moved))))
    return points


def _largest(
    problem: Problem, points: list[tuple[Params, Params]], size: int, places: list
) -> tuple | None:
    """The largest set of `places` (0 or 1 for parameter or latent, leaf, axis) that may permute."""
    swap, turn = np.arange(size), np.roll(np.arange(size), 1)
    swap[:2] = 1, 0
    sets = (
        chosen
        for count in range(len(places), 0, -1)
        for chosen in itertools.combinations(places, count)
        if any(not part for part, *_ in chosen)
    )
    before = [_log_joint(problem, *point) for point in points]
    for chosen in itertools.islice(sets, MAX_TRIALS):
        for order in (swap, turn) if size > 2 else (swap,):
            if not all(
                _same(value, _log_joint(problem, *_moved(point, chosen, order)))
                for point, value in zip(points, before, strict=True)
            ):
                break
        else:
            return chosen
    return None


def _moved(point: tuple[Params, Params], chosen: tuple, order: np.ndarray) -> list[Params]:
    moved = []
    for part, tree in enumerate(point):
        leaves, treedef = jax.tree.flatten(tree)
        axes = tuple((i, axis) for its_part, i, axis in chosen if its_part == part)
        moved.append(jax.tree.unflatten(treedef, _permuted(leaves, axes, order)))
    return moved


def _permuted(leaves: list, axes: tuple[tuple[int, int], ...], order: Any) -> list:
    leaves = [np.asarray(leaf) for leaf in leaves]
    for i, axis in axes:
        leaves[i] = np.take(leaves[i], order, axis)
    return leaves


def _log_joint(problem: Problem, params: Params, latents: Params) -> np.ndarray:
    return np.asarray(problem.log_joint(params, latents))


def _same(value: np.ndarray, other: np.ndarray) -> bool:
    """Whether two log-joints are equal up to rounding."""
    return bool(abs(value - other) <= 1e3 * np.finfo(value.dtype).eps * (1 + abs(value)))


def _nearest(params: Params, reference: Params, group: Group) -> np.ndarray:
    """The order of components of `params` that is nearest to `reference`."""
    leaves, targets = jax.tree.leaves(params), jax.tree.leaves(reference)
    # Rows are components: those of the reference, then those to be matched to them.
    cost = np.zeros((group.size, group.size))
    by_leaf: dict[int, list[int]] = {}
    for i, axis in group.axes:
        by_leaf.setdefault(i, []).append(axis)
    scales = {i: _scale(np.asarray(targets[i]), axes) for i, axes in by_leaf.items()}
    if group.size <= MAX_ALL:

        def distance(order: tuple[int, ...]) -> float:
            moved = _permuted(leaves, group.axes, list(order))
            return sum(
                float(np.sum((moved[i] - targets[i]) ** 2)) / scale**2
                for i, scale in scales.items()
            )

        return np.array(min(itertools.permutations(range(group.size)), key=distance))
    from scipy.optimize import linear_sum_assignment

    for i, axes in by_leaf.items():
        rows, others = (_rows(np.asarray(leaf), axes) for leaf in (targets[i], leaves[i]))
        cost += np.sum((rows[:, None] - others) ** 2, axis=-1) / scales[i] ** 2
    return linear_sum_assignment(cost)[1]


def _scale(leaf: np.ndarray, axes: list[int]) -> float:
    """Spread of a leaf over its components, or its size where they are equal."""
    spread = float(np.sqrt(np.mean(np.var(leaf, axis=axes[0]))))
    return spread if spread > 0 else float(np.max(np.abs(leaf))) or 1.0


def _rows(leaf: np.ndarray, axes: list[int]) -> np.ndarray:
    """One row of numbers for each component; the diagonal where two axes are theirs."""
    if len(axes) == 1:
        rows = np.moveaxis(leaf, axes[0], 0)
    else:
        rows = np.moveaxis(np.diagonal(leaf, axis1=axes[0], axis2=axes[1]), -1, 0)
    return rows.reshape(len(rows), -1)
