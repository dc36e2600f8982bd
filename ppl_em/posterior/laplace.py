"""Laplace's approximation: the Gaussian law at the mode of the latents."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ppl_em.params import Params
from ppl_em.posterior.base import Centered, constrain_draws
from ppl_em.posterior.gaussian_arrow import GaussianArrow
from ppl_em.posterior.gaussian_blocks import Gaussian
from ppl_em.posterior.gaussian_chain import GaussianChain
from ppl_em.problem import Latents, Problem
from ppl_em.structure import Density

GaussianLaw = Gaussian | GaussianChain | GaussianArrow
"""A normal law whose precision has a structure."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class LaplaceApproximation(Centered):
    """N(mode, inverse of minus the Hessian there), on the unconstrained scale.

    `law` is that Gaussian, `shift` (D,) the first-order difference between posterior mean and
    mode, which the third derivatives of the log-joint make.
    """

    law: GaussianLaw
    shift: jax.Array

    @property
    def center(self) -> jax.Array:
        """The posterior mean to first order, (D,)."""
        return self.law.center + self.shift

    @property
    def center_is_mean(self) -> jax.Array:
        """Not unless the transform is the identity, (D,)."""
        return jnp.zeros(self.shift.shape, bool)

    def by_coordinate(self, problem: Problem, params: Params) -> tuple[jax.Array, jax.Array]:
        """At the mode."""
        return self.law.center, self.law.log_densities(self.law.center)

    def points(self) -> jax.Array:
        """Equally weighted points, (n, D), with the moments of the Gaussian."""
        return self.law.points() + self.shift

    def expected_log_joint(self, problem: Problem, params: Params) -> jax.Array:
        """Q to second order: mode, shift of the mean, and half the trace; a scalar.

        Its gradient at the parameters of this approximation is that of Laplace's log-likelihood.
        """
        density = problem.density(params)
        value, slope = jax.jvp(density, (self.law.center,), (self.shift,))
        return value + slope + half_trace(density, self.law.center, self.law.columns())

    def sample(
        self, problem: Problem, params: Params, rng_key: jax.Array, num_samples: int
    ) -> Latents:
        """Draws from the Gaussian, its mean corrected; each (num_samples, *site_shape)."""
        draws = self.law.draw(rng_key, num_samples) + self.shift
        return constrain_draws(problem, params, draws)


def half_trace(density: Density, u: jax.Array, columns: jax.Array) -> jax.Array:
    """Half the sum of the second derivatives of `density` at `u` (D,) along `columns` (m, D)."""

    def second(column: jax.Array) -> jax.Array:
        def slope(u: jax.Array) -> jax.Array:
            return jax.jvp(density, (u,), (column,))[1]

        return jax.jvp(slope, (u,), (column,))[1]

    if len(columns) == 1:
        return 0.5 * second(columns[0])
    return 0.5 * jnp.sum(jax.lax.map(jax.checkpoint(second), columns, batch_size=8))
