"""Quasi-Newton M-step."""

from dataclasses import dataclass
from typing import ClassVar

import jax

from ppl_em.m_step.base import MStepInfo, report
from ppl_em.optimize import Objective
from ppl_em.optimize.lbfgs import lbfgs
from ppl_em.util import check_options, number, whole


@dataclass(frozen=True)
class LBFGS:
    """L-BFGS with a zoom line search (optax), for any number of parameters.

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
        maximum = lbfgs(objective, x, self.max_steps, self.tol, self.memory)
        return maximum.x, state, report(maximum)
