"""Scans whose steps are evaluated side by side: discrete states enumerated, the rest given.

A step of a hidden Markov model depends on the step before through its discrete states only, all
values of which are laid out on an axis. So the steps need no order: they are evaluated by `vmap`,
and what does not change from step to step (a transition matrix, say) is evaluated once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.primitives import _PYRO_STACK

from ppl_em.discrete.handed_on import CarryStep, Handed, Values
from ppl_em.util import ModelError
from ppl_em.util.dependence import dependence


class Scan(NamedTuple):
    """The arguments of one `scan` statement; `given` looks up a site's value, or None.

    `order` is how many steps back its states are remembered.
    """

    body: Callable[[Any, Any], tuple[Any, Any]]
    init: Any
    inputs: Any
    length: int
    given: Callable[[dict[str, Any]], jax.Array | None]
    order: int = 1


def read(
    f: Callable,
    init: Any,
    xs: Any,
    length: int | None,
    reverse: bool,
    *,
    substitute_stack: Sequence[tuple[str, Any]] = (),
    history: int = 1,
    **_: Any,
) -> Scan:
    """The scan that a `control_flow` message asks for, or an error if it is not supported."""
    if reverse:
        raise ModelError(
            "Model: its `scan` over discrete latents runs in reverse. Only forward chains are "
            "summed out: turn the inputs around."
        )
    if length is None:
        length = np.shape(jax.tree.leaves(xs)[0])[0]
    for handler in reversed(_PYRO_STACK):
        if isinstance(handler, handlers.scale):
            f = handlers.scale(f, scale=handler.scale)
        if isinstance(handler, handlers.mask):
            f = handlers.mask(f, mask=handler.mask)

    def given(site: dict[str, Any]) -> jax.Array | None:
        found = None
        for _, data in substitute_stack:
            value = data.get(site["name"]) if isinstance(data, dict) else data(site)
            found = found if value is None else value
        return found

    return Scan(f, init, xs, int(length), given, max(1, history))


class Chain(NamedTuple):
    """A scan: `time` names its axis of `length` steps after the first.

    `first` and `rest` are the keys of the tables of the first step, and of all others together.
    """

    time: str
    length: int
    first: tuple[str, ...]
    rest: tuple[str, ...]


class substituted(handlers.substitute):
    """A step with its values: those of `data`, or the first of each series that `scan` gives.

    `series` collects those series, shape (length, *site_shape). Batch axes beyond `max_batch` are
    those of discrete sites, and no part of a value.
    """

    def __init__(self, scan: Scan, data: Values | None = None, max_batch: int | None = None):
        self.series: Values = {}

        def value(site: dict[str, Any]) -> jax.Array | None:
            found = scan.given(site)
            if site["type"] != "sample" or found is None:
                return found
            if data is not None and site["name"] in data:
                return data[site["name"]]
            batch = len(site["fn"].batch_shape)
            batch = batch if max_batch is None else min(batch, max_batch)
            single = len(site["kwargs"]["sample_shape"]) + batch + site["fn"].event_dim
            if jnp.ndim(found) == single:
                return found
            self.series[site["name"]] = found
            return found[0]

        super().__init__(scan.body, substitute_fn=value)


class Carries(NamedTuple):
    """The carry that enters each step after the first: leaves, and which vary with the step.

    A leaf that varies has a leading axis of length - 1.
    """

    leaves: list[jax.Array]
    varies: list[bool]
    structure: Any

    @property
    def axes(self) -> Any:
        """The `in_axes` of the carry for `jax.vmap`."""
        return jax.tree.unflatten(self.structure, [0 if v else None for v in self.varies])

    @property
    def tree(self) -> Any:
        """The carry, stacked where it varies."""
        return jax.tree.unflatten(self.structure, self.leaves)

    @property
    def first(self) -> Any:
        """The carry that enters the second step."""
        pairs = zip(self.leaves, self.varies, strict=True)
        return jax.tree.unflatten(self.structure, [a[0] if v else a for a, v in pairs])


def carries(
    step: CarryStep, scan: Scan, series: Values, supports: Values, axes: dict[str, int]
) -> Carries:
    """Find the carry entering every step but the first.

    What a step hands on may depend on the inputs, on values and on what was handed to it; only
    leaves that depend on themselves (a running count) need a `lax.scan`, which is cheap. Leaves
    with discrete states may not depend on the states of the step before.

    Parameters
    ----------
    step
        Runs one step with the discrete sites on the axes of the previous step.
    scan
        The scan, of at least two steps.
    series, supports
        Values of continuous sites at every step, and of discrete sites.
    axes
        Of discrete sites whose states are handed on for more than one step: those of the carry.

    Raises
    ------
    ModelError
        If the carry remembers discrete states of more steps than the scan says.
    """
    every = (scan.inputs, series)
    once = jax.tree.map(lambda leaf: leaf[0], every)
    leaves, structure = jax.tree.flatten(step(scan.init, *once, supports))
    needs = dependence(step, jax.tree.unflatten(structure, leaves), *once, supports)
    count, others = len(leaves), len(jax.tree.leaves(once))
    own = [any(i >= count + others for i in need) for need in needs]
    discrete = _with_states(needs, own, scan.order)
    for k, name in enumerate(sorted(axes)):
        mine = [leaves[i] for i in range(count) if count + others + k in needs[i]]
        if any(_size(leaf, axes[name]) != len(supports[name]) for leaf in mine):
            raise ModelError(
                f"Model: the carry of its `scan` with history={scan.order} holds the states "
                f"'{name}' in arrays with axes of their own. Hand on the states themselves."
            )
    constant = {j for j in range(count) if not any(i < count + others for i in needs[j])}
    alone = not _fits(scan.init, leaves, structure)
    if alone and constant:  # what step 1 hands on may be another constant
        again = jax.tree.leaves(step(jax.tree.unflatten(structure, leaves), *once, supports))
        constant = {j for j in constant if again[j] is leaves[j]}
    earlier = jax.tree.map(lambda leaf: leaf[int(alone) : -1], every)
    handed = Handed(
        step, scan.init, scan.length, earlier, supports, leaves, structure, constant, alone
    )
    left = set(range(count)) - constant
    while left:
        ready = sorted(j for j in left if all(i >= count or i in handed.after for i in needs[j]))
        used = {i for j in ready or left for i in needs[j] if i < count}
        if ready:
            handed.side_by_side(ready, used)
        else:
            ready = sorted(j for j in left if not discrete[j])
            handed.in_order(ready, used - left)
        left -= set(ready)
    varies = [j not in constant for j in range(count)]
    return Carries([handed.after[j] for j in range(count)], varies, structure)


def _size(leaf: jax.Array, axis: int) -> int:
    return leaf.shape[axis] if leaf.ndim >= -axis else 1


def _with_states(needs: Sequence[frozenset[int]], own: list[bool], order: int) -> list[bool]:
    """Which leaves of the carry hold discrete states; an error for those of too long ago."""
    ages = [int(o) for o in own]
    for _ in range(order):
        handed = [max((ages[i] for i in need if i < len(own)), default=0) for need in needs]
        ages = [max(age + 1 if age else 0, int(o)) for age, o in zip(handed, own, strict=True)]
    if max(ages, default=0) > order:
        raise ModelError(
            f"Model: the carry of its `scan` depends on discrete states of more than {order} "
            f"{'step' if order == 1 else 'steps'} before. Say how many steps back they count, as "
            f"in `scan(..., history=2)`, or let one state stand for several steps."
        )
    return [age > 0 for age in ages]


def moved(leaf: jax.Array, moves: list[tuple[int, int]]) -> jax.Array:
    """A leaf of the carry with its states on other axes, counted from the right."""
    leaf = jnp.asarray(leaf)
    for old, new in moves:
        if leaf.ndim >= -old and leaf.shape[old] > 1:
            shape = (1,) * (-new - leaf.ndim) + leaf.shape
            leaf = jnp.swapaxes(leaf.reshape(shape), old, new)
    return leaf


def _fits(init: Any, leaves: list[jax.Array], structure: Any) -> bool:
    """Whether a scan begins with a carry as steps hand it on, but for axes of discrete sites."""
    if jax.tree.structure(init) != structure:
        return False
    pairs = zip(jax.tree.leaves(init), leaves, strict=True)
    shapes = [(jnp.shape(first), jnp.shape(leaf)) for first, leaf in pairs]
    return all(len(a) <= len(b) and jnp.broadcast_shapes(a, b) == b for a, b in shapes)


def varying_rows(entering: Carries, now: tuple) -> jax.Array | None:
    """All that varies with the step, carry, inputs and values, (T, m); None if not all real."""
    leaves = _varying(entering, now)
    if not leaves or not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        return None
    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def at_points(points: jax.Array, entering: Carries, now: tuple) -> tuple[Any, Any, Any]:
    """Carry, inputs and values of pseudo-steps, from rows (R, m) as `varying_rows` has them."""
    leaves = _varying(entering, now)
    ends = np.cumsum([int(np.prod(leaf.shape[1:])) for leaf in leaves])[:-1]
    pieces = zip(jnp.split(points, ends, axis=1), leaves, strict=True)
    parts = iter([part.reshape((len(points), *leaf.shape[1:])) for part, leaf in pieces])
    pairs = zip(entering.leaves, entering.varies, strict=True)
    carry = [next(parts) if varies else leaf for leaf, varies in pairs]
    x, data = jax.tree.unflatten(jax.tree.structure(now), list(parts))
    return jax.tree.unflatten(entering.structure, carry), x, data


def _varying(entering: Carries, now: tuple) -> list[jax.Array]:
    pairs = zip(entering.leaves, entering.varies, strict=True)
    return [leaf for leaf, varies in pairs if varies] + jax.tree.leaves(now)


def join(first: jax.Array, others: jax.Array) -> jax.Array:
    """Outputs of the first step and of the others, in one array."""
    shape = jnp.broadcast_shapes(first.shape[1:], others.shape[1:])
    return jnp.concatenate([jnp.broadcast_to(a, (len(a), *shape)) for a in (first, others)])
