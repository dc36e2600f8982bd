"""Responsibilities drawn at random: an M-step from them begins a run anywhere the data allow."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.discrete import LOG_ZERO, LogFactors, marginalization
from ppl_em.structure import Condensation, condense_rows

CONCENTRATION = 0.3
"""Of the Dirichlet law of responsibilities: one state mostly has most of a row."""

LEFT = (1.0, 3e-4, 1e-3)
"""Weight of the other rows, where 1 or 2 rows for each state are looked at; 0 stands for all."""

APART = 50.0
"""Log-odds by which a row is in a state of its own, where there is one row for each."""


def random_marginals(
    rng_key: jax.Array, factors: LogFactors, condensation: Condensation, per_state: int
) -> dict[str, jax.Array]:
    """The marginals of every factor, were its entries drawn at random; what is 0 stays 0.

    Parameters
    ----------
    rng_key
        Random key.
    factors
        The log-joint as tables.
    condensation
        Rows of data that the tables have as points.
    per_state
        How many rows to look at for each state, 1 or 2, so that states begin further apart: their
        estimates vary as those of single rows do, not as means of all. 0 for all rows.
    """
    full = condense_rows.expand(factors, condensation)
    key_tables, key_rows = jax.random.split(rng_key)
    zero = {name: table <= LOG_ZERO / 2 for name, table in full.tables.items()}
    keys = jax.random.split(key_tables, len(full.tables))
    drawn = {
        name: jax.random.loggamma(key, CONCENTRATION, table.shape)
        for key, (name, table) in zip(keys, full.tables.items(), strict=True)
    }
    weights: dict[str, Any] = dict.fromkeys(full.tables, 1.0)
    if per_state:
        weights, apart = _few(key_rows, full, per_state)
        drawn = {name: table + apart[name] for name, table in drawn.items()}

    def objective(tables: dict[str, jax.Array]) -> jax.Array:
        moved = condense_rows.expand(factors._replace(tables=tables), condensation).tables
        at = {}
        for name, table in moved.items():
            change = weights[name] * (table - jax.lax.stop_gradient(table))
            at[name] = jnp.where(zero[name], full.tables[name], drawn[name] + change)
        return marginalization.log_normalizer(full._replace(tables=at))

    return jax.grad(objective)(factors.tables)


def _few(
    rng_key: jax.Array, factors: LogFactors, per_state: int
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Weights of the rows, for each table along the longest axis that replicates states.

    And log-odds that put each of them into a state of its own, if there is one for each.
    """
    states = max(variable.size for _, variable in factors.layout.variables)
    lengths = {chain.time: chain.length for chain in factors.layout.chains}
    lengths |= {
        plate: size
        for plate, size in factors.layout.plates
        if any(plate in variable.plates for _, variable in factors.layout.variables)
    }
    weights, apart = {}, {}
    for name, axes in factors.layout.names:
        table = factors.tables[name]
        rows = [i for i, axis in enumerate(axes) if axis in lengths and table.shape[i] > 1]
        weights[name], apart[name] = jnp.ones((1,) * table.ndim), jnp.zeros((1,) * table.ndim)
        if not rows:
            continue
        long = max(rows, key=lambda i: table.shape[i])
        places = np.arange(table.ndim)
        along = tuple(np.where(places == long, table.shape[long], 1))
        rank = jax.random.permutation(rng_key, table.shape[long]).reshape(along)
        keep = rank < per_state * states
        weights[name] = jnp.where(keep, 1.0, LEFT[per_state])
        others = [i for i, axis in enumerate(axes) if axis not in lengths and table.shape[i] > 1]
        if per_state == 1 and others:
            size = table.shape[others[-1]]
            state = jnp.arange(size).reshape(tuple(np.where(places == others[-1], size, 1)))
            apart[name] = jnp.where(keep & (rank % size == state), APART, 0.0)
    return weights, apart
