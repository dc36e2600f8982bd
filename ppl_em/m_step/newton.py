"""Damped Newton M-step."""

from dataclasses import dataclass
from typing import ClassVar

import jax

from ppl_em.m_step.base import MStepInfo, report
from ppl_em.optimize import Curvature, Objective, no_curvature
from ppl_em.optimize.newton import newton
from ppl_em.util import check_options, number, whole


@dataclass(frozen=True)
class Newton:
    """Newton steps, the Hessian made definite and halved until Q rises.

    A Hessian costs 2 p gradients, but serves for as many steps, and as many M-steps, as it leads
    uphill fast enough.

    Attributes
    ----------
    max_steps
        Steps per M-step; 1 is generalized EM (Lange's EM gradient algorithm).
    tol
        Stop once a step promises to raise Q by less than this.

    References
    ----------
    Lange (1995), A gradient algorithm locally equivalent to the EM algorithm, JRSS B 57.

    Examples
    --------
    With the `model` of the example of `ppl_em.EM`:

    >>> from ppl_em.m_step import Newton
    >>> em = EM(model, m_step=Newton(max_steps=1))  # generalized EM
    """

    max_steps: int = 10
    tol: float = 1e-18

    def __post_init__(self) -> None:
        check_options(self, "Newton", max_steps=whole(), tol=number())

    honours: ClassVar[tuple[str, ...]] = ()

    def resolve(self, size: int, needs: tuple[str, ...] = ()) -> "Newton":
        """Works for any number of parameters."""
        return self

    def init(self, x: jax.Array) -> Curvature:
        """No Hessian yet."""
        return no_curvature(x)

    def step(
        self, objective: Objective, x: jax.Array, state: Curvature
    ) -> tuple[jax.Array, Curvature, MStepInfo]:
        """Raise the objective from `x` (p,)."""
        maximum, state = newton(objective, x, state, self.max_steps, self.tol)
        return maximum.x, state, report(maximum)
