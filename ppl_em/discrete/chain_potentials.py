"""A chain of discrete states as log-potentials of its steps, of any order and with its ends."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.discrete import elimination
from ppl_em.discrete.elimination import (
    LAST,
    LOG_ZERO,
    PREVIOUS,
    Reduce,
    Table,
    Variable,
    Weights,
    site_of,
)
from ppl_em.discrete.factors import Layout
from ppl_em.discrete.scans import Chain
from ppl_em.util import ModelError

HELD = "held "
"""Prefix of the axis of what a state was some steps before, as part of the state now."""


class Method(NamedTuple):
    """How variables are removed: outside chains by `reduce`, along chains by `chain`.

    `sum_plates` says whether what has no variables left is summed over its plates at once.
    """

    reduce: Reduce
    chain: str
    rng_key: jax.Array | None = None
    sum_plates: bool = True


class Potentials(NamedTuple):
    """Of a chain of discrete states: log-potentials of `forward_backward.contract`, and the rest.

    `batch` names the plates on the axes in front; `states` the sites whose values make a state.
    `rest` are tables that touch none.
    """

    first: jax.Array
    move: jax.Array
    emission: jax.Array
    batch: tuple[str, ...]
    states: tuple[str, ...]
    rest: list[Table]


def last_states(layout: Layout, variables: dict[str, Variable]) -> dict[str, Variable]:
    """States of the last step of a chain, as sites outside of it see them."""
    times = {chain.time for chain in layout.chains}
    axes = {axis for _, names in layout.names for axis in names if axis.startswith(LAST)}
    found = {axis: variables[site_of(axis)] for axis in axes}
    return {axis: Variable(v.size, v.plates - times) for axis, v in found.items()}


def potentials(
    chain: Chain,
    tables: dict[str, list[Table]],
    after: list[Table],
    variables: dict[str, Variable],
    plates: dict[str, int],
    method: Method,
    weights: Weights,
) -> Potentials | list[Table]:
    """The potentials of a chain; tables alone if no state of it follows another."""
    first = [t for key in chain.first for t in tables[key]]
    rest = [t for key in chain.rest for t in tables[key]]
    inside = {name for name, v in variables.items() if chain.time in v.plates}
    seen = {a for t in rest for a in t.names if a.startswith(PREVIOUS)}
    seen |= {PREVIOUS + a.removeprefix(LAST) for t in after for a in t.names if a.startswith(LAST)}
    states = sorted({site_of(a) for a in seen} & inside)
    before, now, ties = _memory(states, seen, variables, chain.time)
    copies = {name: variables[site_of(name)] for name in before}
    start = {n: Variable(v.size, v.plates - {chain.time}) for n, v in variables.items()}
    known = {**variables, **copies}
    weights = {**weights, **{n: weights[site_of(n)] for n in before if site_of(n) in weights}}
    eliminate = partial(
        elimination.eliminate,
        reduce=method.reduce,
        sum_plates=method.sum_plates,
        weights=weights,
    )
    if not states:
        return eliminate(first, start, plates, inside) + eliminate(rest, known, plates, inside)
    after = [_at_end(t, states) for t in eliminate(after, known, plates, ())]
    if not chain.length:
        return eliminate([*first, *after], start, plates, inside)
    local = inside - set(states)
    first = eliminate(first, start, plates, local)
    rest = eliminate(rest, known, plates, local)
    scalars = [t for t in (*first, *rest) if not set(t.names) & {*states, *before}]
    first = [t for t in first if set(t.names) & set(states)]
    rest = [t for t in rest if set(t.names) & {*states, *before}]
    batch = tuple(
        dict.fromkeys(
            n
            for t in (*first, *rest, *after)
            for n in t.names
            if n not in (chain.time, *now, *before)
        )
    )
    _check_plates(states, variables, chain, batch)
    move = [*(t for t in rest if set(t.names) & set(before)), *ties[1]]
    emit = [t for t in rest if not set(t.names) & set(before)]
    shape = [variables[site_of(n)].size for n in before]
    size = int(np.prod(shape))

    def flat(group: list[Table], lead: tuple[str, ...], axes: list[list[str]]) -> jax.Array:
        order = (*lead, *batch, *(name for part in axes for name in part))
        zero = Table(jnp.zeros([1] * (len(lead) + len(batch)) + shape * len(axes)), order)
        array = elimination.add([zero, *group], order).array
        return array.reshape((*array.shape[: len(lead) + len(batch)], *[size] * len(axes)))

    emission = flat(emit, (chain.time,), [now])
    emission = jnp.broadcast_to(emission, (chain.length, *emission.shape[1:]))
    if after:
        end = emission[-1] + flat(after, (), [now])
        emission = jnp.broadcast_to(emission, (chain.length, *end.shape)).at[-1].set(end)
    begin = flat([*first, *ties[0]], (), [now])
    between = flat(move, (chain.time,), [before, now])
    return Potentials(begin, between, emission, batch, tuple(states), scalars)


def _at_end(table: Table, states: list[str]) -> Table:
    """A table with the axes that a chain's last step has."""

    def renamed(axis: str) -> str:
        if not axis.startswith(LAST) or site_of(axis) not in states:
            return axis
        axis = axis.removeprefix(LAST)
        return HELD + axis if axis.startswith(PREVIOUS) else axis

    return Table(table.array, tuple(renamed(axis) for axis in table.names))


def _memory(
    states: list[str], axes: set[str], variables: dict[str, Variable], time: str
) -> tuple[list[str], list[str], tuple[list[Table], list[Table]]]:
    """The axes of a chain's whole state, a step before and now; and what ties the one to the other.

    In a chain of order 2 it is a state and the one before, so that the transition from (a, b) to
    (c, b') is possible for b = b' only. In the first step what came before counts for nothing:
    it is the first value.
    """
    before, now, start, rest = [], [], [], []
    for name in states:
        before.append(PREVIOUS + name)
        now.append(name)
        while PREVIOUS + before[-1] in axes:
            held = HELD + before[-1]
            same = jnp.eye(variables[name].size, dtype=bool)
            rest.append(Table(jnp.where(same, 0.0, LOG_ZERO)[None], (time, before[-1], held)))
            start.append(Table(jnp.where(same[0], 0.0, LOG_ZERO), (held,)))
            before.append(PREVIOUS + before[-1])
            now.append(held)
    return before, now, (start, rest)


def _check_plates(
    states: list[str], variables: dict[str, Variable], chain: Chain, batch: tuple[str, ...]
) -> None:
    shared = variables[states[0]].plates
    extra = [n for n in batch if n not in variables and n not in shared]
    if extra or any(variables[n].plates != shared for n in states):
        raise ModelError(
            f"Site '{states[0]}': the states of its `scan` are in different plates, so they form "
            f"one chain that grows with the plate. Put all states of a chain in the same plates."
        )
