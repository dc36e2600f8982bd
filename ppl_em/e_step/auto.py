"""Choose the E-step: exact where that can be proved, else NUTS."""

import logging
from dataclasses import dataclass
from typing import ClassVar

import jax

from ppl_em.e_step.base import Choice, EStep, Strength
from ppl_em.e_step.exact.exact import Exact
from ppl_em.e_step.exact.not_exact import NotExactError
from ppl_em.e_step.nuts import NUTS
from ppl_em.params import Params
from ppl_em.problem import Problem

logger = logging.getLogger("ppl_em")


@dataclass(frozen=True)
class Auto(Choice):
    """`Exact` if the model is found to be exact, else `NUTS`; never an approximation with bias.

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
        """Try `Exact` and fall back to `NUTS`; the log says which, and why."""
        try:
            chosen = Exact().resolve(rng_key, problem, params)
        except NotExactError as reason:
            logger.info("e_step='auto' chose 'nuts': %s", reason)
            return NUTS().resolve(rng_key, problem, params)
        logger.info("e_step='auto' chose 'exact' (%s)", type(chosen).__name__)
        return chosen
