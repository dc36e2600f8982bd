"""Exact E-step for continuous latents that are Gaussian given discrete ones, block by block."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.discrete import LOG_ZERO, LogFactors, Table, indicators, true_zero
from ppl_em.e_step.base import DeterministicEStep, ExactInfo, Strength
from ppl_em.params import Params
from ppl_em.posterior import BlockLayout, GaussianMixture
from ppl_em.problem import Problem
from ppl_em.structure import compressed_hessian
from ppl_em.util import cholesky, solve_lower, solve_lower_transposed


class Expansion(NamedTuple):
    """The log-joint of every joint state and block, to second order in the block's coordinates.

    `value` (S, G), `gradient` (S, G, d), `hessian` (S, G, d, d); `outside` is the scalar that
    belongs to no block, while its derivatives are among those of all states.
    """

    value: jax.Array
    gradient: jax.Array
    hessian: jax.Array
    outside: jax.Array

    @property
    def possible(self) -> jax.Array:
        """States whose probability is not zero, (S, G)."""
        return self.value > LOG_ZERO / 2


@dataclass(frozen=True)
class Conditional(DeterministicEStep):
    """A Newton step for every joint state, and the sum over states of what it integrates to.

    Given joint state s, the log-joint of block g is quadratic with gradient g and curvature -P, so
    log Z_gs = value + g^T P^-1 g / 2 + d log(2 pi) / 2 - log det(P) / 2, at any point. The
    state is that point, shape (D,).

    Attributes
    ----------
    layout
        Joint states and blocks, proved by `find_mixture.find_layout`.
    """

    layout: BlockLayout
    flag: ClassVar[str] = "exact"
    strength: ClassVar[Strength] = Strength.EXACT
    kind: ClassVar[str] = "exact"

    def init(self, rng_key: jax.Array, problem: Problem, params: Params) -> jax.Array:
        """The expansion point, shape (D,)."""
        return problem.start

    def step(
        self, problem: Problem, params: Params, state: jax.Array
    ) -> tuple[GaussianMixture, jax.Array, ExactInfo]:
        """The posterior at `params`, and the exact log-likelihood."""
        value, posterior = self.fit(problem, params, state)
        return posterior, posterior.center, ExactInfo(value)

    def log_likelihood(self, problem: Problem, params: Params, state: jax.Array) -> jax.Array:
        """log p(y; params), latents integrated and summed out; a scalar."""
        return self.fit(problem, params, state)[0]

    def fit(
        self, problem: Problem, params: Params, u: jax.Array
    ) -> tuple[jax.Array, GaussianMixture]:
        """The log-likelihood and the posterior, from derivatives at `u` (D,)."""
        states = self.layout.states
        factors, _ = problem.log_factors_unconstrained(params, u)
        fixed = {k: v for k, v in factors.tables.items() if k not in self.layout.moving}
        zeros = indicators(factors.layout)

        def collect(
            tables: dict[str, jax.Array], extra: dict[str, jax.Array]
        ) -> tuple[jax.Array, jax.Array]:
            added = tuple(Table(extra[name], zeros[name].names) for name in zeros)
            return states.collect(LogFactors(tables, factors.layout), tables, added)

        start = {name: table.array for name, table in zeros.items()}
        (inside, outside), pull = jax.vjp(collect, fixed, start)
        expansion = self.expand(problem, params, u, inside)
        log_z, means, trils = _integrate(expansion, self.layout.blocks.split(u))
        weights = jax.nn.softmax(log_z, axis=0)
        marginals, probs = pull((weights, jnp.ones(())))
        posterior = GaussianMixture(weights, means, trils, marginals, probs, self.layout)
        inside_z = true_zero(jax.nn.logsumexp(log_z, axis=0))
        value = true_zero(outside) + expansion.outside + jnp.sum(inside_z)
        return value, posterior

    def constant(
        self, problem: Problem, params: Params, u: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """What does not depend on `u` (D,): by joint state and block, (S, G), and a scalar."""
        factors, _ = problem.log_factors_unconstrained(params, u)
        keys = (key for key in factors.tables if key not in self.layout.moving)
        return self.layout.states.collect(factors, keys)

    def expand(
        self, problem: Problem, params: Params, u: jax.Array, constant: jax.Array
    ) -> Expansion:
        """Derivatives at `u` (D,); `constant` (S, G) is added to the value.

        Forward mode in the same coordinate of all blocks at once gives those of all states.
        """
        blocks = self.layout.blocks
        size, colors = blocks.block_size, jnp.asarray(blocks.colors)
        rows, columns = np.triu_indices(size)

        def inside(u: jax.Array) -> jax.Array:
            return self.layout.terms(problem, params, u)[0]

        def outside(u: jax.Array) -> jax.Array:
            return self.layout.terms(problem, params, u)[1]

        def second(pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            first, other = ((colors == color).astype(u.dtype) for color in pair)
            return jax.jvp(lambda u: jax.jvp(inside, (u,), (first,))[1], (u,), (other,))

        side_by_side = max(1, min(len(rows), 16, 4_000_000 // u.size))
        pairs = (jnp.asarray(rows), jnp.asarray(columns))
        slopes, curvatures = jax.lax.map(second, pairs, batch_size=side_by_side)
        place = np.zeros((size, size), int)
        place[rows, columns] = place[columns, rows] = np.arange(len(rows))
        gradient = jnp.moveaxis(slopes[np.diagonal(place)], 0, -1)
        hessian = jnp.moveaxis(curvatures[place], (0, 1), (-2, -1))
        if self.layout.shared:
            gradient += blocks.split(jax.grad(outside)(u))
            hessian += blocks.unpack(compressed_hessian(blocks, outside, u))
        return Expansion(constant + inside(u), gradient, hessian, outside(u))


def _integrate(expansion: Expansion, here: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """log Z_gs (S, G), means (S, G, d) and Cholesky factors of precisions (S, G, d, d).

    An impossible state gets a standard normal law that nobody weighs.
    """
    possible = expansion.possible[..., None]
    size = here.shape[-1]
    precision = jnp.where(possible[..., None], -expansion.hessian, jnp.eye(size))
    gradient = jnp.where(possible, expansion.gradient, 0.0)
    tril = cholesky(precision)
    half = solve_lower(tril, gradient[..., None])
    mean = here + solve_lower_transposed(tril, half)[..., 0]
    log_det = jnp.sum(jnp.log(jnp.diagonal(tril, axis1=-2, axis2=-1)), axis=-1)
    quadratic = 0.5 * jnp.sum(half**2, axis=(-2, -1)) + 0.5 * size * np.log(2 * np.pi)
    return expansion.value + quadratic - log_det, mean, tril
