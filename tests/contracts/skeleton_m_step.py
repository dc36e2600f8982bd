"""Skeleton of an M-step: one step up the gradient, halved until Q does not fall.

Copy it to `ppl_em/m_step/`, add an import line and a row of `FLAGS` in `ppl_em/m_step/__init__.py`,
and a row in the table of `tests/contracts/test_conformance.py`. Here it is used as it is.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from ppl_em.m_step import MStepInfo
from ppl_em.optimize import Objective


@dataclass(frozen=True)
class Uphill:
    """`x + size g` with g the gradient of Q; `size` is halved up to 30 times. No state."""

    size: float = 1.0
    honours: ClassVar[tuple[str, ...]] = ()

    def resolve(self, size: int, needs: tuple[str, ...] = ()) -> "Uphill":
        """The same for any number of parameters."""
        return self

    def init(self, x: jax.Array) -> tuple:
        """Nothing is carried from step to step."""
        return ()

    def step(self, objective: Objective, x: jax.Array, state: tuple) -> tuple:
        """Parameters (p,) with no lower objective, the state, and info."""
        before, gradient = jax.value_and_grad(objective)(x)

        def lower(size: jax.Array) -> jax.Array:
            return ~(objective(x + size * gradient) >= before) & (size > self.size * 2.0**-30)

        size = jax.lax.while_loop(lower, lambda s: s / 2, jnp.asarray(self.size, x.dtype))
        there = x + size * gradient
        x = jnp.where(objective(there) >= before, there, x)
        norm = jnp.linalg.norm(gradient)
        info = MStepInfo(before, objective(x), norm, 0.5 * size * norm**2, jnp.ones((), int))
        return x, state, info
