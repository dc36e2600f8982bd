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

    Quadrature applies where latents are in independent blocks of at most three, and along chains of
    one latent in each step.

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
        found, why = _first(rng_key, problem, params)
        text = f"e_step='auto' chose '{found.flag}'" + (f" ({why})" if why else "")
        logger.info("%s", text)
        return found, text


def _first(rng_key: jax.Array, problem: Problem, params: Params) -> tuple[EStep, str]:
    """The first that applies, and why those before it do not."""
    try:
        return Exact().resolve(rng_key, problem, params), ""
    except NotExactError as reason:
        why = f"not exact: {_fact(reason)}"
    try:
        found = Quadrature().resolve(rng_key, problem, params)
        found.init(rng_key, problem, params)
        return found, why
    except ModelError as reason:
        why += f"; no quadrature: {_fact(reason)}"
    return NUTS().resolve(rng_key, problem, params), why


def _fact(reason: ModelError) -> str:
    """What an error says, without its remedy."""
    return str(reason).split(" Use e_step=")[0].rstrip(".")
