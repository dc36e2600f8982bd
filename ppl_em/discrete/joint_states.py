"""Joint states of discrete sites in independent blocks: many tables made into one per block.

The plates that all latents share count the blocks. A discrete site in further plates has, in each
block, one value for each of their cells, and all of those values are part of the joint state.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.discrete import elimination
from ppl_em.discrete.elimination import Table, Variable
from ppl_em.discrete.factors import Layout, LogFactors
from ppl_em.util import Static

BLOCK = "block"
"""Name of an axis of size 1 that ties a table to the plates of the blocks."""


@dataclass(frozen=True)
class States:
    """S joint states in each of G blocks; hashable.

    Attributes
    ----------
    plates, shape
        Plates that count the blocks, and their sizes.
    kept
        Discrete sites that make the joint states; all others are summed out.
    choices
        For each of them the value in every state, shape (S, *sizes of its further plates); these
        plates are sorted by name.
    """

    plates: tuple[str, ...]
    shape: tuple[int, ...]
    kept: tuple[str, ...]
    choices: tuple[Static, ...]

    @classmethod
    def of(cls, layout: Layout, plates: Iterable[str], kept: Iterable[str]) -> "States":
        """All joint states of the sites `kept` in blocks that are counted by `plates`."""
        sizes, variables = dict(layout.plates), dict(layout.variables)
        plates, kept = tuple(sorted(plates)), tuple(sorted(kept))
        inner = {n: [sizes[p] for p in sorted(variables[n].plates - {*plates})] for n in kept}
        digits = [variables[n].size for n in kept for _ in range(math.prod(inner[n]))]
        count = math.prod(digits)
        table = np.stack(np.unravel_index(np.arange(count), digits or (1,)), axis=1)
        ends = np.cumsum([math.prod(inner[n]) for n in kept])
        parts = np.split(table[:, : len(digits)], ends[:-1], axis=1) if kept else []
        choices = (p.reshape(-1, *inner[n]) for n, p in zip(kept, parts, strict=True))
        return cls(plates, tuple(sizes[p] for p in plates), kept, tuple(map(Static, choices)))

    @property
    def num_states(self) -> int:
        """S."""
        return len(self.choices[0].value) if self.choices else 1

    @property
    def num_blocks(self) -> int:
        """G."""
        return math.prod(self.shape)

    def has(self, names: Iterable[str]) -> bool:
        """Whether a table with these axes belongs to the blocks, one row to each."""
        return set(self.plates) <= set(names)

    def collect(
        self,
        factors: LogFactors,
        keys: Iterable[str],
        extra: tuple[Table, ...] = (),
    ) -> tuple[jax.Array, jax.Array]:
        """Add up the tables `keys` and `extra`, other sites summed out.

        Returns
        -------
        tuple
            Sums by joint state and block, shape (S, G), and that of all tables outside of the
            blocks, a scalar.

        Raises
        ------
        ModelError
            If a site that is summed out connects the blocks.
        """
        names = dict(factors.layout.names)
        plates = dict(factors.layout.plates)
        variables = {
            **dict(factors.layout.variables),
            BLOCK: Variable(1, frozenset(self.plates)),
        }
        tables = [*(Table(factors.tables[key], names[key]) for key in keys), *extra]
        left = elimination.eliminate(
            [self._tied(table) for table in tables],
            variables,
            plates,
            set(variables) - {*self.kept, BLOCK},
            elimination.log_sum,
        )
        zero = jnp.zeros((self.num_states, self.num_blocks))
        inside = (self._by_state(t, variables, plates) for t in left if t.names)
        return sum(inside, zero), sum((t.array for t in left if not t.names), jnp.zeros(()))

    def _tied(self, table: Table) -> Table:
        if not self.has(table.names):
            return table
        return Table(table.array[..., None], (*table.names, BLOCK))

    def _by_state(
        self, table: Table, variables: dict[str, Variable], plates: dict[str, int]
    ) -> jax.Array:
        """The table at every joint state, summed over all plates but those of the blocks."""
        own = [name for name in self.kept if name in table.names]
        inner = sorted({p for n in own for p in variables[n].plates} - set(self.plates))
        order = (*self.plates, *inner, *own, BLOCK)
        array = elimination.add([table], order).array[..., 0]
        sizes = [plates[name] for name in inner]
        values = array.shape[len(self.plates) + len(inner) :]
        array = jnp.broadcast_to(array, (*self.shape, *sizes, *values))
        array = array.reshape(-1, *sizes, *values)
        if own:
            cells = np.indices((1, *sizes))[1:]
            picked = [self._choice(name, inner, variables[name]) for name in own]
            array = array[:, *cells, *picked]
        else:
            array = array[:, None]
        return jnp.sum(array, tuple(range(2, array.ndim))).T

    def _choice(self, name: str, inner: list[str], variable: Variable) -> np.ndarray:
        """Values of a site in every state, on the axes (state, *inner), size 1 where it repeats."""
        values = self.choices[self.kept.index(name)].value
        shape = iter(values.shape[1:])
        return values.reshape(-1, *(next(shape) if p in variable.plates else 1 for p in inner))


def num_states(layout: Layout, plates: Iterable[str], kept: Iterable[str]) -> int:
    """How many joint states the sites `kept` would have in blocks counted by `plates`."""
    sizes, variables = dict(layout.plates), dict(layout.variables)
    inner = {name: variables[name].plates - set(plates) for name in kept}
    return math.prod(variables[n].size ** math.prod(sizes[p] for p in inner[n]) for n in inner)


def indicators(layout: Layout) -> dict[str, Table]:
    """A table of zeros for every discrete site; derivatives in it are probabilities."""
    return {
        name: Table(
            jnp.zeros((*(n for p, n in layout.plates if p in variable.plates), variable.size)),
            (*(p for p, _ in layout.plates if p in variable.plates), name),
        )
        for name, variable in layout.variables
    }
