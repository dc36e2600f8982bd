"""Exact E-step for discrete latents: sum them out, keep the marginals of every factor."""

from dataclasses import dataclass
from typing import ClassVar

import jax

from ppl_em import summation
from ppl_em.e_step.base import ExactInfo
from ppl_em.params import Params
from ppl_em.posterior import Enumerated
from ppl_em.problem import Problem


@dataclass(frozen=True)
class Enumeration:
    """Posterior marginals by one reverse pass through the elimination of log Z.

    A model without any latent site is the trivial case: Q is its log-likelihood.
    """

    stochastic: ClassVar[bool] = False
    kind: ClassVar[str] = "exact"

    def resolve(self, rng_key: jax.Array, problem: Problem, params: Params) -> "Enumeration":
        """Nothing to check: `Exact` has."""
        return self

    def init(self, rng_key: jax.Array, problem: Problem, params: Params) -> tuple:
        """No state."""
        return ()

    def step(
        self, problem: Problem, params: Params, state: tuple
    ) -> tuple[Enumerated, tuple, ExactInfo]:
        """Marginals of every factor at `params`, and the exact log-likelihood."""
        value, marginals = summation.marginals(problem.log_factors(params, {}))
        return Enumerated(marginals), state, ExactInfo(value)

    def log_likelihood(self, problem: Problem, params: Params, state: tuple) -> jax.Array:
        """log p(y; params), discrete latents summed out; a scalar."""
        return problem.log_joint(params, {})

    def describe(self, info: ExactInfo) -> str:
        """Nothing beyond the objective."""
        return ""
