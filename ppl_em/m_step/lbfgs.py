"""Quasi-Newton M-step."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from ppl_em.m_step.base import MStepInfo, report
from ppl_em.optimize import Objective, units
from ppl_em.optimize.differences import hessian
from ppl_em.optimize.lbfgs import lbfgs
from ppl_em.util import check_real, check_whole

MAX_MEASURED = 300
"""Parameters up to which their units are asked for."""


@dataclass(frozen=True)
class LBFGS:
    """L-BFGS with a zoom line search (optax), for any number of parameters.

    Up to 300 are first measured by the curvature of Q along each, which costs two gradients: they
    may have units. With more, units should not be many orders of magnitude apart.

    Attributes
    ----------
    max_steps
        Line searches per M-step; 1 is generalized EM.
    tol
        Stop once a step promises to raise Q by less than this.
    memory
        Stored curvature pairs.

    Examples
    --------
    With the `model` of the example of `ppl_em.EM`:

    >>> from ppl_em.m_step import LBFGS
    >>> em = EM(model, m_step=LBFGS(max_steps=1))  # generalized EM
    """

    max_steps: int = 500
    tol: float = 1e-13
    memory: int = 10

    honours: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_whole(self, ("max_steps", "memory"))
        check_real(self, ("tol",), least=0)

    def resolve(self, size: int, needs: tuple[str, ...] = ()) -> "LBFGS":
        """Works for any number of parameters."""
        return self

    def init(self, x: jax.Array) -> jax.Array:
        """Units (p,), 0 if not known; no curvature pairs, as those of another Q would mislead."""
        return jnp.zeros_like(x) if x.size <= MAX_MEASURED else jnp.ones_like(x)

    def step(
        self, objective: Objective, x: jax.Array, state: jax.Array
    ) -> tuple[jax.Array, jax.Array, MStepInfo]:
        """Raise the objective from `x` (p,)."""
        unit = state
        if x.size <= MAX_MEASURED:
            unit = jax.lax.cond(
                jnp.all(state > 0),
                lambda: state,
                lambda: units(jnp.diagonal(hessian(jax.grad(objective), x)[0])),
            )
        maximum = lbfgs(
            lambda z: objective(z * unit), x / unit, self.max_steps, self.tol, self.memory
        )
        return maximum.x * unit, unit, report(maximum)
