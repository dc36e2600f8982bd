"""The contract of a posterior, and what all kinds share."""

from typing import Protocol

import jax

from ppl_em.params import Params
from ppl_em.problem import Latents, Problem


class Posterior(Protocol):
    """p(z given y, params), exact or approximate; a pytree.

    It is fixed once made: the M-step evaluates `expected_log_joint` at many other parameters.
    """

    def expected_log_joint(self, problem: Problem, params: Params) -> jax.Array:
        """Q: the expectation of the log-joint at `params` under this posterior; a scalar."""
        ...

    def sample(
        self, problem: Problem, params: Params, rng_key: jax.Array, num_samples: int
    ) -> Latents:
        """Draws of the continuous latents, each of shape (num_samples, *site_shape)."""
        ...


def constrain_draws(problem: Problem, params: Params, draws: jax.Array) -> Latents:
    """Unconstrained draws, shape (n, D), to latents by site, each (n, *site_shape)."""
    return jax.vmap(lambda u: problem.constrain_latents(params, u))(draws)
