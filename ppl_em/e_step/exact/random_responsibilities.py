"""Responsibilities drawn at random: an M-step from them begins a run anywhere the data allow."""

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.discrete import LOG_ZERO, LogFactors, marginalization
from ppl_em.structure import Condensation, condense_rows

CONCENTRATION = 0.3
"""Of the Dirichlet law of responsibilities: one state mostly has most of a row."""

FEW = 2
"""Rows for each state that are left to begin with, where few are wanted."""

LEFT = 1e-3
"""Weight of the other rows then."""


def random_marginals(
    rng_key: jax.Array, factors: LogFactors, condensation: Condensation, few: bool
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
    few
        Whether to look at a few rows only, so that states begin further apart: their estimates
        vary as those of single rows do, not as means of all.
    """
    full = condense_rows.expand(factors, condensation)
    key_tables, key_rows = jax.random.split(rng_key)
    zero = {name: table <= LOG_ZERO / 2 for name, table in full.tables.items()}
    keys = jax.random.split(key_tables, len(full.tables))
    drawn = {
        name: jax.random.loggamma(key, CONCENTRATION, table.shape)
        for key, (name, table) in zip(keys, full.tables.items(), strict=True)
    }
    weights = _weights(key_rows, full) if few else dict.fromkeys(full.tables, 1.0)

    def objective(tables: dict[str, jax.Array]) -> jax.Array:
        moved = condense_rows.expand(factors._replace(tables=tables), condensation).tables
        at = {}
        for name, table in moved.items():
            change = weights[name] * (table - jax.lax.stop_gradient(table))
            at[name] = jnp.where(zero[name], full.tables[name], drawn[name] + change)
        return marginalization.log_normalizer(full._replace(tables=at))

    return jax.grad(objective)(factors.tables)


def _weights(rng_key: jax.Array, factors: LogFactors) -> dict[str, jax.Array]:
    """Weights of the rows, for each table along the longest axis that replicates states."""
    states = max(variable.size for _, variable in factors.layout.variables)
    lengths = {chain.time: chain.length for chain in factors.layout.chains}
    lengths |= {
        plate: size
        for plate, size in factors.layout.plates
        if any(plate in variable.plates for _, variable in factors.layout.variables)
    }
    weights = {}
    for name, axes in factors.layout.names:
        table = factors.tables[name]
        rows = [i for i, axis in enumerate(axes) if axis in lengths and table.shape[i] > 1]
        weights[name] = jnp.ones((1,) * table.ndim)
        if not rows:
            continue
        long = max(rows, key=lambda i: table.shape[i])
        count = table.shape[long]
        keep = jax.random.permutation(rng_key, count) < FEW * states
        shape = np.where(np.arange(table.ndim) == long, count, 1)
        weights[name] = jnp.where(keep, 1.0, LEFT).reshape(tuple(shape))
    return weights
