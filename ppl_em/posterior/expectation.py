"""Expectations over the latents, for closed-form M-steps.

What is exact: the mean over draws is the Monte Carlo estimate that Q is; the points of an exact
posterior of independent parts integrate sums over the parts of quadratics (Gaussian parts) or of
sufficient statistics (conjugate parts); responsibilities of discrete latents are exact.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from ppl_em.discrete import marginalization
from ppl_em.params import Params
from ppl_em.posterior.base import Posterior
from ppl_em.problem import Latents, Problem
from ppl_em.util import ModelError, check_known


@dataclass(frozen=True, eq=False)
class Expectation:
    """E[g(latents) | y] at the parameters before the M-step."""

    problem: Problem
    posterior: Posterior
    params: Params

    def __call__(self, g: Callable[[Latents], Any]) -> Any:
        """The mean of `g`, a function of the continuous latents on the model's own scale.

        Exact for draws (as far as Q is), and for exact posteriors if `g` is a sum over
        independent parts of quadratics or sufficient statistics, as a complete-data
        log-likelihood is.

        Raises
        ------
        ModelError
            If the E-step has another kind of posterior.
        """

        def value(u: jax.Array) -> Any:
            return g(self.problem.constrain_latents(self.params, u))

        return self.posterior.expectation(value)

    def probs(self, site: str) -> jax.Array:
        """Responsibilities of a discrete site, (*plates, size of the support).

        Raises
        ------
        ModelError
            If the model has continuous latents too, or no such site.
        """
        sites = [known.name for known in self.problem.spec.discrete]
        check_known("expectation.probs", [site], sites, "discrete latent")
        if self.problem.spec.latents:
            raise ModelError(
                "Option `m_step`: ClosedForm has responsibilities only if all latents are discrete."
            )
        return marginalization.site_probs(self.problem.log_factors(self.params, {}))[site]
