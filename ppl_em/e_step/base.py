"""The contract of an E-step. A new one is a new file, an import line and a row in the tests."""

from typing import Any, ClassVar, NamedTuple, Protocol

import jax

from ppl_em.params import Params
from ppl_em.posterior import Posterior
from ppl_em.problem import Problem


class EStep(Protocol):
    """A frozen, hashable configuration that turns parameters into a posterior.

    *State* is what the next step needs (chain positions, guide parameters, random key). *Info* is
    a `NamedTuple` of scalars for the reader; it goes to the history under its field names.

    Attributes
    ----------
    stochastic
        Whether Q is a Monte Carlo estimate. If False, info has a field `objective`: the
        log-likelihood or bound at the parameters, which EM never lowers.
    kind
        What that objective is, one of `likelihood.KINDS`.
    """

    stochastic: ClassVar[bool]
    kind: ClassVar[str]

    def resolve(self, rng_key: jax.Array, problem: Problem, params: Params) -> "EStep":
        """Check on the host, once, that the method applies; return what to run.

        Raises
        ------
        ModelError
            If it does not apply: why, and which flags would do.
        """
        ...

    def init(self, rng_key: jax.Array, problem: Problem, params: Params) -> Any:
        """The first state."""
        ...

    def step(self, problem: Problem, params: Params, state: Any) -> tuple[Posterior, Any, Any]:
        """Pure and traceable: the posterior at `params`, the next state, and info."""
        ...

    def describe(self, info: Any) -> str:
        """A few words for the progress bar."""
        ...


@jax.jit(static_argnums=0)
def expectation(e_step: EStep, problem: Problem, x: jax.Array, state: Any) -> tuple:
    """E-step: posterior, state and info at `x`; compiled once per problem and configuration."""
    return e_step.step(problem, problem.constrain(x), state)


class DeterministicEStep(EStep, Protocol):
    """An E-step whose objective is a function of the parameters alone, without noise."""

    def log_likelihood(self, problem: Problem, params: Params, state: Any) -> jax.Array:
        """The objective as a function of the parameters, differentiable; a scalar."""
        ...


class Approximation(DeterministicEStep, Protocol):
    """One whose objective may fall in an EM step, because Q is not a lower bound of it.

    Steps that lower it are halved. Its second derivatives are differences of first ones.

    Attributes
    ----------
    noise
        Size of changes of the objective that mean nothing.
    """

    noise: float

    def refined(self, problem: Problem, params: Params, state: Any) -> "Approximation | None":
        """A better one, if this one is too coarse at `params`; None if it is not."""
        ...

    def for_curvature(self) -> "Approximation":
        """The one of which second derivatives are taken; cheaper, perhaps, but about as good."""
        ...


def noise_of(e_step: EStep) -> float | None:
    """The noise of an `Approximation`; None for other E-steps."""
    return getattr(e_step, "noise", None)


class StochasticEStep(EStep, Protocol):
    """An E-step by draws."""

    @property
    def num_samples(self) -> int:
        """Draws that each chain makes in a step."""
        ...

    def fresh(self, state: Any) -> tuple["StochasticEStep", Any]:
        """A sampler of equally weighted draws at one value of the parameters, tuning held."""
        ...

    def resume(self, state: Any) -> Any:
        """The state of this E-step from that of its fresh sampler, when the parameters move on."""
        ...

    def calm(self, state: Any) -> Any:
        """The state of a fresh sampler, tuned to take smaller steps: for divergences."""
        ...


class ExactInfo(NamedTuple):
    """What an exact E-step reports: `objective`, the log-likelihood."""

    objective: jax.Array
