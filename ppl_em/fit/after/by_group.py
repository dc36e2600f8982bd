"""The marginal log-likelihood by independent group of the data, at any parameters."""

from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.e_step import DeterministicEStep, EStep, expectation
from ppl_em.fit.after.groups import Groups, find_groups
from ppl_em.likelihood import frame
from ppl_em.params import Params
from ppl_em.posterior import Posterior, WeightedDraws
from ppl_em.problem import Problem
from ppl_em.problem.penalties import penalties
from ppl_em.problem.terms import terms
from ppl_em.stats import Proposals
from ppl_em.util import ModelError, compiled, generator

CHUNK = 64
"""Points of one call: programs are compiled for this number alone."""

SAME = 1e-7
"""Relative difference of what groups add up to from the whole, from which something is missing."""

NUM_PROPOSALS = 1000
"""Draws of each block's proposal, where the posterior consists of draws."""


@dataclass(frozen=True, eq=False)
class ByGroup:
    """Values of the marginal log-likelihood by group, a function of the parameters.

    By an E-step without noise it is the E-step's own value; from draws it is importance sampled,
    by proposals that are held, so that it is a smooth function of the parameters.
    """

    problem: Problem
    groups: Groups
    e_step: EStep
    state: Any

    @classmethod
    def of(
        cls, problem: Problem, x: jax.Array, e_step: EStep, state: Any, posterior: Any
    ) -> "ByGroup":
        """At and around the fitted `x` (p,), with the E-step and the posterior of the fit.

        Raises
        ------
        ModelError
            If the posterior has no density, as guides' do not, or groups cannot be told apart.
        """
        params = problem.constrain(x)
        if posterior.by_draws:
            draws = cast(WeightedDraws, posterior).draws.reshape(-1, problem.num_latents)
            groups = find_groups(problem, x, draws.mean(axis=0))
            return cls(problem, groups, e_step, _proposals(np.asarray(draws), groups))
        found = posterior.by_coordinate(problem, params)
        if found is None:
            raise ModelError(
                f"e_step='{e_step.flag}': its objective is a bound, which is no sum of marginal "
                f"log-likelihoods by group. Fit with e_step='exact', 'quadrature', 'laplace' or "
                f"'nuts'."
            )
        own = cls(problem, find_groups(problem, x, found[0]), e_step, state)
        own._check(x)
        return own

    def _check(self, x: jax.Array) -> None:
        """Raise if the values at `x` (p,) do not add up to the E-step's."""
        total = float(expectation(self.e_step, self.problem, x, self.state)[2].objective)
        total -= sum(penalties(self.problem, self.problem.constrain(x)).values())
        added = float(self(np.asarray(x)[None]).sum())
        eps = float(np.finfo(self.problem.start.dtype).eps)
        if not abs(added - total) <= max(SAME, 1e3 * eps) * (1 + abs(total)):
            raise ModelError(
                f"The log-likelihoods of the groups add up to {added:.6f}, not to {total:.6f}: "
                f"part of it belongs to no group, so that groups cannot be told apart."
            )

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Values at `points` (n, p) of the unconstrained parameters, shape (n, G)."""
        points, found = np.asarray(points), []
        owner, labels = jnp.asarray(self.groups.owner), jnp.asarray(self.groups.labels)
        for begin in range(0, len(points), CHUNK):
            some = points[begin : begin + CHUNK]
            full = np.concatenate([some, np.repeat(some[-1:], CHUNK - len(some), axis=0)])
            full = full.astype(self.problem.start.dtype)
            number = self.groups.number
            if self.e_step.stochastic:
                values = _sampled(number, self.problem, full, len(some), owner, self.state)
            else:
                values = _values(
                    cast(DeterministicEStep, self.e_step),
                    number,
                    self.problem,
                    full,
                    len(some),
                    self.state,
                    owner,
                    labels,
                )
            found.append(np.asarray(values, float)[: len(some)])
        return np.concatenate(found)

    def scores(self, x: jax.Array, matrix: np.ndarray) -> np.ndarray:
        """Their gradients at `x` (p,), (G, p), by differences of the fourth order.

        `matrix` (p, p), the information, says how long steps are.
        """
        eps = float(np.finfo(np.asarray(x).dtype).eps)
        scale = np.diag(frame(matrix, None)) * eps**0.2
        steps = np.concatenate([k * np.diag(scale) for k in (-2, -1, 1, 2)])
        values = self(np.asarray(x, float) + steps).reshape(4, len(scale), -1)
        weights = np.array([1, -8, 8, -1]) / 12
        return (np.einsum("k,kpg->pg", weights, values) / scale[:, None]).T


def value_by_group(
    problem: Problem,
    params: Params,
    posterior: Posterior,
    number: int,
    owner: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    """The log-likelihood at `params` by group, (G,), from the posterior there; as in `Groups`."""
    found = posterior.by_coordinate(problem, params)
    if found is None:
        raise ValueError("the posterior has no density")
    u, densities = found
    joint = jax.ops.segment_sum(terms(problem, params, u), owner, number + 1)
    own = jax.ops.segment_sum(densities, labels, number + 1)
    return (joint - own)[:-1]


@compiled(static_argnums=(0, 1))
def _values(
    e_step: DeterministicEStep,
    number: int,
    problem: Problem,
    points: jax.Array,
    count: int | jax.Array,
    state: Any,
    owner: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    """Values (n, G) at the first `count` of `points` (n, p)."""

    def at(i: jax.Array, seen: jax.Array) -> jax.Array:
        params = problem.constrain(points[i])
        posterior = e_step.step(problem, params, state)[0]
        return seen.at[i].set(value_by_group(problem, params, posterior, number, owner, labels))

    start = jnp.full((len(points), number), jnp.nan, points.dtype)
    return jax.lax.fori_loop(0, count, at, start)


def _proposals(draws: np.ndarray, groups: Groups) -> tuple[jax.Array, jax.Array]:
    """Points (n, D) of the latents, and their log-densities by group, (n, G)."""
    blocks = np.unique(groups.labels, return_inverse=True)[1]
    law = Proposals.fit(draws, blocks)
    points, densities = law.sample(generator(jax.random.key(0)), NUM_PROPOSALS)
    names = np.unique(groups.labels)
    full = np.zeros((len(points), groups.number + 1))
    full[:, names] = densities
    dtype = draws.dtype
    return jnp.asarray(points, dtype), jnp.asarray(full[:, : groups.number], dtype)


@compiled(static_argnums=0)
def _sampled(
    number: int,
    problem: Problem,
    points: jax.Array,
    count: int | jax.Array,
    owner: jax.Array,
    proposals: tuple[jax.Array, jax.Array],
) -> jax.Array:
    """The same from draws of proposals, see `_proposals`."""
    draws, densities = proposals

    def at(i: jax.Array, seen: jax.Array) -> jax.Array:
        params = problem.constrain(points[i])

        def joint(u: jax.Array) -> jax.Array:
            return jax.ops.segment_sum(terms(problem, params, u), owner, number + 1)[:-1]

        ratios = jax.lax.map(joint, draws, batch_size=16) - densities
        return seen.at[i].set(jax.nn.logsumexp(ratios, axis=0) - np.log(len(draws)))

    start = jnp.full((len(points), number), jnp.nan, points.dtype)
    return jax.lax.fori_loop(0, count, at, start)
