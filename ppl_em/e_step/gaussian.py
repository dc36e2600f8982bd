"""Exact E-step for latents in which the log-joint is quadratic."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.e_step.base import ExactInfo
from ppl_em.params import Params
from ppl_em.posterior import Gaussian
from ppl_em.problem import Problem
from ppl_em.structure import Blocks


@dataclass(frozen=True)
class GaussianLatents:
    """Mean by one Newton step, covariance by the inverse Hessian, block by block.

    With f the log-joint, g its gradient and P minus its Hessian at any point u,
    log Z = f(u) + g' P^-1 g / 2 + (D log 2 pi - log det P) / 2.

    Attributes
    ----------
    blocks
        The independent blocks, found and checked by `structure.find_blocks`. Cost is linear in
        their number and cubic in their size.
    """

    blocks: Blocks
    stochastic: ClassVar[bool] = False
    kind: ClassVar[str] = "exact"

    def resolve(self, rng_key: jax.Array, problem: Problem, params: Params) -> "GaussianLatents":
        """Nothing to check: `Exact` has."""
        return self

    def init(self, rng_key: jax.Array, problem: Problem, params: Params) -> jax.Array:
        """The expansion point, shape (D,)."""
        return problem.start

    def step(
        self, problem: Problem, params: Params, state: jax.Array
    ) -> tuple[Gaussian, jax.Array, ExactInfo]:
        """The Gaussian posterior at `params`, and the exact log-likelihood."""
        value, mean, precision_tril = self._solve(problem, params, state)
        identity = jnp.eye(self.blocks.block_size, dtype=state.dtype)
        inverse = jax.vmap(
            lambda chol: jax.scipy.linalg.solve_triangular(chol, identity, lower=True)
        )(precision_tril)
        covariance = jnp.einsum("gki,gkj->gij", inverse, inverse)
        scale_tril = jnp.linalg.cholesky(covariance)
        return Gaussian(mean, scale_tril, self.blocks), mean, ExactInfo(value)

    def log_likelihood(self, problem: Problem, params: Params, state: jax.Array) -> jax.Array:
        """log p(y; params), latents integrated out; a scalar."""
        return self._solve(problem, params, state)[0]

    def describe(self, info: ExactInfo) -> str:
        """Nothing beyond the objective."""
        return ""

    def _solve(
        self, problem: Problem, params: Params, u: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        def density(u: jax.Array) -> jax.Array:
            return problem.log_joint_unconstrained(params, u)

        value, gradient = jax.value_and_grad(density)(u)
        tril = jnp.linalg.cholesky(-self.blocks.hessian(density, u))
        split = self.blocks.split(gradient)
        half = jax.vmap(lambda a, b: jax.scipy.linalg.solve_triangular(a, b, lower=True))(
            tril, split
        )
        shift = jax.vmap(
            lambda a, b: jax.scipy.linalg.solve_triangular(a, b, lower=True, trans="T")
        )(tril, half)
        log_det = jnp.sum(jnp.log(jnp.diagonal(tril, axis1=-2, axis2=-1)))
        log_z = value + 0.5 * jnp.sum(half**2) + 0.5 * u.size * np.log(2 * np.pi) - log_det
        return log_z, u + self.blocks.join(shift), tril
