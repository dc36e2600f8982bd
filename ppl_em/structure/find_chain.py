"""Chains of one latent each: proposed from the shapes of the sites, and proved by values."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.discrete import forward_backward
from ppl_em.problem import Problem
from ppl_em.structure.candidates import lone_chains
from ppl_em.structure.chain import Chain
from ppl_em.structure.node_tables import ROUNDING, Tables, pair_tables
from ppl_em.structure.search import not_excluded
from ppl_em.structure.step_terms import StepTerms, owned_terms, regime_terms
from ppl_em.util import compiled, moved_by

FEW = 3
"""Nodes of each step on which the log-joint is compared with what its terms add up to."""

PLACES = ((0.0, 0.3), (0.3, 1.0), (0.3, 3.0))
"""How far parameters are moved, and how far apart the nodes of a step are, in that comparison."""

PATHS = 4
"""Random paths through these nodes, at every place."""


def find_lone_chain(
    problem: Problem, x: jax.Array, rng_key: jax.Array
) -> tuple[Chain, StepTerms] | None:
    """Chains (B, T, 1) along which the log-joint couples neighbors only, and its terms by step.

    None if that cannot be shown, at the parameters `x` (p,) and others around them.
    """
    if problem.spec.has_moving_supports:
        return None
    proposed = list(lone_chains(problem))
    if not any(site.in_scan for site in problem.spec.discrete):  # which couple all steps
        proposed = not_excluded(proposed, problem, x, rng_key)
    for chain in proposed:
        terms = terms_by_step(problem, x, chain)
        if terms is not None:
            return chain, terms
    return None


def terms_by_step(problem: Problem, x: jax.Array, chain: Chain) -> StepTerms | None:
    """The terms of the log-joint by step of these chains; None if it does not add up from them."""
    ways = _told_apart(problem, x, chain)
    return next((terms for terms in ways if _adds_up(problem, x, chain, terms)), None)


def _told_apart(problem: Problem, x: jax.Array, chain: Chain) -> Iterator[StepTerms]:
    """Ways to tell the terms of a chain apart, the fastest first."""
    by_table = bool(problem.spec.scans or problem.spec.discrete)
    for way in (True, False) if by_table and not problem.spec.discrete else (by_table,):
        found = owned_terms(problem, x, chain, way)
        if found is not None:
            yield found
    regimes = regime_terms(problem, x, chain) if problem.spec.discrete else None
    if regimes is not None:
        yield regimes


def _adds_up(problem: Problem, x: jax.Array, chain: Chain, terms: StepTerms) -> bool:
    """Whether the log-joint on random paths is what the tables say."""
    rng = np.random.default_rng(0)
    start = np.asarray(chain.split(problem.start))[..., 0]
    compared = 0
    for spread, scale in PLACES:
        there = moved_by(x, spread * rng.normal(size=x.shape))
        nodes = start[..., None] + scale * rng.normal(size=(*start.shape, FEW))
        paths = rng.integers(FEW, size=(PATHS, *start.shape))
        values = _on_paths(problem, there, chain, terms, nodes.astype(start.dtype), paths)
        whole, added, size = (np.asarray(part) for part in values)
        finite = np.isfinite(whole) & np.isfinite(added)
        same = np.abs(whole - added) <= ROUNDING * np.finfo(start.dtype).eps * (1 + size)
        if not np.all(same | ~finite):
            return False
        compared += int(np.sum(finite))
    return compared >= PATHS


@compiled(static_argnums=2)
def _on_paths(
    problem: Problem,
    x: jax.Array,
    chain: Chain,
    terms: StepTerms,
    nodes: jax.Array,
    paths: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The log-joint on paths (n, B, T) through nodes, by the tables, and the size of its terms."""
    params = problem.constrain(x)
    tables = pair_tables(problem, params, chain, terms, nodes)

    def along(path: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        point = jnp.take_along_axis(nodes, path[..., None], axis=-1)
        whole = problem.log_joint_unconstrained(params, chain.join(point))
        added, size = _picked(tables, path, terms.num_states)
        return whole, added, size

    return jax.lax.map(along, paths)


def _picked(tables: Tables, path: jax.Array, states: int) -> tuple[jax.Array, jax.Array]:
    """What tables say of a path (B, T), discrete states summed out, and the size of the terms."""
    length = path.shape[1]
    chains = np.arange(path.shape[0])[:, None]
    count = tables.first.shape[-1] // states
    first = tables.first.reshape(-1, states, count)[chains, np.arange(states), path[:, :1]]
    move = tables.move.reshape(length - 1, -1, states, count, states, count)
    move = move[
        np.arange(length - 1)[:, None, None, None],
        chains[:, :, None],
        np.arange(states)[:, None],
        path.T[:-1, :, None, None],
        np.arange(states),
        path.T[1:, :, None, None],
    ]
    none = jnp.zeros((length - 1, len(chains), states), first.dtype)
    added = jnp.sum(forward_backward.contract(first, move, none, "sum")) + tables.base
    size = jnp.sum(jnp.abs(first)) + jnp.sum(jnp.abs(move)) + jnp.abs(tables.base)
    return added, size
