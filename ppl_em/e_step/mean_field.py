"""Variational E-step: NumPyro's guides, Gaussian ones optimised on fixed base draws."""

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from scipy.special import ndtri

from ppl_em.e_step.base import EStep
from ppl_em.optimize import lbfgs
from ppl_em.params import Params
from ppl_em.posterior import Factorized, FullRank, GaussianGuide, guide_hessian
from ppl_em.posterior.guide import flat_blocks
from ppl_em.problem import Problem
from ppl_em.structure import Blocks, dense, find_blocks, hessian_product
from ppl_em.validation import ModelError

logger = logging.getLogger("ppl_em")

GAUSSIAN: dict[Any, type[GaussianGuide]] = {
    AutoNormal: Factorized,
    AutoDiagonalNormal: Factorized,
    AutoMultivariateNormal: FullRank,
}
"""Guides whose bound can be maximised on fixed base draws."""

START = 0.1
"""Standard deviation of q at the start, as in NumPyro's autoguides."""

RAISED = 250
"""Blocks of so many latents or fewer get as many draws as their covariances need."""

LARGEST = 500
"""Largest block of latents that gets a full-rank law."""

MAX_HESSIAN = 600
"""Parameters of a block up to which its Hessian is computed; beyond, conjugate gradients."""


class MeanFieldState(NamedTuple):
    """Parameters of q, (G, P) for G blocks, and the fixed base draws (n, D)."""

    guide: jax.Array
    base: jax.Array


class MeanFieldInfo(NamedTuple):
    """`objective` is the evidence lower bound (ELBO); the rest tells whether q has converged."""

    objective: jax.Array
    guide_gradient_norm: jax.Array
    guide_steps: jax.Array


