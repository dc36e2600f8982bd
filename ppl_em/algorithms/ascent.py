"""The one driver of Newton steps on a log-likelihood: a step, halved until it gains, and the next.

What differs from climb to climb is the terrain: whose log-likelihood, what is held, how its
quadratic model is come by (a Hessian, or secants), and where a step may lead.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

MAX_HALVINGS = 12
"""How often a step is halved before it is given up."""

MAX_LENGTH = 3.0
"""Longest step from places that may be far from the maximum, in standard errors."""

MOST = 10.0
"""Largest gain that is believed, in units of what was promised, and one nat more.

Next to singular points values are made of rounding.
"""

Found = TypeVar("Found")


class Model(NamedTuple):
    """The quadratic model at a point: its step (p,), and the gain that this promises."""

    step: np.ndarray
    promised: float


class Point(NamedTuple):
    """`x` (p,), the E-step's state, log-likelihood and model there; no model if it is unusable."""

    x: jax.Array
    state: Any
    value: float
    model: Model | None


class Terrain(Protocol):
    """A log-likelihood that is climbed."""

    def at(self, x: jax.Array, state: Any) -> tuple[float, Any]:
        """Its value at `x` (p,), and the state of the E-step there."""
        ...

    def model(self, x: jax.Array, state: Any, before: Point, taken: np.ndarray) -> Model | None:
        """The model at `x` (p,), where `taken` (p,) led from `before`; None if it is unusable."""
        ...

    def move(self, here: Point, step: np.ndarray) -> jax.Array | None:
        """Where a step (p,) leads; None if it may not go there."""
        ...

    def floor(self, value: float) -> float:
        """Differences of a log-likelihood of this size that mean nothing."""
        ...


def halved(attempt: Callable[[np.ndarray], Found | None], step: np.ndarray) -> Found | None:
    """What `attempt` finds at the first of a step, its half, its quarter, ...; None if nothing."""
    for _ in range(MAX_HALVINGS):
        found = attempt(step)
        if found is not None:
            return found
        step = step / 2
    return None


def ascend(terrain: Terrain, here: Point) -> Iterator[Point]:
    """Newton steps from `here` as long as each one gains and has a model: the points reached."""
    while here.model is not None:
        most = MOST * (1 + here.model.promised)

        def attempt(step: np.ndarray, here: Point = here, most: float = most) -> tuple | None:
            x = terrain.move(here, step)
            if x is None:
                return None
            value, state = terrain.at(x, here.state)
            gain = value - here.value
            gains = -terrain.floor(here.value) <= gain <= most
            return (x, state, value, step) if gains else None

        found = halved(attempt, here.model.step)
        if found is None:
            return
        x, state, value, taken = found
        here = Point(x, state, value, terrain.model(x, state, here, taken))
        yield here
