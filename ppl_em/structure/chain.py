"""Chains of blocks, each coupled with the one before and the one after: block tridiagonal."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.structure.base import Screen, Structure, step_cost
from ppl_em.util import Static

SEQUENTIAL = 200.0
"""Price of one step of a sequential scan, in operations."""


class Band(NamedTuple):
    """A block-tridiagonal symmetric matrix.

    `diagonal` (B, T, d, d); `lower` (B, T, d, d) couples the rows of block t with the columns of
    block t - 1, and is zero for t = 0.
    """

    diagonal: jax.Array
    lower: jax.Array


@dataclass(frozen=True)
class Chain(Structure):
    """B independent chains of T blocks of d coordinates.

    `index.value` has shape (B, T, d) and holds positions in `u`, -1 where a block is not full.
    Such a pad is a coordinate of its own, with diagonal 1 and coupled with nothing.
    """

    index: Static

    @property
    def num_chains(self) -> int:
        """B."""
        return int(self.index.value.shape[0])

    @property
    def length(self) -> int:
        """T."""
        return int(self.index.value.shape[1])

    @property
    def block_size(self) -> int:
        """d."""
        return int(self.index.value.shape[2])

    @property
    def size(self) -> int:
        """D."""
        return int(np.sum(self.index.value >= 0))

    @property
    def colors(self) -> np.ndarray:
        """(t mod 3) d + place in the block, for every coordinate, (D,)."""
        _, length, size = self.index.value.shape
        color = (np.arange(length) % 3)[:, None] * size + np.arange(size)
        return np.broadcast_to(color, self.index.value.shape).ravel()[self._inverse]

    @property
    def num_colors(self) -> int:
        """3 d, whatever T is."""
        return 3 * self.block_size

    @property
    def largest(self) -> int:
        """d."""
        return self.block_size

    @property
    def cost(self) -> float:
        """Linear in B T, cubic in d."""
        chains, length, size = self.index.value.shape
        work = 20.0 * chains * length * size**3 + SEQUENTIAL * length
        return step_cost(self.size, 3 * size, 4 * size) + work

    @property
    def _inverse(self) -> np.ndarray:
        """Where in the raveled index each coordinate is, (D,)."""
        flat = self.index.value.ravel()
        return np.argsort(flat, kind="stable")[flat.size - self.size :]

    def split(self, u: jax.Array) -> jax.Array:
        """(..., D) to (..., B, T, d), zero at pads."""
        index = self.index.value
        if self.size == index.size:
            return u[..., index]
        return jnp.where(index >= 0, u[..., np.maximum(index, 0)], 0.0)

    def join(self, blocks: jax.Array) -> jax.Array:
        """(..., B, T, d) to (..., D), without pads; the inverse of `split`."""
        return blocks.reshape((*blocks.shape[:-3], -1))[..., self._inverse]

    def unpack(self, products: jax.Array) -> Band:
        """The band, from products with the colors, (3 d, D)."""
        chains, length, size = self.index.value.shape
        columns = self.split(products).reshape(3, size, chains, length, size)
        t = np.arange(length)
        diagonal = jnp.moveaxis(columns[t % 3, :, :, t], 2, 0)
        lower = jnp.moveaxis(columns[(t - 1) % 3, :, :, t], 2, 0)
        lower = lower.at[:, 0].set(0.0)
        pad = jnp.asarray(self.index.value < 0, products.dtype)
        diagonal += jnp.eye(size, dtype=products.dtype) * pad[..., None, :]
        return Band(jnp.swapaxes(diagonal, -1, -2), jnp.swapaxes(lower, -1, -2))

    def multiply(self, pieces: Band, vector: jax.Array) -> jax.Array:
        """The matrix with this band times a vector, (D,)."""
        v = self.split(vector)
        below = jnp.einsum("btij,btj->bti", pieces.lower[:, 1:], v[:, :-1])
        above = jnp.einsum("btji,btj->bti", pieces.lower[:, 1:], v[:, 1:])
        result = jnp.einsum("btij,btj->bti", pieces.diagonal, v)
        return self.join(result.at[:, 1:].add(below).at[:, :-1].add(above))

    def screen(self, rng: np.random.Generator) -> Screen:
        """A block couples with itself and its two neighbors."""
        b, t = rng.integers(self.num_chains), rng.integers(self.length)
        return Screen(
            self._mask(self.index.value[b, t]),
            self._mask(self.index.value[b, max(t - 1, 0) : t + 2]),
        )

    def _mask(self, positions: np.ndarray) -> np.ndarray:
        mask = np.zeros(self.size, bool)
        mask[positions[positions >= 0]] = True
        return mask
