"""The parts of the latents in which the log-joint is that of a gamma or beta law.

Its gradient in such a coordinate is linear in two natural parameters. Two points determine them,
and all coordinates move at the same time, because they are independent.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import (
    ComposeTransform,
    ExpTransform,
    IndependentTransform,
    SigmoidTransform,
    StickBreakingTransform,
)

from ppl_em.posterior import LogGamma, LogitBeta
from ppl_em.problem import LatentSite
from ppl_em.structure import Density
from ppl_em.util import Static

NAMES = {
    ExpTransform: "gamma or inverse-gamma",
    SigmoidTransform: "beta",
    StickBreakingTransform: "Dirichlet",
}
"""Supports, by the transform that leads to them, and the laws that are tried on them."""

STEEP = 1e6
"""Slope from which a shape is lost beside it."""


@dataclass(frozen=True)
class GammaPart:
    """Gamma latents, exp(u), and inverse-gamma ones, exp(-u).

    With w = sign * u the gradient in w is shape - rate exp(w).

    Attributes
    ----------
    index
        The coordinates, ascending positions in u, shape (d,).
    sign
        1 for gamma, -1 for inverse-gamma, shape (d,).
    """

    index: Static
    sign: Static
    structure: ClassVar[None] = None

    def away(self, slope: np.ndarray) -> np.ndarray:
        """To where rate exp(w) is about 1, from where it is so large that it hides the shape."""
        moves, mine = np.zeros_like(slope), slope[self.index.value] * self.sign.value
        steep = mine < -STEEP
        far = np.log(np.where(steep, -mine, 1.0))
        moves[self.index.value] = -self.sign.value * far
        return moves

    def fit(self, density: Density, u: jax.Array, gradient: jax.Array) -> LogGamma:
        """The conditional law, from gradients (D,) at `u` (D,) and one more point."""
        index, sign = self.index.value, self.sign.value
        step = jnp.where(sign * gradient[index] >= 0, 1.0, -1.0).astype(u.dtype)
        there = jax.grad(density)(u.at[index].add(sign * step))
        here, there = sign * gradient[index], sign * there[index]
        value = jnp.exp(sign * u[index])
        rate = (here - there) / (value * jnp.expm1(step))
        return LogGamma(here + rate * value, rate, self.sign)


@dataclass(frozen=True)
class BetaPart:
    """Beta latents, sigmoid(u), and Dirichlet ones, broken like sticks into beta variables.

    With w = u - shift the gradient in w is a (1 - z) - b z, where z = sigmoid(w).

    Attributes
    ----------
    index
        The coordinates, ascending positions in u, shape (d,).
    shift
        0, or what NumPyro adds to balance the sticks, shape (d,).
    """

    index: Static
    shift: Static
    structure: ClassVar[None] = None

    def away(self, slope: np.ndarray) -> np.ndarray:
        """Nowhere: slopes are no larger than a and b."""
        return np.zeros_like(slope)

    def fit(self, density: Density, u: jax.Array, gradient: jax.Array) -> LogitBeta:
        """The conditional law, from gradients (D,) at `u` (D,) and one more point."""
        index = self.index.value
        here = gradient[index]
        step = jnp.where(here >= 0, 1.0, -1.0).astype(u.dtype)
        there = jax.grad(density)(u.at[index].add(step))[index]
        w = u[index] - self.shift.value
        z, rest = jax.nn.sigmoid(w), jax.nn.sigmoid(-w)
        z_there, rest_there = jax.nn.sigmoid(w + step), jax.nn.sigmoid(-w - step)
        determinant = rest * z_there * jnp.expm1(-step)
        a = (z * there - z_there * here) / determinant
        b = (rest * there - rest_there * here) / determinant
        return LogitBeta(a, b, self.shift)


def family(site: LatentSite) -> type | None:
    """The transform in `NAMES` that leads to the support of a site, if one does."""
    if site.support is None:
        return None
    transform: Any = biject_to(site.support.value)
    while isinstance(transform, ComposeTransform | IndependentTransform):
        if isinstance(transform, IndependentTransform):
            transform = transform.base_transform
        else:
            transform = transform.parts[0]
    return type(transform) if type(transform) in NAMES else None


def stick_shift(site: LatentSite) -> np.ndarray:
    """The shift of every coordinate of a site on the unit interval or simplex, (size,)."""
    if family(site) is not StickBreakingTransform:
        return np.zeros(int(np.prod(site.shape_u)))
    remaining = np.log(np.arange(site.shape_u[-1], 0, -1))
    return np.broadcast_to(remaining, site.shape_u).ravel()
