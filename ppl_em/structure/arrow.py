"""Many small blocks, coupled with one another only through a few shared coordinates."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.structure.base import Screen, Structure, step_cost
from ppl_em.util import Static

MIN_THINNED = 30
"""Shared coordinates from which it pays to look who meets whom."""


class ArrowMatrix(NamedTuple):
    """A symmetric matrix in the form of an arrow.

    `local` (G, d, d) are the blocks, `border` (G, d, s) their coupling with the shared
    coordinates, `shared` (s, s) the corner.
    """

    local: jax.Array
    border: jax.Array
    shared: jax.Array


@dataclass(frozen=True)
class Arrow(Structure):
    """G blocks of d coordinates that are independent given s shared ones.

    `local.value` has shape (G, d), `shared.value` (s,); they hold positions in `u`. Where most
    shared coordinates meet few others, as crossed effects do, `reach.value` (s, D) says which, and
    those that meet no common one go by one color.
    """

    local: Static
    shared: Static
    reach: Static | None = None

    @property
    def num_blocks(self) -> int:
        """G."""
        return int(self.local.value.shape[0])

    @property
    def block_size(self) -> int:
        """d."""
        return int(self.local.value.shape[1])

    @property
    def num_shared(self) -> int:
        """s."""
        return int(self.shared.value.size)

    @property
    def size(self) -> int:
        """D."""
        return int(self.local.value.size) + self.num_shared

    @property
    def colors(self) -> np.ndarray:
        """The place in its block, or d + the group among the shared coordinates, (D,)."""
        color = np.zeros(self.size, int)
        color[self.local.value] = np.arange(self.block_size)
        color[self.shared.value] = self.block_size + self._groups
        return color

    @cached_property
    def _groups(self) -> np.ndarray:
        """Numbers of the shared coordinates, (s,), equal where they meet no common coordinate."""
        if self.reach is None:
            return np.arange(self.num_shared)
        reach = np.asarray(self.reach.value, float)
        clash, group = reach @ reach.T > 0, np.full(self.num_shared, -1)
        for j in np.argsort(-clash.sum(1)):
            taken = np.unique(group[clash[j]])
            group[j] = np.setdiff1d(np.arange(len(taken) + 1), taken)[0]
        return group

    @property
    def num_colors(self) -> int:
        """d + s, whatever G is; fewer where it is known who meets whom."""
        return self.block_size + int(self._groups.max()) + 1

    @property
    def largest(self) -> int:
        """The larger of d and s."""
        return max(self.block_size, self.num_shared)

    @property
    def cost(self) -> float:
        """Linear in G, cubic in d and s."""
        (groups, d), s = self.local.value.shape, self.num_shared
        work = groups * (3.0 * d**3 + 2.0 * d * d * s + 2.0 * d * s * s) + 3.0 * s**3
        return step_cost(self.size, d + s, 2 * (d + s)) + work

    def split(self, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(..., D) to (..., G, d) and (..., s)."""
        return u[..., self.local.value], u[..., self.shared.value]

    def join(self, local: jax.Array, shared: jax.Array) -> jax.Array:
        """(..., G, d) and (..., s) to (..., D); the inverse of `split`."""
        inverse = np.argsort(np.concatenate([self.local.value.ravel(), self.shared.value]))
        flat = local.reshape((*local.shape[:-2], -1))
        return jnp.concatenate([flat, shared], axis=-1)[..., inverse]

    def unpack(self, products: jax.Array) -> ArrowMatrix:
        """The pieces, from products with the colors, (d + s, D)."""
        size = self.block_size
        if self.reach is not None:  # products of a group hold the columns of all in it
            columns = jnp.where(self.reach.value, products[size + self._groups], 0.0)
            products = jnp.concatenate([products[:size], columns])
        local, shared = self.split(products)
        columns = jnp.moveaxis(local, 0, -1)
        return ArrowMatrix(columns[..., :size], columns[..., size:], shared[size:].T)

    def thinned(self, seen: np.ndarray) -> "Arrow":
        """One with fewer colors, if where products (num_colors, D) are not zero allows it."""
        thin = replace(self, reach=Static(seen[self.block_size :]))
        worth = self.num_shared >= MIN_THINNED and 2 * thin.num_colors <= self.num_colors
        return thin if worth else self

    def gram(self, border: jax.Array) -> jax.Array:
        """The sum of W' W over rows W (s,) of a border (G, d, s); a matrix (s, s)."""
        rows = border.reshape(-1, self.num_shared)
        if self.reach is None:
            return rows.T @ rows
        met = self.reach.value[:, self.local.value].any(2).T  # (G, s): solved for in each block
        met = np.repeat(met, self.block_size, axis=0)
        most = int(met.sum(1).max())
        place = np.argsort(~met, axis=1, kind="stable")[:, :most]  # those met, then others: zeros
        values = jnp.take_along_axis(rows, place, axis=1)
        products = values[:, :, None] * values[:, None, :]
        empty = jnp.zeros((self.num_shared, self.num_shared), rows.dtype)
        return empty.at[place[:, :, None], place[:, None, :]].add(products)

    def multiply(self, pieces: ArrowMatrix, vector: jax.Array) -> jax.Array:
        """The matrix with these pieces times a vector, (D,)."""
        local, shared = self.split(vector)
        rows = jnp.einsum("gij,gj->gi", pieces.local, local)
        return self.join(
            rows + jnp.einsum("gis,s->gi", pieces.border, shared),
            pieces.shared @ shared + jnp.einsum("gis,gi->s", pieces.border, local),
        )

    def screen(self, rng: np.random.Generator) -> Screen:
        """A block couples with itself and the shared coordinates."""
        support = np.zeros(self.size, bool)
        support[self.local.value[rng.integers(self.num_blocks)]] = True
        allowed = support.copy()
        allowed[self.shared.value] = True
        return Screen(support, allowed)
