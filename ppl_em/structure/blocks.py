"""Independent blocks of equal size; one block is the dense case."""

from dataclasses import dataclass

import jax
import numpy as np

from ppl_em.problem import Problem
from ppl_em.structure.base import Screen, Structure, step_cost
from ppl_em.util import Static


@dataclass(frozen=True)
class Blocks(Structure):
    """A partition of the D latent coordinates into G independent blocks of d coordinates.

    `index.value` has shape (G, d) and holds positions in `u`. The pieces of a matrix are its
    blocks, (G, d, d). All methods take arrays of NumPy too, and then compile nothing.
    """

    index: Static

    @property
    def num_blocks(self) -> int:
        """G."""
        return int(self.index.value.shape[0])

    @property
    def block_size(self) -> int:
        """d."""
        return int(self.index.value.shape[1])

    @property
    def colors(self) -> np.ndarray:
        """The place in its block of every coordinate, (D,)."""
        return np.argsort(self.index.value.ravel()) % self.block_size

    @property
    def labels(self) -> np.ndarray:
        """The number of its block, for every coordinate, (D,)."""
        return np.argsort(self.index.value.ravel()) // self.block_size

    @property
    def num_colors(self) -> int:
        """d."""
        return self.block_size

    @property
    def largest(self) -> int:
        """d."""
        return self.block_size

    @property
    def cost(self) -> float:
        """Linear in the number of blocks, cubic in their size."""
        groups, size = self.index.value.shape
        return step_cost(groups * size, size, 2 * size) + 3.0 * groups * size**3

    def split(self, u: jax.Array) -> jax.Array:
        """(..., D) to (..., G, d)."""
        return u[..., self.index.value]

    def join(self, blocks: jax.Array) -> jax.Array:
        """(..., G, d) to (..., D); the inverse of `split`."""
        inverse = np.argsort(self.index.value.ravel())
        return blocks.reshape((*blocks.shape[:-2], -1))[..., inverse]

    def unpack(self, products: jax.Array) -> jax.Array:
        """The blocks (G, d, d), from products with the colors, (d, D)."""
        return self.split(products).transpose(1, 2, 0)

    def multiply(self, pieces: jax.Array, vector: jax.Array) -> jax.Array:
        """The matrix with blocks (G, d, d) times a vector, (D,)."""
        return self.join((pieces @ self.split(vector)[..., None])[..., 0])

    def screen(self, rng: np.random.Generator) -> Screen:
        """A block couples with itself."""
        inside = np.zeros(self.index.value.size, bool)
        inside[self.index.value[rng.integers(self.num_blocks)]] = True
        return Screen(inside, inside)


def dense(problem: Problem) -> Blocks:
    """All latents in one block."""
    return Blocks(Static(np.arange(problem.num_latents)[None]))
