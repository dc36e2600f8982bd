"""The marginal log-likelihood at the fitted parameters, with its kind and its error."""

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from ppl_em.posterior.log_likelihood import LogLikelihood
from ppl_em.problem import Problem
from ppl_em.stats import MAX_KHAT, Integral, Proposals, importance, pareto_khat
from ppl_em.stats.bridge import bridge
from ppl_em.structure import (
    NotAdditive,
    Target,
    by_component,
    find_components,
    hessian_product,
    targets,
)
from ppl_em.util import compiled, generator, split

logger = logging.getLogger("ppl_em")

NUM_SAMPLES = 4000
"""Draws behind a lower bound, or per block of an importance-sampling estimate."""

KnownBlocks = tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]
"""Independent blocks of latents, (D,), and the log-joint by block, see `additive.by_component`."""

LARGE = 10
"""Blocks of more latents are bridged: importance weights become heavy with the dimension."""

SHARE = 0.01
"""Share of all weight up to which one draw does not matter: among many blocks, few draws may."""

WIDE = 40
"""Blocks of more latents have proposals with the curvature at the mean of the draws, as these are
too few for so many covariances."""

MAX_WIDE = 1500
"""Largest block for which that is done: its Hessian is dense."""


class BlockLaw(Protocol):
    """A law of the unconstrained latents with a log-density for every coordinate."""

    @property
    def loc(self) -> jax.Array:
        """Its mean, (D,)."""
        ...

    @property
    def block_labels(self) -> np.ndarray:
        """The block within which it has covariances, for every latent, (D,)."""
        ...

    def draws(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """Fresh draws, (num_samples, D)."""
        ...

    def log_densities(self, u: jax.Array) -> jax.Array:
        """Terms of the log-density for `u` (n, D), shape (n, D)."""
        ...


def lower_bound(rng_key: jax.Array, problem: Problem, x: jax.Array, law: BlockLaw) -> LogLikelihood:
    """Evidence lower bound on fresh draws from q, and the worst Pareto k-hat of q over blocks.

    A k-hat above 0.7 says that q is far from the posterior. Blocks are independent under the
    posterior and under q, and judged one by one: jointly k-hat grows with their number.
    """
    key_draws, key_blocks = split(rng_key)
    draws = np.asarray(law.draws(key_draws, NUM_SAMPLES))
    terms = np.asarray(law.log_densities(jnp.asarray(draws)))
    found = find_components(problem, x, draws[:3], key_blocks)
    for labels in (_coarser(found, law.block_labels), np.zeros_like(found)):
        log_density = np.stack([np.bincount(labels, weights=row) for row in terms])
        for target in targets(problem, x, np.asarray(law.loc), labels):
            try:
                pieces, base = target(draws)
            except NotAdditive:
                continue
            ratios = pieces - log_density
            whole = base + ratios.sum(axis=1)
            error = float(np.std(whole, ddof=1) / np.sqrt(NUM_SAMPLES))
            khat = max(pareto_khat(block, SHARE * NUM_SAMPLES) for block in ratios.T)
            return LogLikelihood(float(np.mean(whole)), "lower_bound", error, khat)
    raise NotAdditive("one block always adds up")


def bounds_by_group(
    rng_key: jax.Array, problem: Problem, x: jax.Array, law: BlockLaw, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds from a law that is independent between groups, as of `Posterior.integrals`."""
    own = np.zeros(int(law.block_labels.max()) + 1, int)
    own[law.block_labels] = labels
    if np.any(own[law.block_labels] != labels):
        raise NotAdditive("a block of the law is in two groups")
    draws = np.asarray(law.draws(rng_key, NUM_SAMPLES))
    terms = np.asarray(law.log_densities(jnp.asarray(draws)))
    log_density = np.stack([np.bincount(labels, weights=row) for row in terms])
    center = np.asarray(law.loc)
    for target in targets(problem, x, center, labels):
        with suppress(NotAdditive):
            return center, np.mean(target(draws)[0] - log_density, axis=0)
    raise NotAdditive("no group stands alone")


def sampled_by_group(
    rng_key: jax.Array, problem: Problem, x: jax.Array, draws: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Importance or bridge sampling of each group, as of `Posterior.integrals`."""
    center = draws.mean(axis=(0, 1))
    for target in targets(problem, x, center, labels):
        with suppress(NotAdditive):
            found = _integrals(generator(rng_key), problem, x, target, draws, labels, NUM_SAMPLES)
            return center, np.array([part.value for part in found[0]])
    raise NotAdditive("no group stands alone")


def _coarser(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The finest partition (D,) that keeps together what either of two partitions does."""
    size = len(first)
    rows = np.arange(size)
    edges = [(rows, size + first), (rows, size + first.max() + 1 + second)]
    count = size + first.max() + second.max() + 2
    i, j = (np.concatenate(ends) for ends in zip(*edges, strict=True))
    graph = csr_array((np.ones(len(i)), (i, j)), shape=(count, count))
    labels = connected_components(graph, directed=False)[1][:size]
    return np.unique(labels, return_inverse=True)[1]


def importance_sampled(
    rng_key: jax.Array,
    problem: Problem,
    x: jax.Array,
    draws: np.ndarray,
    known: KnownBlocks | None = None,
    num_samples: int = NUM_SAMPLES,
) -> LogLikelihood:
    """Importance or bridge sampling with proposals fitted to posterior draws.

    Independent blocks of latents are integrated one by one, so the error does not grow with
    their number as it would jointly. Proposals are fitted to the first half of every chain, in
    very large blocks to the curvature at its mean. Small blocks are integrated by importance
    sampling with a Student-t proposal. Large ones, and small ones with a k-hat above 0.7, are
    bridged to the other half of the chains.

    Parameters
    ----------
    rng_key
        Draws from the proposals.
    problem, x
        Where to evaluate, x of shape (p,).
    draws
        Equally weighted draws at `x`, (chain, draw, D).
    known
        Independent blocks of latents, (D,), and the log-joint by block, as in
        `additive.by_component`, if these are known.
    num_samples
        Draws from the proposal of each block.

    Returns
    -------
    LogLikelihood
        Kind `"estimate"`, with delta-method error and the worst k-hat over blocks: that of the
        importance weights or, for bridged blocks, of the bounded terms of the bridge.

    References
    ----------
    Frühwirth-Schnatter (2004), Econometrics Journal 7, for bridges to a part of the draws that
    the proposal was not fitted to; Overstall & Forster (2010), Computational Statistics & Data
    Analysis 54, for the split.
    """
    key_blocks, key_sample = split(rng_key)
    rng = generator(key_sample)
    center = draws.mean(axis=(0, 1))
    for partition, target in _partitions(key_blocks, problem, x, draws, center, known):
        try:
            parts, base = _integrals(rng, problem, x, target, draws, partition, num_samples)
        except NotAdditive:
            continue
        value = base + sum(part.value for part in parts)
        error = float(np.sqrt(sum(part.variance for part in parts)))
        return LogLikelihood(value, "estimate", error, max(part.khat for part in parts))
    raise NotAdditive("one block always adds up")


def _partitions(
    rng_key: jax.Array,
    problem: Problem,
    x: jax.Array,
    draws: np.ndarray,
    center: np.ndarray,
    known: KnownBlocks | None,
) -> Iterator[tuple[np.ndarray, Target]]:
    """Blocks of the latents (D,), and ways to see their log-joints apart, the fastest first."""
    if known is not None:
        yield known[0], by_component(known[1], center)
    labels = find_components(problem, x, draws[:3, -1], rng_key)
    for partition in (labels, np.zeros_like(labels)):
        for target in targets(problem, x, center, partition):
            yield partition, target


def _integrals(
    rng: np.random.Generator,
    problem: Problem,
    x: jax.Array,
    target: Target,
    draws: np.ndarray,
    labels: np.ndarray,
    num_samples: int,
) -> tuple[list[Integral], float]:
    """The integral over each block relative to the center, and the log-joint there.

    From draws (chain, draw, D); `labels` (D,) are the blocks of the latents.
    """
    middle = draws.shape[1] // 2
    fitted = draws[:, :middle] if middle else draws
    kept = draws[:, middle:]
    proposals = _curved(problem, x, Proposals.fit(_flat(fitted), labels, LARGE), draws.dtype)
    points, log_density = proposals.sample(rng, num_samples)
    pieces, base = target(points.astype(draws.dtype))
    ratios = pieces - log_density
    sizes = np.bincount(labels)
    parts = [None if n > LARGE else importance(r) for n, r in zip(sizes, ratios.T, strict=True)]
    bad = [k for k, part in enumerate(parts) if part is None or part.khat > MAX_KHAT]
    if bad:
        there = _flat(kept)
        others = target(there)[0] - proposals.log_density(there)
        others = others.reshape(*kept.shape[:2], -1)
        for block in bad:
            parts[block] = bridge(ratios[:, block], others[..., block])
    return [part for part in parts if part is not None], base


def _curved(problem: Problem, x: jax.Array, proposals: Proposals, dtype: Any) -> Proposals:
    """The same with the curvature of the log-joint at the means of wide blocks."""
    center = np.empty(len(proposals.labels), dtype)
    for index, law in proposals.parts:
        center[index] = law.mean
    parts = []
    for index, law in proposals.parts:
        if WIDE < index.shape[1] <= MAX_WIDE:
            precision = np.asarray(_precisions(problem, x, center, index), float)
            with suppress(np.linalg.LinAlgError):  # not a maximum: the covariance of the draws
                np.linalg.cholesky(precision)
                law = law._replace(tril=np.linalg.cholesky(np.linalg.inv(precision)))
        parts.append((index, law))
    return proposals._replace(parts=parts)


@compiled
def _precisions(problem: Problem, x: jax.Array, center: jax.Array, index: jax.Array) -> jax.Array:
    """Minus the Hessians (G, d, d) of blocks with positions `index` (G, d) at `center` (D,)."""
    params = problem.constrain(x)

    def column(places: jax.Array) -> jax.Array:  # one of every block: no others are coupled
        direction = jnp.zeros_like(center).at[places].set(1.0)
        product = hessian_product(problem.density(params), center, direction)
        return -product[index]

    columns = jax.lax.map(column, index.T, batch_size=8)
    return 0.5 * (jnp.moveaxis(columns, 0, 2) + jnp.moveaxis(columns, 0, 1))


def _flat(draws: np.ndarray) -> np.ndarray:
    return draws.reshape(-1, draws.shape[-1])
