"""The part of the latents in which the log-joint is quadratic."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ppl_em.posterior import Gaussian, GaussianArrow, GaussianChain, PartPosterior
from ppl_em.structure import Arrow, Blocks, Chain, Density, Structure, compressed_hessian, restrict
from ppl_em.util import Static

LAWS: dict[type, Any] = {Blocks: Gaussian, Chain: GaussianChain, Arrow: GaussianArrow}
"""The law whose precision has a structure."""


@dataclass(frozen=True)
class GaussianPart:
    """Mean by one Newton step, covariance by the inverse Hessian.

    With g the gradient and P minus the Hessian of the log-joint at any u, the mean is u + P^-1 g
    and the covariance P^-1. A P that is not positive definite makes everything NaN.

    Attributes
    ----------
    index
        The coordinates, ascending positions in u, shape (d,).
    structure
        The zeros of P, found and checked by `structure.find_structure`; positions count these
        coordinates only.
    """

    index: Static
    structure: Structure

    def away(self, slope: np.ndarray) -> np.ndarray:
        """Nowhere: a quadratic is the same everywhere."""
        return np.zeros_like(slope)

    def fit(self, density: Density, u: jax.Array, gradient: jax.Array) -> PartPosterior:
        """The conditional law, from the Hessian at `u` (D,) and the gradient there (D,)."""
        here = u[self.index.value]
        local = restrict(density, u, self.index.value)
        precision = self.structure.unpack(-compressed_hessian(self.structure, local, here))
        law = LAWS[type(self.structure)]
        return law.around(self.structure, precision, here, gradient[self.index.value])
