"""Choose the M-step by the number of parameters."""

from dataclasses import dataclass

from ppl_em.m_step.base import MStep
from ppl_em.m_step.lbfgs import LBFGS
from ppl_em.m_step.newton import Newton


@dataclass(frozen=True)
class Auto:
    """`Newton` for up to `max_newton` unconstrained parameters, else `LBFGS`."""

    max_newton: int = 100

    def resolve(self, size: int) -> MStep:
        """Return `Newton` or `LBFGS` for `size` parameters."""
        return Newton() if size <= self.max_newton else LBFGS()
