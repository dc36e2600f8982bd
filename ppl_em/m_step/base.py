"""The contract of an M-step. It sees a function of the parameters, never the E-step behind it."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from ppl_em.optimize import Conditions, Maximum, Objective

NEEDS = {
    "bounds": "bounds on single parameters",
    "conditions": "constraints on functions of the parameters",
    "rough": "parameters without a gradient",
}
"""What a problem may ask of an M-step."""


class MStepInfo(NamedTuple):
    """What a reader needs: Q before and after, the gradient norm after, steps taken.

    `m_promised` is the gain in Q that one more step would promise.
    """

    q_start: jax.Array
    q_end: jax.Array
    gradient_norm: jax.Array
    m_promised: jax.Array
    m_steps: jax.Array


class Region(NamedTuple):
    """Where x (p,) may go: bounds, each (p,), and conditions; None for none."""

    bounds: tuple[np.ndarray, np.ndarray] | None
    conditions: Conditions | None


class MStep(Protocol):
    """A frozen, hashable configuration that improves the parameters; it never lowers Q."""

    @property
    def honours(self) -> tuple[str, ...]:
        """The `NEEDS` that it can meet."""
        ...

    def resolve(self, size: int, needs: tuple[str, ...] = ()) -> "MStep":
        """Return what to run for `size` parameters and `NEEDS`."""
        ...

    def init(self, x: jax.Array) -> Any:
        """The first state, for unconstrained parameters `x` (p,)."""
        ...


class TracedMStep(MStep, Protocol):
    """An M-step that is compiled together with the function it climbs."""

    def step(
        self, objective: Objective, x: jax.Array, state: Any
    ) -> tuple[jax.Array, Any, MStepInfo]:
        """Pure and traceable: parameters with no lower objective, the next state, and info."""
        ...


@runtime_checkable
class HostMStep(MStep, Protocol):
    """An M-step that runs on the host and calls compiled functions.

    `with_gradient` says whether the function it searches returns a value and gradient (p,), or a
    value alone, in which case no gradient is ever traced.
    """

    @property
    def with_gradient(self) -> bool:
        """Whether gradients are used."""
        ...

    def search(
        self, function: Callable[[np.ndarray], Any], x: np.ndarray, state: Any, limits: Region
    ) -> tuple[np.ndarray, Any, MStepInfo]:
        """As `TracedMStep.step`, within limits."""
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
