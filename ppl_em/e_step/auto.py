"""Choose the E-step: exact where that is proved, else quadrature where it is cheap, else NUTS."""

import logging
from dataclasses import dataclass
from typing import ClassVar

import jax

from ppl_em.e_step.base import Choice, EStep, Strength
from ppl_em.e_step.exact.exact import Exact
from ppl_em.e_step.exact.not_exact import NotExactError
from ppl_em.e_step.nuts import NUTS
from ppl_em.e_step.quadrature import Quadrature
from ppl_em.params import Params
from ppl_em.problem import Problem
from ppl_em.util import ModelError

logger = logging.getLogger("ppl_em")


@dataclass(frozen=True)
class Auto(Choice):
    """The first that applies of `Exact`, `Quadrature` and `NUTS`: never one with a bias.

    Quadrature applies where latents are in independent blocks of at most three.

    Examples
    --------
    As in the example of `ppl_em.EM`, with its `model` and data:

    >>> from ppl_em.e_step import Auto
    >>> fit = EM(model, e_step=Auto()).run(jax.random.key(0), y, progress_bar=False)
    >>> fit.e_step
    'exact'
    """

    flag: ClassVar[str] = "auto"
    strength: ClassVar[Strength] = Strength.EXACT
    kind: ClassVar[str] = "exact"

    def resolve(self, rng_key: jax.Array, problem: Problem, params: Params) -> EStep:
        """The E-step to run; the log says which, and why."""
        return self.choose(rng_key, problem, params)[0]

    def choose(self, rng_key: jax.Array, problem: Problem, params: Params) -> tuple[EStep, str]:
        """Try each in turn; what the stronger ones say against themselves is the reason."""
        reasons: list[str] = []
        for stronger in (Exact(), Quadrature()):
            try:
                found = stronger.resolve(rng_key, problem, params)
            except NotExactError as reason:
                reasons.append(f"not exact: {_fact(reason)}")
            except ModelError as reason:
                if stronger.flag == Exact.flag:
                    raise
                reasons.append(f"no quadrature: {_fact(reason)}")
            else:
                return found, self._said(stronger.flag, reasons)
        return NUTS().resolve(rng_key, problem, params), self._said(NUTS.flag, reasons)

    @staticmethod
    def _said(flag: str, reasons: list[str]) -> str:
        text = f"e_step='auto' chose '{flag}'" + (f" ({'; '.join(reasons)})" if reasons else "")
        logger.info("%s", text)
        return text


def _fact(reason: ModelError) -> str:
    """What an error says, without its remedy."""
    return str(reason).split(" Use e_step=")[0].rstrip(".")
