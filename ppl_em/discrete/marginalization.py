"""Sum out all discrete sites: each chain first, then the plates around it."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.discrete import elimination, forward_backward
from ppl_em.discrete.elimination import PREVIOUS, Reduce, Table, Variable, Weights
from ppl_em.discrete.enum_messenger import Chain
from ppl_em.discrete.factors import Layout, LogFactors
from ppl_em.util import ModelError


class Method(NamedTuple):
    """How variables are removed: outside chains by `reduce`, along chains by `chain`.

    `sum_plates` says whether what has no variables left is summed over its plates at once.
    """

    reduce: Reduce
    chain: str
    rng_key: jax.Array | None = None
    sum_plates: bool = True


def mode(chain: str | None = None, once: bool = False) -> str:
    """A mode of `forward_backward.contract` for sums: `chain`, or the faster one on this device.

    `once` promises that only values and one gradient are taken.
    """
    if chain is None:
        chain = "sequential" if jax.default_backend() == "cpu" else "parallel"
    if chain == "parallel":
        return "sum_parallel"
    return "sum_once" if once else "sum"


def log_normalizer(factors: LogFactors, chain: str | None = None) -> jax.Array:
    """log Z: the log of the sum over all discrete sites of the product of factors; a scalar.

    Its derivative with respect to a table is that factor's posterior marginal.

    Parameters
    ----------
    factors
        The tables.
    chain
        A mode of `forward_backward.contract`; by default chosen by device.
    """
    value = _run(factors, {}, Method(elimination.log_sum, chain or mode()))
    return elimination.true_zero(value)


def log_terms(factors: LogFactors, scales: dict[str, float] | None = None) -> jax.Array:
    """Terms whose sum is log Z, as many as the plates tell apart, shape (E,).

    `scales`, by plate, multiply the terms inside of it.
    """
    sizes = dict(factors.layout.plates)
    parts = []
    for table in _by_plates(factors):
        full = tuple(sizes[name] for name in table.names)
        repeats = np.prod([n for n, m in zip(full, table.array.shape, strict=True) if m == 1])
        scale = np.prod([(scales or {}).get(name, 1.0) for name in table.names])
        value = elimination.true_zero(jnp.ravel(table.array))
        parts.append(value * int(repeats) * float(scale))
    return jnp.concatenate([*parts, jnp.zeros(0)])


def log_cells(factors: LogFactors) -> list[tuple[tuple[str, ...], jax.Array]]:
    """The same as arrays over the plates that are named, in full."""
    sizes = dict(factors.layout.plates)
    found = []
    for table in _by_plates(factors):
        full = tuple(sizes[name] for name in table.names)
        found.append((table.names, jnp.broadcast_to(elimination.true_zero(table.array), full)))
    return found


def _by_plates(factors: LogFactors) -> list[Table]:
    return _remaining(factors, {}, Method(elimination.log_sum, mode(), sum_plates=False))


def site_probs(factors: LogFactors) -> dict[str, jax.Array]:
    """Posterior probabilities of every discrete site, (*time, *plates, size of the support)."""
    return _indicators(factors, Method(elimination.log_sum, mode(once=True)))


def sample(factors: LogFactors, rng_key: jax.Array) -> dict[str, jax.Array]:
    """One exact joint draw of all discrete sites, one-hot: shapes as `site_probs`."""
    key_plates, key_chains = jax.random.split(rng_key)
    return _indicators(factors, Method(elimination.sampler(key_plates), "sample", key_chains))


def most_probable(factors: LogFactors) -> dict[str, jax.Array]:
    """The jointly most probable values of all discrete sites, one-hot: shapes as `site_probs`."""
    return _indicators(factors, Method(elimination.maximum, "max"))


def _indicators(factors: LogFactors, method: Method) -> dict[str, jax.Array]:
    """Gradients with respect to a table of zeros added to every site."""
    layout = factors.layout
    sizes = dict(layout.plates)
    zeros: dict[str, jax.Array] = {}
    for name, variable in layout.variables:
        shape = [sizes[plate] for plate in _order(layout, variable)]
        zeros[name] = jnp.zeros((*shape, variable.size))
        if any(c.time in variable.plates for c in layout.chains):
            zeros[f"{name}[0]"] = jnp.zeros((*shape[1:], variable.size))
    found = jax.grad(lambda extra: _run(factors, extra, method))(zeros)
    if factors.weights:  # a weight counts cells, and is no part of what is known of one
        found = {name: array / jnp.sum(array, -1, keepdims=True) for name, array in found.items()}
    return {
        name: jnp.concatenate([found[f"{name}[0]"][None], found[name]])
        if f"{name}[0]" in found
        else found[name]
        for name, _ in layout.variables
    }


def _order(layout: Layout, variable: Variable) -> list[str]:
    """Plates of a variable in the order of its axes: time first, then by their axes."""
    times = [c.time for c in layout.chains if c.time in variable.plates]
    return times + [n for n, _ in layout.plates if n in variable.plates and n not in times]


def _run(factors: LogFactors, extra: dict[str, jax.Array], method: Method) -> jax.Array:
    return elimination.product(_remaining(factors, extra, method), dict(factors.layout.plates))


def _remaining(factors: LogFactors, extra: dict[str, jax.Array], method: Method) -> list[Table]:
    """What is left of the tables without their variables."""
    layout = factors.layout
    names = dict(layout.names)
    variables, plates = dict(layout.variables), dict(layout.plates)
    tables = {key: [Table(array, names[key])] for key, array in factors.tables.items()}
    for key, array in extra.items():
        name = key.removesuffix("[0]")
        axes = (*_order(layout, variables[name]), name)
        tables.setdefault(key, []).append(Table(array, axes[key != name :]))
    outer: list[Table] = []
    chained: set[str] = set()
    for i, chain in enumerate(layout.chains):
        outer += _contract(chain, i, tables, variables, plates, method, factors.weights)
        chained |= {*chain.first, *chain.rest}
    outer += [t for key, group in tables.items() if key not in chained for t in group]
    inside = {n for n, v in variables.items() if any(c.time in v.plates for c in layout.chains)}
    remove = set(variables) - inside
    return elimination.eliminate(
        outer, variables, plates, remove, method.reduce, method.sum_plates, factors.weights
    )


def _contract(
    chain: Chain,
    index: int,
    tables: dict[str, list[Table]],
    variables: dict[str, Variable],
    plates: dict[str, int],
    method: Method,
    weights: Weights,
) -> list[Table]:
    """The tables of a chain with its states summed out."""
    first = [t for key in chain.first for t in tables[key]]
    rest = [t for key in chain.rest for t in tables[key]]
    inside = {name for name, v in variables.items() if chain.time in v.plates}
    states = [n for n in inside if any(PREVIOUS + n in t.names for t in rest)]
    states.sort()
    copies = {PREVIOUS + n: variables[n] for n in states}
    start = {n: Variable(v.size, v.plates - {chain.time}) for n, v in variables.items()}
    known = {**variables, **copies}
    weights = {**weights, **{PREVIOUS + n: weights[n] for n in states if n in weights}}
    eliminate = partial(
        elimination.eliminate,
        reduce=method.reduce,
        sum_plates=method.sum_plates,
        weights=weights,
    )
    if not states:
        return eliminate(first, start, plates, inside) + eliminate(rest, known, plates, inside)
    local = inside - set(states)
    first = eliminate(first, start, plates, local)
    rest = eliminate(rest, known, plates, local)
    previous = [PREVIOUS + n for n in states]
    scalars = [t for t in (*first, *rest) if not set(t.names) & {*states, *previous}]
    first = [t for t in first if set(t.names) & set(states)]
    rest = [t for t in rest if set(t.names) & {*states, *previous}]
    batch = tuple(
        dict.fromkeys(
            n for t in (*first, *rest) for n in t.names if n not in (chain.time, *states, *previous)
        )
    )
    _check_plates(states, variables, chain, batch)
    move = [t for t in rest if set(t.names) & set(previous)]
    emit = [t for t in rest if not set(t.names) & set(previous)]
    size = int(np.prod([variables[n].size for n in states]))
    shape = [variables[n].size for n in states]

    def flat(group: list[Table], lead: tuple[str, ...], axes: list[list[str]]) -> jax.Array:
        order = (*lead, *batch, *(name for part in axes for name in part))
        zero = Table(jnp.zeros([1] * (len(lead) + len(batch)) + shape * len(axes)), order)
        array = elimination.add([zero, *group], order).array
        return array.reshape((*array.shape[: len(lead) + len(batch)], *[size] * len(axes)))

    emission = flat(emit, (chain.time,), [states])
    emission = jnp.broadcast_to(emission, (chain.length, *emission.shape[1:]))
    key = None if method.rng_key is None else jax.random.fold_in(method.rng_key, index)
    value = forward_backward.contract(
        flat(first, (), [states]),
        flat(move, (chain.time,), [previous, states]),
        emission,
        method.chain,
        key,
    )
    return [elimination.weighted(Table(value, batch), states, weights), *scalars]


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
