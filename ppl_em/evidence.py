"""The marginal log-likelihood at the fitted parameters, with its kind and its error."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from ppl_em.likelihood import LogLikelihood
from ppl_em.posterior import Factorized, WeightedDraws
from ppl_em.problem import Problem
from ppl_em.structure import Blocks, dense, find_blocks

DEGREES = 7.0
"""Degrees of freedom of the Student-t proposals: tails heavier than the posterior's."""

EVEN = 10.0
"""Largest weight, in units of the mean, up to which no draw matters much by itself."""


def lower_bound(
    rng_key: jax.Array, problem: Problem, x: jax.Array, posterior: Factorized, num_samples: int
) -> LogLikelihood:
    """Evidence lower bound on fresh draws from q, and the Pareto k-hat of q as a proposal.

    A k-hat above 0.7 says that q is far from the posterior.
    """
    draws = posterior.draws(rng_key, num_samples)
    ratios = np.asarray(_log_joints(problem, x, draws) - posterior.log_density(draws))
    error = float(np.std(ratios, ddof=1) / np.sqrt(num_samples))
    return LogLikelihood(float(np.mean(ratios)), "lower_bound", error, pareto_khat(ratios))


def importance_sampled(
    rng_key: jax.Array,
    problem: Problem,
    x: jax.Array,
    posterior: WeightedDraws,
    num_samples: int,
) -> LogLikelihood:
    """Importance-sampling estimate with Student-t proposals fitted to posterior draws.

    Independent blocks of latents are integrated one by one, so the error does not grow with
    their number as it would jointly.

    Parameters
    ----------
    rng_key
        Draws from the proposals.
    problem, x
        Where to evaluate, x of shape (p,).
    posterior
        Draws at `x`, to which the proposals are fitted.
    num_samples
        Draws per block.

    Returns
    -------
    LogLikelihood
        Kind `"estimate"`, with delta-method error and the worst k-hat over blocks.
    """
    key_blocks, key_sample = jax.random.split(rng_key)
    flat = posterior.draws.reshape(-1, posterior.draws.shape[-1])
    center = jnp.mean(flat, axis=0)
    blocks = find_blocks(problem, x, center, key_blocks)
    points, log_proposal = _propose(key_sample, flat, blocks, num_samples)
    base = float(_log_joints(problem, x, center[None])[0])
    log_target = _log_target(problem, x, center, points, blocks, base)
    if log_target is None:
        blocks = dense(problem)
        points, log_proposal = _propose(key_sample, flat, blocks, num_samples)
        log_target = np.asarray(_log_joints(problem, x, points))[:, None] - base
    ratios = log_target - np.asarray(log_proposal)
    weights = np.exp(ratios - ratios.max(axis=0))
    value = base + float(np.sum(logsumexp(ratios, axis=0) - np.log(num_samples)))
    variance = np.var(weights, axis=0, ddof=1) / np.mean(weights, axis=0) ** 2 / num_samples
    khat = max(pareto_khat(column) for column in ratios.T)
    return LogLikelihood(value, "estimate", float(np.sqrt(np.sum(variance))), khat)


def pareto_khat(log_ratios: np.ndarray) -> float:
    """Tail index of importance weights, from their logs, shape (n,); below 0.7 is usable.

    The likelihood estimate (ArviZ) can return anything for tails with an end point, k below -1/2,
    and calls a small bump at the end of nearly equal weights very heavy. Where no draw weighs much
    more than the mean of all, the moments of the tail decide.

    References
    ----------
    Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling, JMLR 25.
    Smith (1985), Biometrika 72, for the break-down; Hosking & Wallis (1987), Technometrics 29,
    for the moment estimate.
    """
    from arviz_stats.base import array_stats

    log_ratios = np.asarray(log_ratios, dtype=float)
    weights = np.sort(np.exp(log_ratios - log_ratios.max()))
    size = len(weights)
    tail = weights[-int(min(size / 5, 3 * size**0.5)) - 1 :]
    excess = tail[1:] - tail[0]
    by_moments = 0.5 * (1 - np.mean(excess) ** 2 / np.var(excess))
    if by_moments < -0.5 or weights[-1] < EVEN * np.mean(weights):
        return float(by_moments)
    return float(array_stats.psislw(-log_ratios)[1])


