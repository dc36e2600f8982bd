"""Chains as state space models: transitions and sightings told apart, term by term.

Each term of a latent site is the density of the coordinates that it owns, given others: of block t
given itself and block t - 1. The Hessian of those terms alone that own coordinates of one color
holds the slopes and the precision of each of them, without the others' that would drown it. All
other terms see one block each.
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.discrete import Table, product
from ppl_em.params import Params
from ppl_em.posterior import (
    GaussianChain,
    Sightings,
    Transitions,
    filtered,
    mul,
    semi_cholesky,
    semi_solve,
    transpose,
)
from ppl_em.problem import Problem
from ppl_em.structure import Chain
from ppl_em.util import Static


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StateSpace:
    """A chain, and the coordinates that each entry of each latent site's table owns.

    `owned` has, by table, positions in `u` of shape (*shape of the table, coordinates).
    """

    chain: Chain = field(metadata={"static": True})
    owned: tuple[tuple[str, Static], ...] = field(metadata={"static": True})

    def fit(
        self, problem: Problem, params: Params, u: jax.Array
    ) -> tuple[jax.Array, GaussianChain]:
        """The log-likelihood, and the law of the latents; neither depends on `u` (D,).

        NaN where a variance is so small that a density underflows at `u`.
        """
        u = jax.lax.stop_gradient(u)
        transitions = self.transitions(problem, params, u)
        constant, sightings = self.sightings(problem, params, u)
        value, law = filtered(self.chain, u, transitions, sightings)
        rows = jax.lax.stop_gradient(jnp.max(jnp.abs(transitions.root), axis=-1))
        known = jnp.where(jnp.all(rows > 0), 1.0, jnp.nan)
        return (constant + value) * known, replace(law, mean=law.mean * known)

    def prior(self, problem: Problem, params: Params, u: jax.Array, color: jax.Array) -> jax.Array:
        """The terms that own coordinates of a color; of any, if it is negative."""
        tables = problem.log_factors_unconstrained(params, u)[0].tables
        colors, total = jnp.asarray(self.chain.colors), jnp.zeros((), u.dtype)
        for key, owned in self.owned:
            mine = jnp.any(colors[owned.value] == color, axis=-1) | (color < 0)
            total += jnp.sum(jnp.where(mine, tables[key], 0.0))
        return total

    def likelihood(self, problem: Problem, params: Params, u: jax.Array) -> jax.Array:
        """All other terms."""
        factors, jacobian = problem.log_factors_unconstrained(params, u)
        names, latent = factors.layout.names, dict(self.owned)
        left = [Table(factors.tables[k], axes) for k, axes in names if k not in latent]
        return product(left, dict(factors.layout.plates)) + jacobian

    def transitions(self, problem: Problem, params: Params, u: jax.Array) -> Transitions:
        """Around `u` (D,); terms say u_t = N u_t + A u_(t-1) + b + noise, here solved for u_t."""
        chain, colors = self.chain, jnp.asarray(self.chain.colors)
        k, length = chain.block_size, chain.length

        def column(color: jax.Array) -> tuple[jax.Array, jax.Array]:
            def slope(u: jax.Array) -> jax.Array:
                return jax.grad(lambda u: self.prior(problem, params, u, color))(u)

            mine = (colors == color).astype(u.dtype)
            gradient, product = jax.jvp(slope, (u,), (mine,))
            return mine * gradient, -product

        gradients, products = jax.lax.map(column, jnp.arange(3 * k), batch_size=self._side_by_side)
        columns = chain.split(products).reshape(3, k, chain.num_chains, length, k)
        t = np.arange(length)
        own = jnp.transpose(columns[t % 3, :, :, t], (0, 2, 3, 1))
        back = jnp.transpose(columns[t % 3, :, :, np.maximum(t - 1, 0)], (0, 2, 3, 1))
        back = back.at[0].set(0.0)
        pad = jnp.asarray(np.moveaxis(chain.index.value < 0, 1, 0), u.dtype)
        own += jnp.eye(k, dtype=u.dtype) * pad[..., None]
        root = semi_cholesky(jnp.where(self._mates, own, 0.0))
        one = jnp.broadcast_to(jnp.eye(k, dtype=u.dtype), own.shape)
        deviation = semi_solve(root, one)
        noise = mul(transpose(deviation), deviation)
        score = jnp.moveaxis(chain.split(jnp.sum(gradients, 0)), 1, 0)[..., None]
        within = one - transpose(mul(own, noise))
        within = jnp.where(self._mates, 0.0, within)
        move, shift = -transpose(mul(back, noise)), mul(noise, score)
        # (I - N)^-1 is the product of I + N^(2^i): no term owns what it depends on.
        solved, power = one, within
        for _ in range(max(k - 1, 0).bit_length()):
            solved = mul(solved, one + power)
            power = mul(power, power)
        root = mul(solved, transpose(deviation))
        return Transitions(mul(solved, move), mul(solved, shift)[..., 0], root)

    def sightings(
        self, problem: Problem, params: Params, u: jax.Array
    ) -> tuple[jax.Array, Sightings]:
        """The largest value of all other terms, and how they see each block."""
        chain, k = self.chain, self.chain.block_size
        place = jnp.asarray(self.chain.colors) % k

        def terms(u: jax.Array) -> jax.Array:
            return self.likelihood(problem, params, u)

        slope = jax.grad(terms)

        def column(j: jax.Array) -> tuple[jax.Array, jax.Array]:
            gradient, product = jax.jvp(slope, (u,), ((place == j).astype(u.dtype),))
            return gradient, -product

        def rest(gradient: jax.Array) -> jax.Array:
            return semi_solve(tril, jnp.moveaxis(chain.split(gradient), 1, 0)[..., None])

        gradients, products = jax.lax.map(column, jnp.arange(k), batch_size=self._side_by_side)
        tril = semi_cholesky(jnp.transpose(chain.split(products), (2, 1, 3, 0)))
        # Once more from the top, where no large terms cancel.
        step = semi_solve(tril, rest(gradients[0]), transposed=True)[..., 0]
        top = jax.lax.stop_gradient(u + chain.join(jnp.moveaxis(step, 0, 1)))
        value, gradient = jax.value_and_grad(terms)(top)
        left = rest(gradient)[..., 0]
        value += 0.5 * jnp.sum(left**2)
        place_of_top = jnp.moveaxis(chain.split(top - u), 1, 0)
        return value, Sightings(tril, place_of_top, left)

    @property
    def _side_by_side(self) -> int:
        return max(1, min(64, 4_000_000 // self.chain.size))

    @property
    def _mates(self) -> np.ndarray:
        """Whether coordinates of a block have one owner, (T, B, k, k)."""
        owner, count = np.full(self.chain.size, -1), 0
        for _, owned in self.owned:
            entries = owned.value.reshape(-1, owned.value.shape[-1])
            owner[entries] = count + np.arange(len(entries))[:, None]
            count += len(entries)
        index = np.moveaxis(self.chain.index.value, 1, 0)
        owners = np.where(index >= 0, owner[index], -1 - np.arange(index.shape[-1]))
        return owners[..., :, None] == owners[..., None, :]
