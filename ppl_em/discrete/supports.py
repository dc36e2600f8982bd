"""What a distribution's wrappers hide: its values, its mask, whether it has only one value."""

import math
from typing import Any

import jax
import numpy as np
from numpyro.distributions import (
    Delta,
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
)

MAX_VALUES = 1024
"""Values of a vector of discrete elements, `Bernoulli(p).to_event(1)` say, that are summed."""


def is_delta(fn: Any) -> bool:
    """Whether a distribution is a point mass: a deterministic value by another name."""
    while isinstance(fn, ExpandedDistribution | MaskedDistribution | Independent):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def mask_of(fn: Distribution) -> Any:
    """Which cells of a distribution count: a bool, or an array for its batch axes.

    A cell of an event counts if any of its elements does.
    """
    if isinstance(fn, MaskedDistribution):
        own, inner = fn._mask, mask_of(fn.base_dist)
        if own is True or inner is False:
            return inner
        return own if inner is True or own is False else own & inner
    if isinstance(fn, ExpandedDistribution):
        return mask_of(fn.base_dist)
    if isinstance(fn, Independent):
        mask = mask_of(fn.base_dist)
        if isinstance(mask, bool):
            return mask
        axes = tuple(range(-min(fn.reinterpreted_batch_ndims, mask.ndim), 0))
        return mask.any(axes)
    return True


def num_values(fn: Distribution) -> float:
    """How many values a discrete distribution has, infinity if they are not known."""
    if not _base(fn).has_enumerate_support:
        return math.inf
    return len(_values(_base(fn))) ** _elements(fn)


def support_of(fn: Distribution) -> np.ndarray | jax.Array:
    """All values of a discrete distribution, (K, *event_shape); of vectors every combination."""
    values = _values(_base(fn))
    count = _elements(fn)
    if count == 1 and not values.ndim > 1:
        return values.reshape(len(values), *fn.event_shape)
    if values.ndim > 1 and count == 1:
        return values
    places = np.indices((len(values),) * count).reshape(count, -1).T
    return values[places].reshape(len(places), *fn.event_shape)


def _base(fn: Distribution) -> Distribution:
    while isinstance(fn, ExpandedDistribution | MaskedDistribution | Independent):
        fn = fn.base_dist
    return fn


def _values(base: Distribution) -> Any:
    values = base.enumerate_support(expand=False)
    return values.reshape(len(values), *base.event_shape)


def _elements(fn: Distribution) -> int:
    """How many copies of its innermost distribution one event of a distribution holds."""
    return math.prod(fn.event_shape) // max(math.prod(_base(fn).event_shape), 1)
