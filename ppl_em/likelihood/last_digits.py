"""What rounding alone does to a log-likelihood: all that is not whole moves by its last digit.

Where sums cancel, next to a variance of 0 or at a huge distance from zero, the last digit of the
data decides about nats. A maximum of such a function is one of rounding.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.e_step import DeterministicEStep, expectation
from ppl_em.problem import Problem
from ppl_em.util import moved_by

MEANINGLESS = 1e-3
"""Change of a log-likelihood, in nats, from which its digits mean nothing."""

LOST = 1.0
"""Size of its last digits, in nats, from which nothing can be told."""

UNITS = 1e3
"""The same in units of its own last digits, which is more in float32."""


def rounding_noise(
    e_step: DeterministicEStep, problem: Problem, x: jax.Array, state: Any, value: float
) -> float:
    """As of `change_by_last_digits`, where it says that the value means nothing; else 0."""
    change = change_by_last_digits(e_step, problem, x, state, value)
    return meaningless(e_step, change, value, x.dtype)


def meaningless(e_step: DeterministicEStep, change: float, value: float, dtype: Any) -> float:
    """A `change` by last digits; 0 if no more than those of `value` and the E-step's noise are."""
    eps = float(np.finfo(dtype).eps)
    digit = 8 * eps * (1 + abs(value))
    if digit > LOST:
        return digit
    own = max(MEANINGLESS, UNITS * eps * (1 + abs(value)), 10 * (e_step.noise or 0.0))
    return change if not change <= own else 0.0


def change_by_last_digits(
    e_step: DeterministicEStep, problem: Problem, x: jax.Array, state: Any, value: float
) -> float:
    """How `value`, the log-likelihood at `x` (p,), changes with the last digits of what it is of.

    Returns
    -------
    float
        In nats.

    References
    ----------
    Chaitin-Chatelin & Frayssé (1996), Lectures on Finite Precision Computations, chapter 8:
    errors found by random perturbations of the data.
    """
    eps, rng = float(np.finfo(x.dtype).eps), np.random.default_rng(0)
    leaves = tuple(_moved(leaf, rng) for leaf in problem.leaves)
    there = moved_by(x, eps * np.asarray(x) * rng.choice([-1.0, 1.0], x.shape))
    found = expectation(e_step, replace(problem, leaves=leaves), there, state)[2].objective
    return abs(float(found) - value)


def _moved(leaf: Any, rng: np.random.Generator) -> Any:
    """`leaf` with each number that is not whole moved by its last digit: counts are left alone."""
    if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    values = np.asarray(leaf)
    ends = np.where(rng.random(values.shape) < 0.5, -np.inf, np.inf).astype(values.dtype)
    whole = ~np.isfinite(values) | (values == np.round(values))
    return jnp.asarray(np.where(whole, values, np.nextafter(values, ends)), values.dtype)
