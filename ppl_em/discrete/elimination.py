"""Sum, maximise or sample out the discrete variables of a product of tables with plates.

One algorithm, tensor variable elimination, with an exchangeable reduction: `log_sum` gives log Z
and, by its gradient, every marginal; `maximum` gives the most probable values and `sampler` an
exact draw, both as one-hot gradients.

References
----------
Obermeyer et al. (2019), Tensor variable elimination for plated factor graphs, ICML, algorithm 1.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.util import ModelError

Reduce = Callable[[jax.Array, int], jax.Array]
"""Removes one axis of a table of logarithms: an array and a negative axis to an array."""

LOG_ZERO = -1e30
"""Stand-in for log 0: exp of it is 0, and sums of it stay finite in float32."""


PREVIOUS = "previous "
"""Prefix of the axis of a site's value one step before, inside a scan; twice, of two steps."""

LAST = "last "
"""Prefix of the axis of a site's value in the last step of a scan, seen from outside of it."""


def site_of(axis: str) -> str:
    """The site whose values an axis holds, those of steps before and of the last step included."""
    axis = axis.removeprefix(LAST)
    while axis.startswith(PREVIOUS):
        axis = axis.removeprefix(PREVIOUS)
    return axis


def true_zero(value: jax.Array) -> jax.Array:
    """Logarithms of sums of products of tables, with minus infinity where `LOG_ZERO` was added.

    What is left of `LOG_ZERO` once all states are summed out is a probability of 0, whatever the
    states: data that are impossible.
    """
    return jnp.where(value <= LOG_ZERO / 2, -jnp.inf, value)


class Table(NamedTuple):
    """Logarithms over named axes; an axis of size 1 is a plate along which they are constant."""

    array: jax.Array
    names: tuple[str, ...]


class Variable(NamedTuple):
    """A discrete variable: its number of values, and the plates that replicate it."""

    size: int
    plates: frozenset[str]


Weights = Mapping[str, Table]
"""Variable to its weight in every cell of its plates."""


def log_sum(array: jax.Array, axis: int) -> jax.Array:
    """Log of the sum of exponentials; its gradient holds conditional probabilities."""
    return jax.nn.logsumexp(array, axis=axis)


def maximum(array: jax.Array, axis: int) -> jax.Array:
    """Largest entry; its gradient marks the first maximum."""
    index = jnp.argmax(jax.lax.stop_gradient(array), axis=axis, keepdims=True)
    return jnp.squeeze(jnp.take_along_axis(array, index, axis), axis)


def sampler(rng_key: jax.Array) -> Reduce:
    """Like `log_sum`, but its gradient marks one entry, drawn with its conditional probability.

    Every call draws with a key of its own, folded in from the count of calls.
    """
    count = iter(range(2**31))

    def draw(array: jax.Array, axis: int) -> jax.Array:
        return drawn(jax.random.fold_in(rng_key, next(count)), array, axis)

    return draw


def drawn(rng_key: jax.Array, array: jax.Array, axis: int) -> jax.Array:
    """Log of the sum of exponentials whose gradient marks one entry, drawn with `rng_key`."""
    fixed = jax.lax.stop_gradient(array)
    noise = jax.random.gumbel(rng_key, array.shape, array.dtype)
    index = jnp.argmax(fixed + noise, axis=axis, keepdims=True)
    picked = jnp.squeeze(jnp.take_along_axis(array, index, axis), axis)
    return picked + jax.lax.stop_gradient(log_sum(fixed, axis) - picked)


def eliminate(
    tables: Iterable[Table],
    variables: dict[str, Variable],
    plates: dict[str, int],
    remove: Iterable[str],
    reduce: Reduce,
    sum_plates: bool = True,
    weights: Weights = MappingProxyType({}),
) -> list[Table]:
    """Remove variables from a product of tables, and the plates that only they were in.

    Parameters
    ----------
    tables
        The factors. A factor inside a plate has the plate among its names.
    variables, plates
        All discrete variables, and the sizes of all plates.
    remove
        Variables to eliminate; the others stay, with the plates that they are in.
    reduce
        `log_sum`, `maximum` or a `sampler`.
    sum_plates
        Whether tables without variables become scalars; else they keep their plates.
    weights
        By variable, what multiplies the logarithm of the sum over it, see `weighted`.

    Returns
    -------
    list of Table
        What remains; scalars if no variable stays and plates are summed.

    Raises
    ------
    ModelError
        If variables of different plates are coupled so that the cost would be exponential.
    """
    remove = frozenset(remove)
    left, done = list(tables), []
    while left:
        ordinals = [frozenset(table.names) & frozenset(plates) for table in left]
        ordinal = max(ordinals, key=len)
        group = [table for table, o in zip(left, ordinals, strict=True) if o == ordinal]
        left = [table for table, o in zip(left, ordinals, strict=True) if o != ordinal]
        here = {name for name in remove if variables[name].plates == ordinal}
        for component in _components(group, here):
            gone = here & {name for table in component for name in table.names}
            table = weighted(_eliminate_all(component, here, reduce), gone, weights)
            rest = [name for name in table.names if name in variables]
            target = frozenset().union(*(variables[name].plates for name in rest))
            if target == ordinal and ordinal | set(rest):
                coupled = [name for name in rest if name in remove]
                if coupled:
                    raise _intractable(coupled, rest, ordinal)
                done.append(table)
                continue
            if not target <= ordinal:
                raise _intractable(rest, rest, target)
            if not (rest or sum_plates):
                done.append(table)
                continue
            table = _multiply_over(table, ordinal - target, plates)
            (left if table.names else done).append(table)
    return done