@dataclass(frozen=True)
class MeanField:
    """Variational inference on the unconstrained scale, with a guide of NumPyro or of the user.

    The bound is averaged over fixed base draws, so EM is deterministic and never lowers it. Its
    maximum is *not* the maximum-likelihood estimate: with independent normals (`AutoNormal`, the
    default) variance parameters shift most. `AutoMultivariateNormal` has all covariances.

    Attributes
    ----------
    guide
        A class of `numpyro.infer.autoguide`: `AutoNormal`, `AutoDiagonalNormal` or
        `AutoMultivariateNormal`.
    num_particles
        Base draws, at least. They are a Latin hypercube, antithetic, standardised to unit
        covariance in every block of latents, so expectations of quadratics are exact. A block of
        d latents needs 4 (d + 1) draws for that, and gets them up to d = 250; a full-rank law
        always.
    max_steps, tol
        The inner optimisation stops after so many L-BFGS steps, or once a step promises to
        raise the bound by less than `tol`.
    blocks
        Latents that are independent a posteriori, found by `resolve`.

    References
    ----------
    Giordano, Ingram & Broderick (2024), Black box variational inference with a deterministic
    objective, JMLR 25. McKay, Beckman & Conover (1979) for the Latin hypercube.
    """

    guide: Callable = AutoNormal
    num_particles: int = 256
    max_steps: int = 100
    tol: float = 1e-9
    blocks: Blocks | None = None
    stochastic: ClassVar[bool] = False
    kind: ClassVar[str] = "lower_bound"

    def resolve(self, rng_key: jax.Array, problem: Problem, params: Params) -> EStep:
        """Find independent blocks of latents; refuse models without continuous latents.

        Raises
        ------
        ModelError
            If there is nothing to approximate.
        """
        problem.require_continuous("mean_field")
        # Away from the start: a covariance that starts out diagonal hides what it couples.
        key_x, key_blocks = jax.random.split(rng_key)
        x = problem.unconstrain(params)
        x = x + 0.3 * jax.random.normal(key_x, x.shape, x.dtype)
        blocks = find_blocks(problem, x, problem.start, key_blocks)
        return dataclasses.replace(self, blocks=blocks, num_particles=self._enough(blocks))

    def _enough(self, blocks: Blocks) -> int:
        """The number of base draws: more than asked for if the largest block needs them."""
        size, full = blocks.block_size, self.family is FullRank
        if full and size > LARGEST:
            raise ModelError(
                f"Option `guide`: {size} latents depend on one another, too many for a full-rank "
                f"law on fixed draws. Use `AutoLowRankMultivariateNormal` or `AutoNormal`."
            )
        needed = 4 * (size + 1)
        if needed <= self.num_particles or (size > RAISED and not full):
            return self.num_particles
        logger.info("mean_field: %d base draws, for blocks of %d latents", needed, size)
        return needed

    @property
    def family(self) -> type[GaussianGuide]:
        """The law behind the guide."""
        return GAUSSIAN[self.guide]

    def init(self, rng_key: jax.Array, problem: Problem, params: Params) -> MeanFieldState:
        """Start at the problem's start with scale 0.1, as `AutoNormal` does."""
        blocks, u = self.blocks or dense(problem), problem.start
        base = base_draws(rng_key, self.num_particles, blocks)
        return MeanFieldState(self.family.start(blocks, u, START), jnp.asarray(base, u.dtype))

    def step(
        self, problem: Problem, params: Params, state: MeanFieldState
    ) -> tuple[GaussianGuide, MeanFieldState, MeanFieldInfo]:
        """Maximise the bound over q from where the last step left it."""

        def bound(flat: jax.Array) -> jax.Array:
            return self.law(problem, flat, state).bound(problem, params)

        best = lbfgs(bound, state.guide.ravel(), self.max_steps, self.tol)
        posterior = self.law(problem, best.x, state)
        state = state._replace(guide=best.x.reshape(state.guide.shape))
        return posterior, state, MeanFieldInfo(best.value, best.gradient_norm, best.num_steps)

    def log_likelihood(self, problem: Problem, params: Params, state: MeanFieldState) -> jax.Array:
        """The bound as a function of the parameters, q following by linear response; a scalar.

        q moves with the parameters by one Newton step, which leaves the value right to fourth
        order and so makes the second derivative exact. Costs a (P, P) Hessian in every block.
        """
        flat = jax.lax.stop_gradient(state.guide.ravel())
        here = jax.lax.stop_gradient(params)

        def bound(flat: jax.Array, params: Params) -> jax.Array:
            return self.law(problem, flat, state).bound(problem, params)

        gradient = jax.grad(bound)(flat, params)
        rows = flat_blocks(state.guide.shape)
        if rows.block_size <= MAX_HESSIAN:
            hessian = guide_hessian(self.law(problem, flat, state), problem, here)
            step = rows.join(jnp.linalg.solve(-hessian, rows.split(gradient)[..., None])[..., 0])
        else:
            step = jax.scipy.sparse.linalg.cg(
                lambda v: -hessian_product(lambda f: bound(f, here), flat, v), gradient, tol=1e-10
            )[0]
        return bound(flat + step, params)

    def law(self, problem: Problem, flat: jax.Array, state: MeanFieldState) -> GaussianGuide:
        """q with the parameters `flat`, (G P,), and the base draws of `state`."""
        blocks = self.blocks or dense(problem)
        return self.family.unpack(flat.reshape(state.guide.shape), state.base, blocks)

    def describe(self, info: MeanFieldInfo) -> str:
        """Steps that the guide took, and the norm of its gradient."""
        return f"guide steps {int(info.guide_steps)}, |grad| {float(info.guide_gradient_norm):.1e}"


def base_draws(rng_key: jax.Array, num_particles: int, blocks: Blocks) -> np.ndarray:
    """Fixed standard-normal points, (n, D): stratified, antithetic, standardised in each block."""
    half, (groups, width) = num_particles // 2, blocks.index.value.shape
    size = groups * width
    seed = np.asarray(jax.random.key_data(rng_key)).ravel()
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(half), (size, 1)), axis=1).T
    upper = ndtri((order + 0.5) / half)
    points = np.concatenate([upper, -upper])
    if width >= half // 2:
        return points / np.sqrt(np.mean(points**2, axis=0))
    standard = np.moveaxis(points[:, blocks.index.value], 0, -1)
    covariance = standard @ np.swapaxes(standard, -1, -2) / len(points)
    standard = np.linalg.solve(np.linalg.cholesky(covariance), standard)
    points[:, blocks.index.value] = np.moveaxis(standard, -1, 0)
    return points
