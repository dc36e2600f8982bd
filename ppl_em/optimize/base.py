"""What a maximiser takes, and what it returns."""

from collections.abc import Callable
from typing import NamedTuple

import jax

Objective = Callable[[jax.Array], jax.Array]
"""Unconstrained vector (p,) to the scalar to maximise."""


class Maximum(NamedTuple):
    """Where a maximiser stopped.

    `value` is the objective at `x`, `start_value` that at the starting point, `gradient_norm`
    the Euclidean norm of the gradient at `x`, `promised` the gain that the next step would
    promise there, `num_steps` the accepted and refused steps.
    """

    x: jax.Array
    value: jax.Array
    start_value: jax.Array
    gradient_norm: jax.Array
    promised: jax.Array
    num_steps: jax.Array
