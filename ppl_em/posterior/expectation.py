"""Expectations over the latents for closed-form M-steps, and those M-steps.

What is exact: the mean over draws is the Monte Carlo estimate that Q is; the points of an exact
posterior of independent parts integrate sums over the parts of quadratics (Gaussian parts) or of
sufficient statistics (conjugate parts); responsibilities of discrete latents are exact.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ppl_em.discrete import marginalization
from ppl_em.m_step import ClosedForm
from ppl_em.params import Params
from ppl_em.posterior.base import Posterior
from ppl_em.posterior.draws import WeightedDraws
from ppl_em.posterior.product import Product
from ppl_em.problem import Latents, Problem
from ppl_em.util import ModelError, check_known


@dataclass(frozen=True)
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

        if isinstance(self.posterior, WeightedDraws):
            weights = self.posterior.weights.ravel()
            draws = self.posterior.draws.reshape(len(weights), -1)
        elif isinstance(self.posterior, Product):
            draws = self.posterior.points()
            weights = jnp.full(len(draws), 1 / len(draws))
        else:
            raise ModelError(
                f"Option `m_step`: ClosedForm has no expectations under the posterior of this "
                f"E-step ({type(self.posterior).__name__}). Use e_step='exact' with latents that "
                f"are Gaussian or conjugate, e_step='nuts', or `expectation.probs` for discrete "
                f"latents."
            )
        values = jax.vmap(value)(draws)
        return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), values)

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


def closed_form(
    m_step: ClosedForm, problem: Problem, posterior: Posterior, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Where the user's function leads from `x` (p,), and which coordinates it has set, (p,)."""
    params = problem.constrain(x)
    found = m_step.maximiser(Expectation(problem, posterior, params), params)
    if not isinstance(found, dict) or not found:
        raise ModelError(
            f"Option `m_step`: the function of ClosedForm returned {type(found).__name__}. Return "
            f"a dictionary, site name to value."
        )
    space = problem.space
    check_known("ClosedForm", found, space.names, "free parameter")
    for name, value in found.items():
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(value)]
        known = [jnp.shape(leaf) for leaf in jax.tree.leaves(params[name])]
        if shapes != known:
            raise ModelError(
                f"Site '{name}': ClosedForm gives it the shape {shapes}, the model {known}. "
                f"Return a value of the model's shape."
            )
    new_x = problem.unconstrain({**params, **found})
    marks = space.unravel(jnp.zeros(x.size))
    ones = {name: jax.tree.map(jnp.ones_like, marks[name]) for name in found}
    flat, _ = ravel_pytree({**marks, **ones})
    return jnp.where(flat == 1, new_x, x), flat == 1
