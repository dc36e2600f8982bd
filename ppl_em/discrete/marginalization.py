"""Sum out all discrete sites: each chain first, then the plates around it."""

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.discrete import elimination, forward_backward
from ppl_em.discrete.chain_potentials import Method, Potentials, last_states, potentials
from ppl_em.discrete.elimination import (
    LAST,
    Table,
    Variable,
    Weights,
    site_of,
)
from ppl_em.discrete.factors import Layout, LogFactors
from ppl_em.discrete.scans import Chain


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
    variables |= last_states(layout, variables)
    chained = {key for chain in layout.chains for key in (*chain.first, *chain.rest)}
    outer = [t for key, group in tables.items() if key not in chained for t in group]
    for i, chain in reversed([*enumerate(layout.chains)]):  # a chain may begin where another ends
        inside = {name for name, v in variables.items() if chain.time in v.plates}
        ends = [any(a.startswith(LAST) and site_of(a) in inside for a in t.names) for t in outer]
        after = [t for t, end in zip(outer, ends, strict=True) if end]
        outer = [t for t, end in zip(outer, ends, strict=True) if not end]
        outer += _contract(chain, i, tables, after, variables, plates, method, factors.weights)
    times = {chain.time for chain in layout.chains}
    remove = {n for n, v in variables.items() if not (v.plates & times or n.startswith(LAST))}
    return elimination.eliminate(
        outer, variables, plates, remove, method.reduce, method.sum_plates, factors.weights
    )


def _contract(
    chain: Chain,
    index: int,
    tables: dict[str, list[Table]],
    after: list[Table],
    variables: dict[str, Variable],
    plates: dict[str, int],
    method: Method,
    weights: Weights,
) -> list[Table]:
    """The tables of a chain, and those `after` it that see its end, with its states summed out."""
    found = potentials(chain, tables, after, variables, plates, method, weights)
    if isinstance(found, list):
        return found
    key = None if method.rng_key is None else jax.random.fold_in(method.rng_key, index)
    value = forward_backward.contract(found.first, found.move, found.emission, method.chain, key)
    return [elimination.weighted(Table(value, found.batch), found.states, weights), *found.rest]


def step_potentials(factors: LogFactors) -> tuple[Potentials, jax.Array] | None:
    """The only chain, with all that belongs to its steps, and what belongs to none, a scalar.

    None if there is not one chain of discrete states, or if they have weights.
    """
    layout = factors.layout
    if len(layout.chains) != 1 or factors.weights:
        return None
    chain, names = layout.chains[0], dict(layout.names)
    variables, plates = dict(layout.variables), dict(layout.plates)
    variables |= last_states(layout, variables)
    tables = {key: [Table(array, names[key])] for key, array in factors.tables.items()}
    method = Method(elimination.log_sum, mode(), sum_plates=False)
    found = potentials(chain, tables, [], variables, plates, method, {})
    outer = [
        t for key, group in tables.items() if key not in (*chain.first, *chain.rest) for t in group
    ]
    if isinstance(found, list) or any(set(t.names) & set(variables) for t in outer):
        return None
    first, emission = found.first, found.emission
    for table in found.rest:
        lead = (chain.time,) if chain.time in table.names else ()
        own = elimination.kept(table, (*lead, *found.batch), plates).array
        if lead:
            emission = emission + own[..., None]
        else:
            first = first + own[..., None]
    return found._replace(first=first, emission=emission, rest=[]), elimination.product(
        outer, plates
    )
