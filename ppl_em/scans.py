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

from ppl_em.validation import ModelError

Values = dict[str, jax.Array]
"""Sample site to its given values."""

CarryStep = Callable[..., Any]
"""Carry, input, given values and supports of discrete sites, to the new carry."""


class Scan(NamedTuple):
    """The arguments of one `scan` statement; `given` looks up a site's value, None if it has none."""

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

    `series` collects those series, shape (length, *site_shape).
    """

    def __init__(self, scan: Scan, data: Values | None = None):
        self.series: Values = {}

        def value(site: dict[str, Any]) -> jax.Array | None:
            found = scan.given(site)
            if site["type"] != "sample" or found is None:
                return found
            if data is not None and site["name"] in data:
                return data[site["name"]]
            single = len(site["kwargs"]["sample_shape"] + site["fn"].shape())
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

    Leaves without discrete states (a count, the last observation) are followed by a cheap
    `lax.scan`; those with them may not depend on the states of the step before.

    Parameters
    ----------
    step
        Runs one step with the discrete sites on the axes of the previous step.
    scan
        The scan.
    series, supports
        Values of continuous sites at every step, and of discrete sites.

    Raises
    ------
    ModelError
        If the carry remembers discrete states of more than one step.
    """
    every = (scan.inputs, series)
    x, data = jax.tree.map(lambda leaf: leaf[0], every)
    after = step(scan.init, x, data, supports)
    leaves, structure = jax.tree.flatten(after)
    count = len(leaves)
    num_others = len(jax.tree.leaves((x, data)))
    needs = dependence(step, after, x, data, supports)
    discrete = [any(i >= count + num_others for i in need) for need in needs]
    if any(i < count and discrete[i] for need in needs for i in need):
        raise ModelError(
            "Model: the carry of its `scan` depends on discrete states of more than one step "
            "before. Only chains of order 1 are summed out: let one state stand for two steps."
        )
    if scan.length == 1:
        return Carries(leaves, [False] * count, structure)
    earlier = jax.tree.map(lambda leaf: leaf[:-1], every)
    plain = [i for i in range(count) if not discrete[i]]
    before: list[jax.Array] = []
    if plain:
        before, followed = _follow(step, scan, earlier, supports, leaves, structure, plain)
    result, varies = list(leaves), [not d for d in discrete]
    for i, stacked in zip(plain, followed if plain else [], strict=True):
        result[i] = stacked
    moving = [
        discrete[j] and any(i in plain or count <= i < count + num_others for i in needs[j])
        for j in range(count)
    ]
    if any(moving):

        def at(before: list[jax.Array], inputs: tuple) -> list[jax.Array]:
            carry = _with(leaves, plain, before, structure)
            return jax.tree.leaves(step(carry, *inputs, supports))

        series_of = jax.vmap(at)(before, earlier)
        for j in range(count):
            if moving[j]:
                result[j], varies[j] = series_of[j], True
    return Carries(result, varies, structure)


def _follow(
    step: CarryStep,
    scan: Scan,
    earlier: tuple,
    supports: Values,
    leaves: list[jax.Array],
    structure: Any,
    plain: list[int],
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Leaves `plain` of the carry before and after every step but the last, stacked."""
    initial = jax.tree.leaves(scan.init)
    if len(initial) != len(leaves):
        raise ModelError(
            "Model: the carry of its `scan` changes its structure. Keep one structure."
        )
    start = [
        jnp.broadcast_to(jnp.asarray(initial[i], leaves[i].dtype), leaves[i].shape) for i in plain
    ]

    def body(before: list[jax.Array], inputs: tuple) -> tuple:
        carry = _with(leaves, plain, before, structure)
        new = jax.tree.leaves(step(carry, *inputs, supports))
        after = [jnp.asarray(new[i], leaves[i].dtype) for i in plain]
        return after, (before, after)

    return jax.lax.scan(body, start, earlier)[1]


def _with(leaves: list, places: list[int], values: list, structure: Any) -> Any:
    new = list(leaves)
    for i, value in zip(places, values, strict=True):
        new[i] = value
    return jax.tree.unflatten(structure, new)


def dependence(function: Callable, *arguments: Any) -> list[frozenset[int]]:
    """For each output leaf, which of the input leaves it depends on, judged from the program."""
    closed = jax.make_jaxpr(function)(*arguments)
    return _propagate(closed.jaxpr, [frozenset({i}) for i in range(len(closed.jaxpr.invars))])


def _propagate(jaxpr: Any, inputs: Sequence[frozenset[int]]) -> list[frozenset[int]]:
    known: dict[Any, frozenset[int]] = dict(zip(jaxpr.invars, inputs, strict=True))

    def sources(atom: Any) -> frozenset[int]:
        return frozenset() if hasattr(atom, "val") else known.get(atom, frozenset())

    for equation in jaxpr.eqns:
        found = [sources(atom) for atom in equation.invars]
        if equation.primitive.name in ("jit", "pjit"):
            results = _propagate(equation.params["jaxpr"].jaxpr, found)
        else:
            results = [frozenset().union(*found)] * len(equation.outvars)
        known.update(zip(equation.outvars, results, strict=True))
    return [sources(atom) for atom in jaxpr.outvars]
