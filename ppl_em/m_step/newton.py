"""Damped Newton M-step."""

from dataclasses import dataclass

import jax

from ppl_em import optimize
from ppl_em.m_step.base import MStepInfo, report
from ppl_em.optimize import Objective


@dataclass(frozen=True)
class Newton:
    """Newton steps, the Hessian made definite and halved until Q rises.

    For up to about 30 parameters: each step costs 2 p gradients.

    Attributes
    ----------
    max_steps
        Steps per M-step; 1 is generalized EM (Lange's EM gradient algorithm).
    tol
        Stop once a step promises to raise Q by less than this.

    References
    ----------
    Lange (1995), A gradient algorithm locally equivalent to the EM algorithm, JRSS B 57.
    """

    max_steps: int = 10
    tol: float = 1e-13

    def resolve(self, size: int) -> "Newton":
        """Works for any number of parameters."""
        return self

    def init(self, x: jax.Array) -> tuple:
        """No state."""
        return ()

    def step(
        self, objective: Objective, x: jax.Array, state: tuple
    ) -> tuple[jax.Array, tuple, MStepInfo]:
        """Raise the objective from `x` (p,)."""
        maximum = optimize.newton(objective, x, self.max_steps, self.tol)
        return maximum.x, state, report(maximum)
