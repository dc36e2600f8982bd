"""Quasi-Newton M-step."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from ppl_em.m_step.base import MStepInfo, report
from ppl_em.optimize import Objective
from ppl_em.optimize.lbfgs import lbfgs
from ppl_em.util import check_options, number, whole

MANY = 100
"""Parameters above which their scales cost more second derivatives than they save steps."""


@dataclass(frozen=True)
class LBFGS:
    """L-BFGS with a zoom line search (optax), for any number of parameters.

    Up to 100 of them, each is taken in units of its own curvature: neither answer nor
    way depends on the units of the data, and the gradient that is reported is in these units.

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

    def __post_init__(self) -> None:
        check_options(self, "LBFGS", max_steps=whole(), tol=number(), memory=whole())

    honours: ClassVar[tuple[str, ...]] = ()

    def resolve(self, size: int, needs: tuple[str, ...] = ()) -> "LBFGS":
        """Works for any number of parameters."""
        return self

    def init(self, x: jax.Array) -> tuple:
        """No state: curvature pairs of another Q would mislead."""
        return ()

    def step(
        self, objective: Objective, x: jax.Array, state: tuple
    ) -> tuple[jax.Array, tuple, MStepInfo]:
        """Raise the objective from `x` (p,)."""
        unit = _units(objective, x) if x.size <= MANY else jnp.ones_like(x)
        maximum = lbfgs(
            lambda z: objective(x + unit * z),
            jnp.zeros_like(x),
            self.max_steps,
            self.tol,
            self.memory,
        )
        return x + unit * maximum.x, state, report(maximum)


def _units(objective: Objective, x: jax.Array) -> jax.Array:
    """The length along each coordinate, (p,), in which the objective curves by one; 1 if flat."""

    def curvature(direction: jax.Array) -> jax.Array:
        return direction @ jax.jvp(jax.grad(objective), (x,), (direction,))[1]

    size = jnp.abs(jax.lax.map(curvature, jnp.eye(x.size, dtype=x.dtype), batch_size=32))
    known = jnp.isfinite(size) & (size > 0)
    return jnp.where(known, jnp.where(known, size, 1.0) ** -0.5, 1.0)
