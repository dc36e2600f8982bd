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

from ppl_em.util import ModelError
from ppl_em.util.dependence import dependence

Values = dict[str, jax.Array]
"""Sample site to its given values."""

CarryStep = Callable[..., Any]
"""Carry, input, given values and supports of discrete sites, to the new carry."""


class Scan(NamedTuple):
    """The arguments of one `scan` statement; `given` looks up a site's value, or None."""

    body: Callable[[Any, Any], tuple[Any, Any]]
    init: Any
    inputs: Any
    length: int
    given: Callable[[dict[str, Any]], jax.Array | None]


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
    if reverse or history != 1:
        what = "runs in reverse" if reverse else f"has history={history}"
        raise ModelError(
            f"Model: its `scan` over discrete latents {what}. Only forward chains of order 1 are "
            f"summed out: turn the inputs around, or let one state stand for two steps."
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

    return Scan(f, init, xs, int(length), given)


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


def carries(step: CarryStep, scan: Scan, series: Values, supports: Values) -> Carries:
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

    Raises
    ------
    ModelError
        If the carry remembers discrete states of more than one step.
    """
    every = (scan.inputs, series)
    once = jax.tree.map(lambda leaf: leaf[0], every)
    leaves, structure = jax.tree.flatten(step(scan.init, *once, supports))
    needs = dependence(step, jax.tree.unflatten(structure, leaves), *once, supports)
    count, others = len(leaves), len(jax.tree.leaves(once))
    discrete = [any(i >= count + others for i in need) for need in needs]
    if any(i < count and discrete[i] for need in needs for i in need):
        raise ModelError(
            "Model: the carry of its `scan` depends on discrete states of more than one step "
            "before. Only chains of order 1 are summed out: let one state stand for two steps."
        )
    constant = {j for j in range(count) if not any(i < count + others for i in needs[j])}
    alone = not _fits(scan.init, leaves, structure)
    if alone and constant:  # what step 1 hands on may be another constant
        again = jax.tree.leaves(step(jax.tree.unflatten(structure, leaves), *once, supports))
        constant = {j for j in constant if again[j] is leaves[j]}
    earlier = jax.tree.map(lambda leaf: leaf[int(alone) : -1], every)
    handed = _Handed(step, scan, earlier, supports, leaves, structure, constant, alone)
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


class _Handed:
    """What each step but the last hands on: `after` by leaf, stacked over steps if it varies."""

    def __init__(
        self,
        step: CarryStep,
        scan: Scan,
        inputs: tuple,
        supports: Values,
        leaves: list[jax.Array],
        structure: Any,
        constant: set[int],
        alone: bool,
    ):
        self.step, self.init, self.supports, self.alone = step, scan.init, supports, alone
        self.length = scan.length - 1 - int(alone)
        self.inputs = (jnp.arange(self.length), inputs)
        self.leaves, self.structure, self.constant = leaves, structure, constant
        self.after = {i: leaves[i] for i in constant}

    def side_by_side(self, wanted: list[int], used: set[int]) -> None:
        """Find leaves that depend on the carry only through the known leaves `used`."""

        def at(before: dict[int, jax.Array], inputs: tuple) -> list[jax.Array]:
            return self._run(before, inputs, wanted)

        before = {i: self._before(i) for i in used}
        for j, value in zip(wanted, jax.vmap(at)(before, self.inputs), strict=True):
            self.after[j] = self._with_first(j, value)

    def in_order(self, wanted: list[int], used: set[int]) -> None:
        """Follow leaves that depend on themselves."""

        def body(carry: list[jax.Array], inputs: tuple) -> tuple[list[jax.Array], list[jax.Array]]:
            known, inputs = inputs
            own = dict(zip(wanted, carry, strict=True))
            new = self._run({**known, **own}, inputs, wanted)
            return new, new

        start = [self._start(j) for j in wanted]
        before = {i: self._before(i) for i in used}
        values = jax.lax.scan(body, start, (before, self.inputs))[1]
        self.after |= {j: self._with_first(j, v) for j, v in zip(wanted, values, strict=True)}

    def _with_first(self, i: int, value: jax.Array) -> jax.Array:
        """Leaf `i` for all steps but the last: ahead of `value` that of the first, if run alone."""
        return jnp.concatenate([self.leaves[i][None], value]) if self.alone else value

    def _run(
        self, before: dict[int, jax.Array], inputs: tuple, wanted: list[int]
    ) -> list[jax.Array]:
        carry = [before.get(i, leaf) for i, leaf in enumerate(self.leaves)]
        new = self.step(jax.tree.unflatten(self.structure, carry), *inputs[1], self.supports)
        flat = jax.tree.leaves(new)
        return [jnp.asarray(flat[j], self.leaves[j].dtype) for j in wanted]

    def _start(self, i: int) -> jax.Array:
        if self.alone:
            return self.leaves[i]
        leaf, initial = self.leaves[i], jax.tree.leaves(self.init)[i]
        return jnp.broadcast_to(jnp.asarray(initial, leaf.dtype), leaf.shape)

    def _before(self, i: int) -> jax.Array:
        """Leaf `i` of the carry that enters each step but the last, stacked."""
        after = self.after[i]
        if i in self.constant:
            after = jnp.broadcast_to(after, (self.length + int(self.alone), *after.shape))
        return after[:-1] if self.alone else jnp.concatenate([self._start(i)[None], after[:-1]])
