"""Which continuous latents are independent given data and parameters: proposed, then checked."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.problem import Problem
from ppl_em.static import Static

Density = Callable[[jax.Array], jax.Array]
"""A log-density of the unconstrained latents, (D,) to a scalar."""


@dataclass(frozen=True)
class Blocks:
    """A partition of the D latent coordinates into G independent blocks of d coordinates.

    `index.value` has shape (G, d) and holds positions in `u`. One block is the dense case.
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

    def split(self, u: jax.Array) -> jax.Array:
        """(..., D) to (..., G, d)."""
        return u[..., self.index.value]

    def join(self, blocks: jax.Array) -> jax.Array:
        """(..., G, d) to (..., D); the inverse of `split`."""
        inverse = np.argsort(self.index.value.ravel())
        return blocks.reshape((*blocks.shape[:-2], -1))[..., inverse]

    def hessian(self, density: Density, u: jax.Array) -> jax.Array:
        """Blocks of the Hessian of `density` at `u`, shape (G, d, d), from d products."""
        size = self.block_size
        index = jnp.asarray(self.index.value)

        def column(k: jax.Array) -> jax.Array:
            direction = jnp.zeros_like(u).at[index[:, k]].set(1.0)
            return self.split(hessian_product(density, u, direction))

        columns = jax.lax.map(column, jnp.arange(size), batch_size=min(size, 64))
        return jnp.moveaxis(columns, 0, -1)


def hessian_product(density: Density, u: jax.Array, direction: jax.Array) -> jax.Array:
    """The Hessian of `density` at `u` times `direction`, shape (D,)."""
    return jax.jvp(jax.grad(density), (u,), (direction,))[1]


def dense(problem: Problem) -> Blocks:
    """All latents in one block."""
    return Blocks(Static(np.arange(problem.num_latents)[None]))


def restrict(density: Density, u: jax.Array, index: np.ndarray) -> Density:
    """`density` as a function of the coordinates `index` alone, the others held at `u` (D,)."""
    if len(index) == u.size:
        return density
    return lambda part: density(u.at[index].set(part))


def find_blocks(
    problem: Problem,
    x: jax.Array,
    u: jax.Array,
    rng_key: jax.Array,
    names: tuple[str, ...] | None = None,
) -> Blocks:
    """Find the finest partition into blocks that the numerical check confirms.

    Candidates come from the plates that all latent sites share, then from a leading axis of
    equal length. The check compares Hessian products with random directions against the blocks
    at several points, which also sees coupling through indices, factors and masks.

    Parameters
    ----------
    problem, x
        The problem and its unconstrained parameters, shape (p,).
    u
        A point of finite log-joint, shape (D,).
    rng_key
        Draws the probe points and directions.
    names
        The latent sites to divide, all by default; the others are held at `u`. Positions then
        count the coordinates of these sites only.
    """
    index = coordinates(problem, names)
    for candidate in _candidates(problem, names):
        error = _relative_error(candidate, Static(index), problem, x, u, rng_key)
        if bool(error < tolerance(u.dtype)):
            return candidate
    return Blocks(Static(np.arange(len(index))[None]))


def coordinates(problem: Problem, names: tuple[str, ...] | None = None) -> np.ndarray:
    """Ascending positions in `u` of the latent sites `names`, all by default."""
    every = np.arange(problem.num_latents)
    return every if names is None else every[np.isin(owners(problem), names)]


def owners(problem: Problem) -> np.ndarray:
    """The site that each coordinate of `u` belongs to, shape (D,)."""
    sites = problem.spec.latents
    sizes = [int(np.prod(site.shape_u)) for site in sites]
    return np.repeat(np.array([site.name for site in sites], object), sizes)


def tolerance(dtype: np.dtype) -> float:
    """Relative error below which two products of Hessians count as equal."""
    return float(np.finfo(dtype).eps ** 0.5) * 10


def _candidates(problem: Problem, names: tuple[str, ...] | None) -> Iterator[Blocks]:
    index = coordinates(problem, names)
    sites = [s for s in problem.spec.latents if names is None or s.name in names]
    if not sites or len(index) < 2:
        return
    local = np.zeros(problem.num_latents, int)
    local[index] = np.arange(len(index))
    positions = problem.unravel(jnp.asarray(local))
    shared = set.intersection(*({name for name, _ in site.plates} for site in sites))
    seen = []
    if shared:
        columns = []
        for site in sites:
            axes = [
                len(site.shape_u) + axis for name, axis in sorted(site.plates) if name in shared
            ]
            moved = np.moveaxis(np.asarray(positions[site.name]), axes, range(len(axes)))
            groups = int(np.prod(moved.shape[: len(axes)]))
            columns.append(moved.reshape(groups, -1))
        if len({len(c) for c in columns}) == 1:
            seen.append(np.concatenate(columns, axis=1))
    if all(site.shape_u for site in sites) and len({s.shape_u[0] for s in sites}) == 1:
        length = sites[0].shape_u[0]
        arrays = [np.asarray(positions[site.name]).reshape(length, -1) for site in sites]
        seen.append(np.concatenate(arrays, axis=1))
    for index in sorted(seen, key=lambda array: array.shape[1]):
        if index.shape[0] > 1:
            yield Blocks(Static(index))


@jax.jit(static_argnums=(0, 1))
def _relative_error(
    blocks: Blocks,
    index: Static,
    problem: Problem,
    x: jax.Array,
    u: jax.Array,
    rng_key: jax.Array,
) -> jax.Array:
    params = problem.constrain(x)
    density = restrict(lambda u: problem.log_joint_unconstrained(params, u), u, index.value)
    start = u[index.value]

    def error(key: jax.Array) -> jax.Array:
        key_point, key_direction = jax.random.split(key)
        point = start + 0.3 * jax.random.normal(key_point, start.shape, u.dtype)
        direction = jax.random.normal(key_direction, start.shape, u.dtype)
        full = hessian_product(density, point, direction)
        within = jnp.einsum("gij,gj->gi", blocks.hessian(density, point), blocks.split(direction))
        gap = jnp.linalg.norm(full - blocks.join(within))
        return jnp.where(jnp.isfinite(gap), gap / (1e-30 + jnp.linalg.norm(full)), jnp.inf)

    return jnp.max(jax.lax.map(error, jax.random.split(rng_key, 3)))
