"""Exact E-step for continuous latents whose conditional law is a product of known ones."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import jax

from ppl_em.e_step.base import ExactInfo
from ppl_em.params import Params
from ppl_em.posterior import PartPosterior, Product
from ppl_em.problem import Problem
from ppl_em.static import Static
from ppl_em.structure import Density


class Part(Protocol):
    """Some coordinates whose conditional law is of one known kind; frozen and hashable."""

    @property
    def index(self) -> Static:
        """The coordinates, ascending positions in u, shape (d,)."""
        ...

    def fit(self, density: Density, u: jax.Array, gradient: jax.Array) -> PartPosterior:
        """The conditional law, from the log-joint near `u` (D,) and its gradient there (D,).

        The law does not depend on `u`, except by rounding.
        """
        ...


@dataclass(frozen=True)
class Continuous:
    """One fit for each part, all around one point.

    The log-joint minus the parts' log-densities is the same everywhere: log Z. The state is the
    point, shape (D,).

    Attributes
    ----------
    parts
        A partition of the coordinates into independent parts, proved by `Exact`.
    """

    parts: tuple[Part, ...]
    stochastic: ClassVar[bool] = False
    kind: ClassVar[str] = "exact"

    def resolve(self, rng_key: jax.Array, problem: Problem, params: Params) -> "Continuous":
        """Nothing to check: `Exact` has."""
        return self

    def init(self, rng_key: jax.Array, problem: Problem, params: Params) -> jax.Array:
        """The expansion point, shape (D,)."""
        return problem.start

    def step(
        self, problem: Problem, params: Params, state: jax.Array
    ) -> tuple[Product, jax.Array, ExactInfo]:
        """The posterior at `params`, and the exact log-likelihood."""
        value, posterior = self._fit(problem, params, state)
        return posterior, posterior.center, ExactInfo(value)

    def log_likelihood(self, problem: Problem, params: Params, state: jax.Array) -> jax.Array:
        """log p(y; params), latents integrated out; a scalar."""
        return self._fit(problem, params, state)[0]

    def describe(self, info: ExactInfo) -> str:
        """Nothing beyond the objective."""
        return ""

    def posterior(self, density: Density, u: jax.Array, gradient: jax.Array) -> Product:
        """The parts fitted around `u` (D,), where the log-joint has the gradient (D,)."""
        posteriors = tuple(part.fit(density, u, gradient) for part in self.parts)
        return Product(posteriors, tuple(part.index for part in self.parts))

    def _fit(self, problem: Problem, params: Params, u: jax.Array) -> tuple[jax.Array, Product]:
        def density(u: jax.Array) -> jax.Array:
            return problem.log_joint_unconstrained(params, u)

        value, gradient = jax.value_and_grad(density)(u)
        posterior = self.posterior(density, u, gradient)
        return value - posterior.log_density(u), posterior
