"""The part of the latents in which the log-joint is quadratic."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ppl_em.posterior import Gaussian
from ppl_em.static import Static
from ppl_em.structure import Blocks, Density, restrict


@dataclass(frozen=True)
class GaussianPart:
    """Mean by one Newton step, covariance by the inverse Hessian, block by block.

    With g the gradient and P minus the Hessian of the log-joint at any u, the mean is u + P^-1 g
    and the covariance P^-1.

    Attributes
    ----------
    index
        The coordinates, ascending positions in u, shape (d,).
    blocks
        Their independent blocks, found and checked by `structure.find_blocks`; positions count
        these coordinates only. Cost is linear in their number and cubic in their size.
    """

    index: Static
    blocks: Blocks

    def fit(self, density: Density, u: jax.Array, gradient: jax.Array) -> Gaussian:
        """The conditional law, from the Hessian at `u` (D,) and the gradient there (D,)."""
        here = u[self.index.value]
        local = restrict(density, u, self.index.value)
        tril = jnp.linalg.cholesky(-self.blocks.hessian(local, here))
        half = _solve(tril, self.blocks.split(gradient[self.index.value])[..., None])
        shift = _solve(tril, half, trans="T")[..., 0]
        identity = jnp.broadcast_to(jnp.eye(self.blocks.block_size, dtype=u.dtype), tril.shape)
        root = jnp.swapaxes(_solve(tril, identity), -1, -2)
        return Gaussian(here + self.blocks.join(shift), tril, root, self.blocks)


def _solve(tril: jax.Array, right: jax.Array, trans: str = "N") -> jax.Array:
    """Triangular systems (G, k, k) with right-hand sides (G, k, n)."""
    return jax.vmap(lambda a, b: jax.scipy.linalg.solve_triangular(a, b, lower=True, trans=trans))(
        tril, right
    )
