"""Which parameters of the larger of two nested models the smaller one has at a bound."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ppl_em.params import Params
from ppl_em.problem import Problem

NEAR = 0.25
"""How near a bound is tried, in units of the larger model's distance from it: a power of the
rounding unit, as log-likelihoods next to a bound lose digits."""

SAME = 0.01
"""Difference of log-likelihoods, in nats, that may be left there."""

ASSUMED = (
    "taken to be at the bound of its support under the smaller model, which could not be "
    "confirmed: pass `boundary` if it is not"
)

Look = Callable[[jax.Array], float]
"""The larger model's log-likelihood at x (p,)."""


class Model(NamedTuple):
    """A problem, and its log-likelihood where an E-step has one without noise."""

    problem: Problem
    look: Look | None


def at_bounds(
    model: Model | None, large: Any, small: Any, lost: list[str]
) -> tuple[tuple[str, ...], str]:
    """Labels at a bound, and what is to be known of that.

    Parameters
    ----------
    model
        The larger one; None where it is not at hand.
    large, small
        The fits, `EMResult`.
    lost
        Parameters that are free in the larger model only.
    """
    bounds = large.uncertainty.bounds
    if bounds is None or not lost:
        return (), ""
    places = [large.labels.index(label) for label in lost]
    estimate = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(large.params)])
    known = dict(zip(small.labels, _flat(small.params), strict=True))
    sure, open_ = [], {}
    for label, place in zip(lost, places, strict=True):
        near = [end for end in bounds[place] if np.isfinite(end)]
        if label in large.boundary:
            sure.append(label)
        elif label in known:
            far = max(abs(estimate[place] - end) for end in near) if near else 0.0
            sure += [label] if any(abs(known[label] - end) < 1e-3 * far for end in near) else []
        elif len(near) == 1:
            open_[place] = near[0]
    if not open_:
        return tuple(sure), ""
    names = [large.labels[place] for place in open_]
    if model is None or model.look is None:
        return (*sure, *names), f"{', '.join(f'`{name}`' for name in names)} {ASSUMED}"
    x = _with_bounds(model.problem, large, small, open_)
    value, noise = small.log_likelihood.value, 3 * small.log_likelihood.mcse
    left = abs(model.look(x) - value) if x is not None else np.inf
    noise += 1e3 * float(np.finfo(model.problem.start.dtype).eps) * (1 + abs(value))
    return (*sure, *(names if left < SAME + noise else [])), ""


def _flat(params: Params) -> np.ndarray:
    leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(params)]
    return np.concatenate([*leaves, np.zeros(0)])


def _with_bounds(
    problem: Problem, large: Any, small: Any, ends: dict[int, float]
) -> jax.Array | None:
    """The larger model's x (p,) with the smaller one's estimates and the rest next to bounds."""
    shared = {k: v for k, v in small.params.items() if k in large.params}
    values, unravel = ravel_pytree({**large.params, **shared})
    found = np.array(values)
    for place, end in ends.items():
        away = found[place] - end
        near = float(np.finfo(values.dtype).eps) ** NEAR
        found[place] = end + near * (away if away else 1.0)
    x = problem.unconstrain(unravel(jnp.asarray(found, values.dtype)))
    return x if bool(jnp.all(jnp.isfinite(x))) else None