def weighted(table: Table, gone: Iterable[str], weights: Weights) -> Table:
    """Multiply by the weight of the variables `gone` once no weighted variable is left.

    So the logarithm of a sum over all that hangs together is weighted, as if the cell were there
    that many times.
    """
    mine = sorted(name for name in gone if name in weights)
    if not mine or any(name in weights for name in table.names):
        return table
    return Table(table.array * _aligned(weights[mine[0]], table.names), table.names)


def product(tables: list[Table], plates: dict[str, int]) -> jax.Array:
    """The product (sum of logarithms) of tables without variables, over all their plates."""
    return sum((jnp.sum(_multiply_over(t, t.names, plates).array) for t in tables), jnp.zeros(()))


def kept(table: Table, names: tuple[str, ...], plates: dict[str, int]) -> Table:
    """A table without variables over the plates `names` alone, size 1 where it has none of them."""
    return add([_multiply_over(table, set(table.names) - set(names), plates)], names)


def add(tables: list[Table], names: tuple[str, ...] | None = None) -> Table:
    """Join tables into one over `names` (by default all of theirs, in order of appearance)."""
    if names is None:
        names = tuple(dict.fromkeys(name for table in tables for name in table.names))
    arrays = [_aligned(table, names) for table in tables]
    return Table(sum(arrays[1:], arrays[0]), names)


def _aligned(table: Table, names: tuple[str, ...]) -> jax.Array:
    """The array with its axes in the order of `names`, size 1 where it lacks one."""
    order = [table.names.index(name) for name in names if name in table.names]
    shape = iter(np.take(table.array.shape, order).tolist())
    full = [next(shape) if name in table.names else 1 for name in names]
    return jnp.transpose(table.array, order).reshape(full)


def _components(tables: list[Table], names: set[str]) -> list[list[Table]]:
    """Split tables into groups that share none of the variables `names`."""
    groups: list[tuple[set[str], list[Table]]] = []
    for table in tables:
        mine, members = set(table.names) & names, [table]
        apart = []
        for other, others in groups:
            if mine & other:
                mine, members = mine | other, others + members
            else:
                apart.append((other, others))
        groups = [*apart, (mine, members)]
    return [members for _, members in groups]


def _eliminate_all(tables: list[Table], names: set[str], reduce: Reduce) -> Table:
    """Eliminate `names` one by one, that with the smallest joint table first."""
    tables = list(tables)
    while present := {name for table in tables for name in table.names} & names:
        joint_sizes = {n: _joint_size([t for t in tables if n in t.names]) for n in present}
        chosen = min(sorted(present), key=joint_sizes.__getitem__)
        joint = add([table for table in tables if chosen in table.names])
        tables = [table for table in tables if chosen not in table.names]
        axis = joint.names.index(chosen)
        array = reduce(joint.array, axis - len(joint.names))
        tables.append(Table(array, tuple(n for n in joint.names if n != chosen)))
    return add(tables)


def _joint_size(tables: list[Table]) -> int:
    """Number of entries of the joint table."""
    sizes: dict[str, int] = {}
    for table in tables:
        for name, size in zip(table.names, table.array.shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
    return int(np.prod(list(sizes.values())))


def _multiply_over(table: Table, names: Iterable[str], plates: dict[str, int]) -> Table:
    axes = [table.names.index(name) for name in names]
    constant = [plates[table.names[a]] for a in axes if table.array.shape[a] == 1]
    array = jnp.sum(table.array, tuple(axes)) * int(np.prod(constant))
    return Table(array, tuple(n for i, n in enumerate(table.names) if i not in axes))


def _intractable(names: list[str], coupled: list[str], ordinal: frozenset[str]) -> ModelError:
    others = ", ".join(f"'{name}'" for name in coupled)
    where = ", ".join(sorted(ordinal)) or "no plate"
    return ModelError(
        f"Site '{names[0]}': discrete latents of different plates meet in one factor ({others} in "
        f"{where}), so summing them out is exponential in the size of a plate. Put them in nested "
        f"plates, write the smaller plate as a Python loop, or make one of them continuous."
    )
