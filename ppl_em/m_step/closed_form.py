"""Some parameters in closed form, by a function of the user; the others numerically."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax

from ppl_em.m_step.base import MStepInfo, TracedMStep
from ppl_em.m_step.newton import Newton
from ppl_em.optimize import Objective


@dataclass(frozen=True)
class ClosedForm:
    """The user's maximiser of some sites first, then the others given those (ECM).

    Values that lower Q are not used, and the log says so; that step is numerical for all.

    Attributes
    ----------
    maximiser
        `maximiser(expectation, params)` returns `{site: value}`, the maximum of Q over these
        sites given the others in `params`, on the model's own scale. `expectation(g)` is
        E[g(latents) | y]; see `ppl_em.posterior.Expectation` for the g that it is exact for.
        `expectation.probs(site)` are responsibilities of a discrete site. Written in `jax.numpy`.
    rest
        The M-step for the other sites.

    References
    ----------
    Meng & Rubin (1993), Maximum likelihood estimation via the ECM algorithm, Biometrika 80.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from ppl_em.m_step import ClosedForm
    >>> m_step = ClosedForm(
    ...     lambda expectation, params: {
    ...         "sd": jnp.sqrt(expectation(lambda latents: jnp.mean(latents["z"] ** 2)))
    ...     }
    ... )
    """

    maximiser: Callable[[Any, dict[str, Any]], dict[str, Any]]
    rest: TracedMStep = field(default_factory=Newton)

    honours: ClassVar[tuple[str, ...]] = ()

    def resolve(self, size: int, needs: tuple[str, ...] = ()) -> "ClosedForm":
        """Works for any number of parameters."""
        return self

    def init(self, x: jax.Array) -> Any:
        """The state of the M-step for the others."""
        return self.rest.init(x)

    def step(
        self, objective: Objective, x: jax.Array, state: Any
    ) -> tuple[jax.Array, Any, MStepInfo]:
        """Raise the objective from `x` (p,) numerically."""
        return self.rest.step(objective, x, state)
