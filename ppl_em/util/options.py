"""What the options of configuration objects may be, declared, and one check for all of them."""

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from ppl_em.util.errors import ModelError, brief_repr


class Allowed(NamedTuple):
    """Which values an option takes, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def check_options(of: Any, name: str = "", /, **options: Allowed) -> None:
    """Raise for the first of `options`, attributes of the object `of`, that is not as allowed.

    Parameters
    ----------
    of
        A configuration object.
    name
        What the object is called in messages, `NUTS` say; empty for a front door.
    **options
        What each of its attributes may be.

    Raises
    ------
    ModelError
        Naming the option, what was given and what is allowed.

    Examples
    --------
    >>> from ppl_em.e_step import NUTS
    >>> NUTS(num_chains=0)
    Traceback (most recent call last):
    ppl_em.util.errors.ModelError: Option `NUTS(num_chains=...)`: found 0. Pass a whole number, ...
    """
    for option, allowed in options.items():
        where = f"{name}({option}=...)" if name else option
        check_option(where, getattr(of, option), allowed)


def check_option(option: str, value: Any, allowed: Allowed) -> None:
    """Raise if the `value` of an option is not as allowed."""
    if not allowed.holds(value):
        raise ModelError(f"Option `{option}`: found {brief_repr(value)}. Pass {allowed.words}.")


def whole(low: int = 1, high: int | None = None) -> Allowed:
    """A whole number between two others, which are allowed; no boolean."""

    def holds(value: Any) -> bool:
        fits = isinstance(value, Integral) and not isinstance(value, bool)
        return fits and low <= value and (high is None or value <= high)

    end = "or more" if high is None else f"to {high}"
    return Allowed(f"a whole number, {low} {end}", holds)


def number(low: float = 0.0, below: float = math.inf, *, above: bool = False) -> Allowed:
    """A finite number from `low`, or above it, to below another; no boolean."""

    def holds(value: Any) -> bool:
        fits = isinstance(value, Real) and not isinstance(value, bool)
        return fits and (low < value if above else low <= value) and value < below

    start = f"above {low:g}" if above else f"{low:g} or more"
    end = "" if below == math.inf else f" and below {below:g}"
    return Allowed(f"a finite number, {start}{end}", holds)


def numbers() -> Allowed:
    """A real number or an array of such, none of them NaN."""

    def holds(value: Any) -> bool:
        try:
            array = np.asarray(value)
            return array.dtype.kind in "fiu" and not bool(np.any(np.isnan(array)))
        except (TypeError, ValueError):
            return False

    return Allowed("a number or an array of numbers, none of them NaN", holds)


def switch() -> Allowed:
    """True or False."""
    return Allowed("True or False", lambda value: isinstance(value, bool))


def optional(allowed: Allowed) -> Allowed:
    """As `allowed`, or None."""
    return Allowed(f"{allowed.words}, or None", lambda v: v is None or allowed.holds(v))


def instance(kind: Any, words: str) -> Allowed:
    """An object of a class."""
    return Allowed(words, lambda value: isinstance(value, kind))


def mapping(words: str) -> Allowed:
    """A dictionary whose keys are texts."""
    return Allowed(words, lambda v: isinstance(v, Mapping) and all(isinstance(k, str) for k in v))


def optimizer() -> Allowed:
    """An object of NumPyro or optax that starts and updates."""
    return Allowed(
        "an optimizer, `optax.adam(0.01)` say",
        lambda value: not isinstance(value, type) and _has(value, "init") and _has(value, "update"),
    )


def _has(value: Any, name: str) -> bool:
    return callable(getattr(value, name, None))