@jax.jit
def _log_joints(problem: Problem, x: jax.Array, points: jax.Array) -> jax.Array:
    params = problem.constrain(x)
    return jax.lax.map(lambda u: problem.log_joint_unconstrained(params, u), points, batch_size=256)


@partial(jax.jit, static_argnums=(2, 3))
def _propose(
    rng_key: jax.Array, draws: jax.Array, blocks: Blocks, num_samples: int
) -> tuple[jax.Array, jax.Array]:
    """Points (n, D) and log proposal densities (n, G) of each block's Student-t."""
    key_normal, key_chi = jax.random.split(rng_key)
    split = blocks.split(draws)
    mean = jnp.mean(split, axis=0)
    size = blocks.block_size
    centered = split - mean
    covariance = jnp.einsum("ngi,ngj->gij", centered, centered) / (len(draws) - 1)
    ridge = 1e-9 * jnp.trace(covariance, axis1=1, axis2=2)[:, None, None] * jnp.eye(size)
    tril = jnp.linalg.cholesky(covariance + ridge)
    shape = (num_samples, blocks.num_blocks, size)
    normal = jax.random.normal(key_normal, shape, draws.dtype)
    chi = jax.random.gamma(key_chi, DEGREES / 2, shape[:2], draws.dtype) * 2
    standard = normal * jnp.sqrt(DEGREES / chi)[..., None]
    points = mean + jnp.einsum("gij,ngj->ngi", tril, standard)
    log_det = jnp.sum(jnp.log(jnp.diagonal(tril, axis1=1, axis2=2)), axis=1)
    lgamma = jax.scipy.special.gammaln
    constant = (
        lgamma((DEGREES + size) / 2) - lgamma(DEGREES / 2) - 0.5 * size * np.log(DEGREES * np.pi)
    )
    kernel = 0.5 * (DEGREES + size) * jnp.log1p(jnp.sum(standard**2, axis=-1) / DEGREES)
    return blocks.join(points), constant - log_det - kernel


def _log_target(
    problem: Problem,
    x: jax.Array,
    center: jax.Array,
    points: jax.Array,
    blocks: Blocks,
    base: float,
) -> np.ndarray | None:
    """Log-joint of each block relative to the center, (n, G); None if blocks do not add up.

    The log-joint is a sum of functions of the blocks. Each is recovered as the line integral of
    its own gradient from the center, by Gauss-Legendre quadrature; that the pieces add up to the
    log-joint at every point is checked.
    """
    total = np.asarray(_log_joints(problem, x, points)) - base
    if blocks.num_blocks == 1:
        return total[:, None]
    for num_nodes in (8, 16, 32):
        nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
        pieces = np.asarray(
            _line_integrals(
                problem,
                x,
                center,
                points,
                jnp.asarray((nodes + 1) / 2),
                jnp.asarray(weights / 2),
                blocks,
            )
        )
        if np.max(np.abs(pieces.sum(axis=1) - total)) < 1e-3:
            return pieces
    return None


@partial(jax.jit, static_argnums=6)
def _line_integrals(
    problem: Problem,
    x: jax.Array,
    center: jax.Array,
    points: jax.Array,
    nodes: jax.Array,
    weights: jax.Array,
    blocks: Blocks,
) -> jax.Array:
    params = problem.constrain(x)
    gradient = jax.grad(lambda u: problem.log_joint_unconstrained(params, u))

    def along(point: jax.Array) -> jax.Array:
        slopes = jax.vmap(lambda t: gradient(center + t * (point - center)))(nodes)
        return jnp.sum(blocks.split((weights @ slopes) * (point - center)), axis=-1)

    return jax.lax.map(along, points, batch_size=64)
