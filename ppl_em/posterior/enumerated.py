"""Discrete latents, summed out: posterior marginals of every log-factor."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.params import Params
from ppl_em.posterior.base import Posterior
from ppl_em.problem import Latents, Problem
from ppl_em.problem.terms import terms


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Enumerated(Posterior):
    """Exact posterior of discrete sites, as the marginal of each factor's discrete sites.

    `marginals` has one table per sample site, of the shape of its log-factor: the derivative of
    log Z with respect to that table. Q at other parameters is then a sum of products, without
    any elimination. `points` stand for the rows of condensed sites, see `condense_rows.py`;
    `offset` is the part of Q that they leave out, a constant.
    """

    marginals: dict[str, jax.Array]
    points: dict[str, jax.Array]
    offset: jax.Array

    def expected_log_joint(self, problem: Problem, params: Params) -> jax.Array:
        """Q(params) = sum over factors of <marginal, log-factor at params>; a scalar."""
        tables = problem.log_factors(params, {}, self.points).tables

        def term(name: str) -> jax.Array:
            weight = self.marginals[name]
            return jnp.sum(weight * jnp.where(weight != 0, tables[name], 0.0))

        return sum((term(name) for name in tables), start=self.offset)

    @property
    def groups(self) -> np.ndarray:
        """There are no continuous latents, (0,)."""
        return np.zeros(0, int)

    def by_group(self, problem: Problem, params: Params, owner: jax.Array) -> jax.Array:
        """The log-likelihood as far as plates tell it apart: each term is a block, (E + 1,)."""
        found = terms(problem, params, jnp.zeros(0))
        return jnp.append(found, 0.0)

    def sample(
        self, problem: Problem, params: Params, rng_key: jax.Array, num_samples: int
    ) -> Latents:
        """There are no continuous latents: an empty dict."""
        return {}
