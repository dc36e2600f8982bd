"""The `"exact"` flag: prove that the posterior has a closed form, and pick the engine for it."""

import logging
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import numpy as np

from ppl_em.e_step.base import Choice, EStep, Strength
from ppl_em.e_step.exact.continuous import Continuous
from ppl_em.e_step.exact.enumeration import Enumeration
from ppl_em.e_step.exact.find_mixture import find_layout
from ppl_em.e_step.exact.find_parts import find_parts
from ppl_em.e_step.exact.mixture import Conditional
from ppl_em.e_step.exact.not_exact import ImproperError, NotExactError
from ppl_em.params import Params
from ppl_em.problem import Problem
from ppl_em.structure import in_own_units
from ppl_em.util import check_choice, check_options, moved_by, optional, whole, zeros

logger = logging.getLogger("ppl_em")

TAME = 0.1
"""How far from 0 unconstrained parameters are where a proof is tried again."""


@dataclass(frozen=True)
class Exact(Choice):
    """Exact posterior: discrete latents, Gaussian and conjugate ones, Gaussian given discrete ones.

    Attributes
    ----------
    max_dense
        Largest block of jointly Gaussian latents, in coordinates; its cost is cubic.
    max_states
        Largest number of joint states of the discrete latents in an independent block, where
        continuous latents stand beside them.
    min_rows
        Rows of an observed site from which its data are condensed to sufficient statistics where
        that is proved to be the same; None for never.
    chain
        How sums along a `scan` are done: `"sequential"`, `"parallel"`, or None for the faster one
        on this device.

    Examples
    --------
    As in the example of `ppl_em.EM`, with its `model` and data:

    >>> from ppl_em.e_step import Exact
    >>> fit = EM(model, e_step=Exact()).run(jax.random.key(0), y, progress_bar=False)
    >>> print(fit.log_likelihood)
    -8.319266 (exact)
    """

    max_dense: int = 2000
    max_states: int = 64
    min_rows: int | None = 500
    chain: str | None = None
    flag: ClassVar[str] = "exact"
    strength: ClassVar[Strength] = Strength.EXACT
    kind: ClassVar[str] = "exact"

    def __post_init__(self) -> None:
        if self.chain is not None:
            check_choice("chain", self.chain, ("sequential", "parallel"))
        check_options(
            self, "Exact", max_dense=whole(), max_states=whole(), min_rows=optional(whole())
        )

    def resolve(self, rng_key: jax.Array, problem: Problem, params: Params) -> EStep:
        """Return `Enumeration`, `Continuous` or `Conditional`.

        Raises
        ------
        NotExactError
            If none is proved: the site, the reason, and the flags that would do.
        """
        spec = problem.spec
        if not spec.latents:
            return Enumeration(self.min_rows, self.chain)
        found = self._proved(rng_key, problem, problem.unconstrain(params))
        # Proofs go by gradients; what refuses without them knows better why.
        problem.require_gradient(self.flag, NotExactError)
        return found

    def _proved(self, rng_key: jax.Array, problem: Problem, x: jax.Array) -> EStep:
        """The engine around `x` (p,), or else near there or near 0 in the parameters' units."""
        try:
            return self._found(rng_key, problem, x)
        except ImproperError:
            raise
        except NotExactError as reason:
            # Where rates are exp(43), say, rounding hides any law.
            measured = in_own_units(problem, x)
            try:
                if measured is None:
                    raise reason
                found = self._found(rng_key, measured, x)
            except NotExactError:
                found = self._tame(rng_key, measured or problem, reason)
            logger.info("not proved around the initial parameters, but nearer: %s", reason)
            return found

    def _tame(self, rng_key: jax.Array, problem: Problem, reason: NotExactError) -> EStep:
        """The engine that is proved near 0; or `reason` is raised.

        With latents from there, too: far from it, data may have no influence on any law.
        """
        u = problem.start
        x = problem.nearby(rng_key, zeros((problem.space.size,), u.dtype), TAME)
        noise = jax.random.normal(rng_key, u.shape, u.dtype)
        near = replace(problem, start=moved_by(zeros(u.shape, u.dtype), TAME * np.asarray(noise)))
        try:
            found = self._found(rng_key, problem, x)
            self._found(rng_key, near, x)
        except NotExactError:
            raise reason from None
        return found

    def _found(self, rng_key: jax.Array, problem: Problem, x: jax.Array) -> EStep:
        """The engine that is proved around the unconstrained parameters `x` (p,)."""
        if problem.spec.discrete:
            layout = find_layout(rng_key, problem, x, self.max_states, self.max_dense)
            return Conditional(layout)
        return Continuous(find_parts(rng_key, problem, x, self.max_dense), self.min_rows)
