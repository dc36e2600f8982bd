"""Independent parts of the latents, each of a known law: the posterior of exact E-steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.discrete import LogFactors
from ppl_em.params import Params
from ppl_em.posterior.base import Centered, constrain_draws, weighted_mean
from ppl_em.problem import Latents, Problem
from ppl_em.structure import StepTotals, other_terms, steps_term
from ppl_em.util import Static, in_batches

AT_ONCE = 16
"""Points evaluated side by side, at most."""


class PartPosterior(Protocol):
    """A law of some of the coordinates, on the unconstrained scale; a pytree.

    It is the exact conditional law of those coordinates given data and parameters.
    """

    @property
    def center(self) -> jax.Array:
        """A point of high density, (d,)."""
        ...

    @property
    def center_is_mean(self) -> np.ndarray:
        """Whether constraining the center gives the mean on the model's own scale, (d,)."""
        ...

    def log_density(self, u: jax.Array) -> jax.Array:
        """The normalised log-density at `u` (d,); a scalar."""
        ...

    def log_densities(self, u: jax.Array) -> jax.Array:
        """Terms of `log_density`, (d,), each at a coordinate of its independent block."""
        ...

    def points(self) -> jax.Array:
        """Equally weighted points, (n, d), over which the log-joint has its exact mean."""
        ...

    def draw(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """Independent draws, (num_samples, d)."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Product(Centered):
    """Independent parts; `index` says where in `u` (D,) the coordinates of each one are.

    `nodes` (n, D) are equally weighted points over which the log-joint has its exact mean, and
    `steps` stands for the steps of condensed scans, see `condense_steps.py`: the nodes then need
    do for the other terms only.
    """

    parts: tuple[PartPosterior, ...]
    index: tuple[Static, ...] = field(metadata={"static": True})
    nodes: jax.Array | None = None
    steps: StepTotals | None = None

    @property
    def center(self) -> jax.Array:
        """A point of high density, (D,)."""
        return self._join([part.center for part in self.parts])

    @property
    def center_is_mean(self) -> jax.Array:
        """Whether constraining the center gives the mean on the model's own scale, (D,)."""
        return self._join([jnp.asarray(part.center_is_mean) for part in self.parts])

    def log_density(self, u: jax.Array) -> jax.Array:
        """log q(u) for `u` of shape (D,); a scalar."""
        terms = [p.log_density(u[i.value]) for p, i in zip(self.parts, self.index, strict=True)]
        return jnp.sum(jnp.stack(terms))

    def by_coordinate(self, problem: Problem, params: Params) -> tuple[jax.Array, jax.Array]:
        """At the center; any point would do."""
        own = [part.log_densities(part.center) for part in self.parts]
        return self.center, self._join(own)

    def points(self) -> jax.Array:
        """Equally weighted points, (n, D): those of the parts, repeated to a common number.

        Any pairing will do, because the log-joint is a sum over the parts.
        """
        points = [part.points() for part in self.parts]
        common = math.lcm(*map(len, points))
        return self._join([jnp.tile(p, (common // len(p), 1)) for p in points])

    def expected_log_joint(self, problem: Problem, params: Params) -> jax.Array:
        """Q(params), exactly; a scalar."""

        if self.steps is not None and self.nodes is not None:
            return self._from_steps(problem, params, self.steps, self.nodes)

        density = problem.density(params)

        points = self.points() if self.nodes is None else self.nodes
        return jnp.mean(in_batches(density, points, AT_ONCE))

    def _from_steps(
        self, problem: Problem, params: Params, steps: StepTotals, nodes: jax.Array
    ) -> jax.Array:
        """Q from condensed scans, and the mean over points of all other terms."""

        def tables(u: jax.Array) -> tuple[LogFactors, jax.Array]:
            return problem.log_factors_unconstrained(params, u, steps.points)

        def others(u: jax.Array) -> jax.Array:
            factors, jacobian = tables(u)
            return other_terms(factors, steps.weights) + jacobian

        common = steps_term(tables(self.center)[0], steps.weights)
        return common + jnp.mean(jax.vmap(others)(nodes))

    def sample(
        self, problem: Problem, params: Params, rng_key: jax.Array, num_samples: int
    ) -> Latents:
        """Independent exact draws, each of shape (num_samples, *site_shape)."""
        keys = jax.random.split(rng_key, len(self.parts))
        draws = [p.draw(key, num_samples) for p, key in zip(self.parts, keys, strict=True)]
        return constrain_draws(problem, params, self._join(draws))

    def _join(self, parts: list[jax.Array]) -> jax.Array:
        """(..., d) of every part to (..., D)."""
        inverse = np.argsort(np.concatenate([index.value for index in self.index]))
        joined = jnp.concatenate(parts, axis=-1)
        return joined if np.all(np.diff(inverse) == 1) else joined[..., inverse]

    def expectation(self, value: Callable[[jax.Array], Any]) -> Any:
        """Exact for sums over independent parts of quadratics or sufficient statistics."""
        points = self.points()
        return weighted_mean(value, points, jnp.full(len(points), 1 / len(points)))
