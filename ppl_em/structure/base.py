"""The contract of a pattern of zeros, and Hessians recovered from a few products.

Coordinates that share no row of the Hessian get one color. The sum of their columns, one product
of the Hessian with a vector of zeros and ones, then holds the entries of each of them apart.

References
----------
Curtis, Powell & Reid (1974), On the estimation of sparse Jacobian matrices, J. Inst. Maths
Applics 13.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np

Density = Callable[[jax.Array], jax.Array]
"""A log-density of the unconstrained latents, (D,) to a scalar."""


class Screen(NamedTuple):
    """A necessary condition: coordinates `support` couple with `allowed` only; both (D,) bool."""

    support: np.ndarray
    allowed: np.ndarray


class Structure(Protocol):
    """A pattern of zeros in the Hessian over D coordinates; frozen and hashable."""

    @property
    def colors(self) -> np.ndarray:
        """The color of every coordinate, 0, ..., num_colors - 1, shape (D,)."""
        ...

    @property
    def num_colors(self) -> int:
        """How many products determine the Hessian."""
        ...

    @property
    def largest(self) -> int:
        """Side of the largest dense matrix in the computations."""
        ...

    @property
    def cost(self) -> float:
        """Rough number of operations of an EM step, to compare structures of one problem."""
        ...

    def unpack(self, products: jax.Array) -> Any:
        """The matrix by its nonzero pieces, from its products with the colors, (num_colors, D)."""
        ...

    def thinned(self, seen: np.ndarray) -> Self:
        """One with fewer colors, where products (num_colors, D) are nonzero in `seen` only."""
        return self

    def multiply(self, pieces: Any, vector: jax.Array) -> jax.Array:
        """The matrix of these pieces times a vector, (D,)."""
        ...

    def screen(self, rng: np.random.Generator) -> Screen:
        """A necessary condition at a random place."""
        ...


def step_cost(size: int, num_colors: int, num_points: int) -> float:
    """Operations of an EM step on the model: 4 for each Hessian product, 10 for each point."""
    return size * (4.0 * num_colors + 10.0 * num_points)


def hessian_product(density: Density, u: jax.Array, direction: jax.Array) -> jax.Array:
    """The Hessian of `density` at `u` times `direction`, shape (D,)."""
    return jax.jvp(jax.grad(density), (u,), (direction,))[1]


def compressed_hessian(structure: Structure, density: Density, u: jax.Array) -> jax.Array:
    """Products of the Hessian of `density` at `u` with every color, shape (num_colors, D)."""
    colors = jnp.asarray(structure.colors)
    count = structure.num_colors

    def product(color: jax.Array) -> jax.Array:
        return hessian_product(density, u, (colors == color).astype(u.dtype))

    side_by_side = max(1, min(count, 64, 4_000_000 // max(u.size, 1)))
    return jax.lax.map(product, jnp.arange(count), batch_size=side_by_side)


def restrict(density: Density, u: jax.Array, index: np.ndarray) -> Density:
    """`density` as a function of the coordinates `index` alone, the others held at `u` (D,)."""
    if len(index) == u.size:
        return density
    return lambda part: density(u.at[index].set(part))


def tolerance(dtype: np.dtype) -> float:
    """Relative error below which two products of Hessians count as equal."""
    return float(np.finfo(dtype).eps ** 0.5) * 10
