"""The contract of an M-step. It sees a function of the parameters, never the E-step behind it."""

from typing import Any, NamedTuple, Protocol

import jax

from ppl_em.optimize import Maximum, Objective


class MStepInfo(NamedTuple):
    """What a reader needs: Q before and after, the gradient norm after, steps taken.

    `m_promised` is the gain in Q that one more step would promise.
    """

    q_start: jax.Array
    q_end: jax.Array
    gradient_norm: jax.Array
    m_promised: jax.Array
    m_steps: jax.Array


class MStep(Protocol):
    """A frozen, hashable configuration that improves the parameters; it never lowers Q."""

    def resolve(self, size: int) -> "MStep":
        """Return what to run for `size` parameters."""
        ...

    def init(self, x: jax.Array) -> Any:
        """The first state, for unconstrained parameters `x` (p,)."""
        ...

    def step(
        self, objective: Objective, x: jax.Array, state: Any
    ) -> tuple[jax.Array, Any, MStepInfo]:
        """Pure and traceable: parameters with no lower objective, the next state, and info."""
        ...


def report(maximum: Maximum) -> MStepInfo:
    """The info of a maximiser's result."""
    return MStepInfo(
        maximum.start_value,
        maximum.value,
        maximum.gradient_norm,
        maximum.promised,
        maximum.num_steps,
    )
