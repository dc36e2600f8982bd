"""Score and information of the log-likelihood from draws of the latents.

Latents often fall into components that are independent given the data. The missing information is
then the sum over components of the variance of their scores. That leaves out the covariances
between them, which are zero but for noise: with G components, estimates need G times fewer draws.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.likelihood.information import Information, checked
from ppl_em.likelihood.transport import Motion, log_joint
from ppl_em.posterior import WeightedDraws
from ppl_em.problem import Problem
from ppl_em.structure import by_block, find_components, owners

MAX_PARAMS = 64
"""With more parameters scores are not computed by component: each costs a pass of the model."""

NUM_BATCHES = 10
"""Batches of each chain, for errors of means; and parts of the draws in the jackknife."""


class Components(NamedTuple):
    """The component of every term of the log-joint, (E,), and their number; None for one.

    `labels` (D,) are the components of the latents; None if they were not found.
    """

    owner: jax.Array | None
    number: int
    labels: np.ndarray | None = None


class ScoreMoments(NamedTuple):
    """Moments over the draws of one Monte Carlo E-step.

    `scores` (chain, draw, p) are complete-data scores, `means` (G + 1, p) their means by component,
    `outer` (p, p) the sum over components of mean outer products, `hessian` (p, p) the mean
    complete-data Hessian.
    """

    scores: jax.Array
    means: jax.Array
    outer: jax.Array
    hessian: jax.Array


def find(problem: Problem, x: jax.Array, posterior: WeightedDraws) -> Components:
    """Components of the latents and the terms of the log-joint that belong to each."""
    if x.size > MAX_PARAMS:
        return Components(None, 1)
    points = np.asarray(posterior.draws)[:, -1]
    labels = find_components(problem, x, points[:3], jax.random.key(0))
    if labels.max() == 0:
        return Components(None, 1, labels)
    owner = owners(problem, x, points[0], labels)
    if owner is None:
        return Components(None, 1)
    return Components(jax.device_put(owner), int(labels.max()) + 1, labels)


def pieces(
    number: int,
    owner: jax.Array | None,
    problem: Problem,
    motion: Motion,
    x: jax.Array,
    u: jax.Array,
) -> jax.Array:
    """`log_joint` of the moved latents `u` (D,) by component, (G + 1,); last what is of none.

    Without an `owner` all of it belongs to one.
    """
    if owner is None:
        return jnp.stack([log_joint(problem, motion, x, u), jnp.zeros((), x.dtype)])
    moved, log_scale = motion.at(x, u)
    sums = by_block(problem, problem.constrain(x), moved, owner, number)
    return sums.at[-1].add(jnp.sum(log_scale))


def by_component(
    number: int, owner: jax.Array | None, problem: Problem, motion: Motion, u: jax.Array
) -> jax.Array:
    """Scores of `pieces` at `motion.start`, (G + 1, p)."""
    if owner is None:  # one backward pass instead of p forward ones
        score = jax.grad(log_joint, argnums=2)(problem, motion, motion.start, u)
        return jnp.stack([score, jnp.zeros_like(score)])
    return jax.jacfwd(partial(pieces, number, owner, problem, motion))(motion.start, u)


def louis_information(
    problem: Problem, x: jax.Array, moments: Sequence[ScoreMoments]
) -> Information:
    """Complete minus missing information from accumulated moments.

    Parameters
    ----------
    problem, x
        Where the draws were taken, x of shape (p,).
    moments
        One entry per E-step, all at `x`, in the order of the chains.

    References
    ----------
    Louis (1982), Finding the observed information matrix when using the EM algorithm, JRSS B 44.
    """
    scores = np.concatenate([step.scores for step in moments], axis=1)
    draws, size = scores.shape[1:]
    length = draws // min(NUM_BATCHES, draws)
    batches = scores[:, -(draws // length) * length :].reshape(-1, length, size).mean(axis=1)
    error = np.atleast_2d(np.cov(batches.T)) / len(batches)
    score = scores.mean(axis=(0, 1))
    information = checked(problem, x, score, _louis_matrix(moments), "Louis's identity", error)
    if not information.usable:
        return information
    return replace(information, replicates=_replicates(moments))


def _louis_matrix(moments: Sequence[ScoreMoments]) -> np.ndarray:
    """Complete minus missing information, (p, p)."""
    means = np.mean([step.means for step in moments], axis=0)
    missing = np.mean([step.outer for step in moments], axis=0) - means.T @ means
    return -np.mean([step.hessian for step in moments], axis=0) - missing


def _replicates(moments: Sequence[ScoreMoments]) -> np.ndarray:
    """Covariances with one part of the E-steps left out at a time, (R, p, p)."""
    count = min(NUM_BATCHES, len(moments))
    part = np.arange(len(moments)) * count // len(moments)
    rest = [
        [step for step, its_part in zip(moments, part, strict=True) if its_part != group]
        for group in range(count)
    ]
    return np.array([np.linalg.pinv(_louis_matrix(steps)) for steps in rest if steps])
