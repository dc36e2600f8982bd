"""Discrete latents, summed out: posterior marginals of every log-factor."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ppl_em.params import Params
from ppl_em.posterior.base import Posterior
from ppl_em.problem import Latents, Problem


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
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

    def by_coordinate(self, problem: Problem, params: Params) -> tuple[jax.Array, jax.Array]:
        """There are no coordinates: the log-joint is the value."""
        return problem.start, jnp.zeros_like(problem.start)

    def sample(
        self, problem: Problem, params: Params, rng_key: jax.Array, num_samples: int
    ) -> Latents:
        """There are no continuous latents: an empty dict."""
        return {}
