"""Score and information of an importance-sampled log-likelihood, for where Louis's is too noisy.

With draws z_s of fixed proposals q_b, fitted to the posterior's draws at one value of the
parameters, block by block, the log-likelihood nearby is

    l(x) = base(x) + sum_b log mean_s exp(log p_b(y, z_s | x) - log q_b(z_s)),

a function that is differentiated. Draws cost no trajectories and fill the space evenly, so its
Hessian knows the difference of complete and missing information better than posterior draws do.
Latents move along with the parameters, see `transport.py`: the integrals do not change by
that, their derivatives become less noisy.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.likelihood.information import Information, checked
from ppl_em.likelihood.louis import MAX_PARAMS, Components, pieces
from ppl_em.likelihood.transport import Motion
from ppl_em.optimize import gradients_and_hessians
from ppl_em.problem import Problem
from ppl_em.stats import MAX_KHAT, Proposals, pareto_khat
from ppl_em.structure import NotAdditive, targets
from ppl_em.util import compiled

METHOD = "Hessian of an importance-sampled log-likelihood"


MAX_BLOCK = 30
"""Latents in a block, at most: in more dimensions a fitted proposal misses the posterior."""

NUM_PARTS = 8
"""Independent parts of the draws, for the errors."""

MAX_DRAWS, MIN_DRAWS = 1024, 128
"""Draws in each part: powers of two, fewer where the model is large."""

MAX_WORK = 3e9
"""Terms at draws, times the square of the number of parameters, at most: about a minute."""

MAX_LATENTS = 4e7
"""Latents at all draws, at most."""

MAX_NUMBERS = 2_000_000
"""Terms and their derivatives held at once, at most."""


def sampled_information(
    problem: Problem, x: jax.Array, draws: np.ndarray, components: Components, motion: Motion
) -> Information:
    """Minus the Hessian of the importance-sampled log-likelihood, and its score.

    Parameters
    ----------
    problem, x
        Where the posterior draws were taken, x of shape (p,).
    draws
        From the posterior there, (chain, draw, D). Proposals are fitted to them; the same draws
        give the same answer.
    components
        Independent blocks of latents.
    motion
        How latents move, from `x` on.

    Returns
    -------
    Information
        Its errors are by the jackknife over independent parts of the draws. Where it is not to be
        had, `reason` says why: large blocks, many parameters, importance weights with a
        Pareto k-hat of 0.7 or more, or standard errors with an error above 20 %.

    References
    ----------
    Geyer & Thompson (1992), Constrained Monte Carlo maximum likelihood for dependent data, JRSS B
    54, for likelihoods of fixed draws; Efron & Tibshirani (1993), An Introduction to the
    Bootstrap, chapter 11, for the jackknife.
    """
    if x.size > MAX_PARAMS:
        return _withheld(x, f"{x.size} parameters are too many for it")
    owner, number, labels = components
    flat = np.asarray(draws).reshape(-1, draws.shape[-1])
    labels = np.zeros(flat.shape[1], int) if labels is None else labels
    width = int(np.max(np.bincount(labels)))
    if width > MAX_BLOCK:
        return _withheld(x, f"{width} latents depend on one another, too many for it")
    size = flat.shape[1] if owner is None else owner.size
    most = int(min(MAX_WORK / (size * x.size**2), MAX_LATENTS / flat.shape[1]) / NUM_PARTS)
    if most < MIN_DRAWS:
        return _withheld(x, "the model is too large for it")
    each = min(MAX_DRAWS, _power_of_two(most))

    # The same posterior draws give the same answer, others an independent one.
    rng = np.random.default_rng(np.ascontiguousarray(flat[-1], np.float64).view(np.uint32))
    points, log_density = Proposals.fit(flat, labels).sample_evenly(rng, NUM_PARTS, each)
    points, center = points.astype(flat.dtype), flat.mean(axis=0)
    try:
        ratios = next(targets(problem, x, center, labels))(points)[0] - log_density
    except NotAdditive:
        return _withheld(x, "blocks of latents cannot be told apart")
    khat = float(np.max([pareto_khat(column) for column in ratios.T]))  # NaN stays
    if not khat < MAX_KHAT:
        return _withheld(x, f"its weights have a Pareto k-hat of {khat:.2f}, not below {MAX_KHAT}")

    log_density = (log_density + ratios.max(axis=0)).astype(flat.dtype)
    at_once = min(each, _power_of_two(MAX_NUMBERS // (size * (x.size + 1))))
    chunks = (
        part.reshape(NUM_PARTS, each // at_once, at_once, -1) for part in (points, log_density)
    )
    scores, hessians = jax.device_get(_derivatives(number, problem, motion, owner, center, *chunks))
    if not (np.all(np.isfinite(scores)) and np.all(np.isfinite(hessians))):
        return _withheld(x, "its derivatives are not finite")
    spread = scores[1:] - scores[1:].mean(axis=0)
    error = (NUM_PARTS - 1) / NUM_PARTS * spread.T @ spread
    found = checked(problem, x, scores[0], -hessians[0], METHOD, error)
    if not found.usable:
        return found
    found = replace(found, replicates=np.linalg.pinv(-hessians[1:]))
    if not found.precise:
        noise = f"their Monte Carlo error is {100 * found.se_noise:.0f} %"
        return replace(found, reason=noise)
    return found


def _power_of_two(number: int) -> int:
    """The largest that is not above `number`; 1 if that is less."""
    return 1 << max(number, 1).bit_length() - 1


def _withheld(x: jax.Array, reason: str) -> Information:
    nothing = np.full((x.size, x.size), np.nan)
    return Information(nothing[0], nothing, METHOD, nothing, reason)


@compiled(static_argnums=0)
def _derivatives(
    number: int,
    problem: Problem,
    motion: Motion,
    owner: jax.Array | None,
    center: jax.Array,
    points: jax.Array,
    log_density: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Scores (1 + R, p) and Hessians (1 + R, p, p): from all R parts, and without one of each.

    From draws (R, chunks, n, D) and the log-densities to compare with by block, (R, chunks, n, G),
    relative to what blocks are at the center (D,).
    """

    by_block = partial(pieces, number, owner, problem, motion)

    def log_likelihoods(x: jax.Array) -> jax.Array:
        def weights(u: jax.Array, subtracted: jax.Array) -> jax.Array:
            return jnp.exp(by_block(x, u)[:-1] - base - subtracted)

        def sums(part: tuple) -> jax.Array:
            def add(sofar: jax.Array, some: tuple) -> tuple[jax.Array, None]:
                return sofar + jnp.sum(jax.vmap(weights)(*some), axis=0), None

            return jax.lax.scan(add, jnp.zeros_like(base), part)[0]

        of_parts = jax.lax.map(sums, (points, log_density))
        rest = by_block(x, center)[-1]
        return jnp.sum(jnp.log(chosen @ of_parts), axis=1) + rest

    base = by_block(motion.start, center)[:-1]
    count = len(points)
    chosen = jnp.concatenate([jnp.ones((1, count)), 1 - jnp.eye(count)]).astype(base.dtype)
    return gradients_and_hessians(jax.jacfwd(log_likelihoods), motion.start)
