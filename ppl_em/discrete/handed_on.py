"""What each step of a scan hands on to the next, leaf by leaf of the carry."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Values = dict[str, jax.Array]
"""Sample site to its given values."""

CarryStep = Callable[..., Any]
"""Carry, input, given values and supports of discrete sites, to the new carry."""


class Handed:
    """What each step but the last hands on: `after` by leaf, stacked over steps if it varies."""

    def __init__(
        self,
        step: CarryStep,
        init: Any,
        length: int,
        inputs: tuple,
        supports: Values,
        leaves: list[jax.Array],
        structure: Any,
        constant: set[int],
        alone: bool,
    ):
        self.step, self.init, self.supports, self.alone = step, init, supports, alone
        self.length = length - 1 - int(alone)
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
        if not self.alone:
            return value
        shape = jnp.broadcast_shapes(self.leaves[i].shape, value.shape[1:])
        both = (self.leaves[i][None], value)
        return jnp.concatenate([jnp.broadcast_to(a, (len(a), *shape)) for a in both])

    def _run(
        self, before: dict[int, jax.Array], inputs: tuple, wanted: list[int]
    ) -> list[jax.Array]:
        carry = [before.get(i, leaf) for i, leaf in enumerate(self.leaves)]
        new = self.step(jax.tree.unflatten(self.structure, carry), *inputs[1], self.supports)
        flat = jax.tree.leaves(new)
        return [jnp.asarray(flat[j], self.leaves[j].dtype) for j in wanted]

    def _start(self, i: int, shape: tuple[int, ...] | None = None) -> jax.Array:
        if self.alone:
            return self.leaves[i]
        leaf, initial = self.leaves[i], jax.tree.leaves(self.init)[i]
        return jnp.broadcast_to(jnp.asarray(initial, leaf.dtype), shape or leaf.shape)

    def _before(self, i: int) -> jax.Array:
        """Leaf `i` of the carry that enters each step but the last, stacked."""
        after = self.after[i]
        if i in self.constant:
            after = jnp.broadcast_to(after, (self.length + int(self.alone), *after.shape))
        if self.alone:
            return after[:-1]
        return jnp.concatenate([self._start(i, after.shape[1:])[None], after[:-1]])
