"""Exact E-step for discrete latents: sum them out, keep the marginals of every factor."""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from ppl_em.discrete import marginalization
from ppl_em.e_step.base import DeterministicEStep, ExactInfo, Strength
from ppl_em.e_step.exact.random_responsibilities import random_marginals
from ppl_em.params import Params
from ppl_em.posterior import Enumerated
from ppl_em.problem import Problem
from ppl_em.structure import Condensation, condense_rows


@dataclass(frozen=True)
class Enumeration(DeterministicEStep):
    """Posterior marginals by one reverse pass through the elimination of log Z.

    A model without any latent site is the trivial case: Q is its log-likelihood. The state is the
    condensed data.

    Attributes
    ----------
    min_rows
        Rows of an observed site from which its data are condensed, see `condense_rows.py`; or None.
    chain
        `"sequential"`, `"parallel"`, or None for the faster one on this device.
    """

    min_rows: int | None = None
    chain: str | None = None
    flag: ClassVar[str] = "exact"
    strength: ClassVar[Strength] = Strength.EXACT
    kind: ClassVar[str] = "exact"

    def init(self, rng_key: jax.Array, problem: Problem, params: Params) -> Condensation:
        """The rows of data as weighted points, where that is proved to be the same."""
        if self.min_rows is None:
            return {}
        return condense_rows.condense(rng_key, problem, problem.unconstrain(params), self.min_rows)

    def step(
        self, problem: Problem, params: Params, state: Condensation
    ) -> tuple[Enumerated, Condensation, ExactInfo]:
        """Marginals of every factor at `params`, and the exact log-likelihood."""
        points = {key: rows.points for key, rows in state.items()}
        factors = problem.log_factors(params, {}, points)

        def objective(tables: dict[str, jax.Array]) -> jax.Array:
            full = condense_rows.expand(factors._replace(tables=tables), state)
            return marginalization.log_normalizer(full, marginalization.mode(self.chain, once=True))

        value, marginals = jax.value_and_grad(objective)(factors.tables)
        offset = sum((jnp.sum(rows.offsets) for rows in state.values()), jnp.zeros(()))
        return Enumerated(marginals, points, offset), state, ExactInfo(value)

    def log_likelihood(self, problem: Problem, params: Params, state: Condensation) -> jax.Array:
        """log p(y; params), discrete latents summed out; a scalar."""
        points = {key: rows.points for key, rows in state.items()}
        factors = problem.log_factors(params, {}, points)
        full = condense_rows.expand(factors, state)
        return marginalization.log_normalizer(full, marginalization.mode(self.chain))

    def at_random(
        self,
        rng_key: jax.Array,
        problem: Problem,
        params: Params,
        state: Condensation,
        per_state: int,
    ) -> Enumerated | None:
        """Responsibilities that know nothing of the data, see `random_responsibilities.py`."""
        if not problem.spec.discrete:
            return None
        points = {key: rows.points for key, rows in state.items()}
        offset = sum((jnp.sum(rows.offsets) for rows in state.values()), jnp.zeros(()))
        factors = problem.log_factors(params, {}, points)
        return Enumerated(random_marginals(rng_key, factors, state, per_state), points, offset)

    def uncondensed(self) -> "Enumeration":
        """On every row."""
        return replace(self, min_rows=None)

    def in_full(self, problem: Problem, params: Params, state: Condensation) -> jax.Array | None:
        """log p(y; params) from every row of the data; None if none are condensed."""
        return problem.log_joint(params, {}) if state else None
