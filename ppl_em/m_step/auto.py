"""Choose the M-step by the number of parameters and what holds for them."""

from dataclasses import dataclass
from typing import ClassVar

from ppl_em.m_step.base import NEEDS, MStep
from ppl_em.m_step.lbfgs import LBFGS
from ppl_em.m_step.newton import Newton
from ppl_em.m_step.scipy import Scipy


@dataclass(frozen=True)
class Auto:
    """`Newton` for up to `max_newton` unconstrained parameters, else `LBFGS`.

    Under constraints that no bijection keeps, `Scipy`: SLSQP, or L-BFGS-B if they are bounds; for
    parameters without a gradient COBYLA if there are constraints on functions, else Nelder-Mead.

    Examples
    --------
    >>> from ppl_em.m_step import Auto
    >>> Auto().resolve(3)
    Newton(max_steps=10, tol=1e-18)
    >>> Auto().resolve(1000)
    LBFGS(max_steps=500, tol=1e-13, memory=10)
    """

    honours: ClassVar[tuple[str, ...]] = tuple(NEEDS)

    max_newton: int = 100

    def resolve(self, size: int, needs: tuple[str, ...] = ()) -> MStep:
        """Return the M-step for `size` parameters."""
        if "rough" in needs:
            return Scipy("COBYLA" if "conditions" in needs else "Nelder-Mead")
        if needs:
            return Scipy("SLSQP" if "conditions" in needs else "L-BFGS-B")
        return Newton() if size <= self.max_newton else LBFGS()
