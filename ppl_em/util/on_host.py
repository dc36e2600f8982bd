"""Arithmetic with vectors on the host: outside of compiled code each operation is a program."""

from typing import Any

import jax
import numpy as np


def moved_by(x: Any, step: Any, place: Any = ...) -> jax.Array:
    """`x` (p,) plus a step, at all places or at some."""
    values = np.array(x)
    values[place] += step
    return jax.device_put(values)


def put(x: Any, value: Any, place: Any) -> jax.Array:
    """`x` (p,) with another value at a place, or at some."""
    values = np.array(x)
    values[place] = value
    return jax.device_put(values)


def zeros(shape: tuple[int, ...], dtype: Any = None) -> jax.Array:
    """As of `jnp.zeros`."""
    return jax.device_put(np.zeros(shape, jax.dtypes.canonicalize_dtype(dtype or float)))
