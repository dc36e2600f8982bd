"""Declared checks of options: which numbers a configuration object takes."""

import math
import numbers
from collections.abc import Iterable
from typing import Any

from ppl_em.util.errors import ModelError


def check_whole(
    owner: Any, names: Iterable[str], least: int = 1, most: int | None = None, none: bool = False
) -> None:
    """Raise unless each named option of `owner` is a whole number in the range (or None)."""
    allowed = (
        f"a whole number of at least {least}"
        if most is None
        else (f"a whole number from {least} to {most}")
    )
    for name in names:
        value = getattr(owner, name)
        if none and value is None:
            continue
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or value < least or (most is not None and value > most):
            _refuse(owner, name, value, allowed, none)


def check_real(
    owner: Any,
    names: Iterable[str],
    above: float = -math.inf,
    below: float = math.inf,
    least: float | None = None,
    none: bool = False,
) -> None:
    """Raise unless each named option is a finite number in the open range (or None)."""
    allowed = (
        f"a finite number of at least {least:g}"
        if least is not None
        else (f"a finite number above {above:g}")
    )
    if math.isfinite(below):
        allowed += f" and below {below:g}"
    for name in names:
        value = getattr(owner, name)
        if none and value is None:
            continue
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        inside = real and math.isfinite(value) and above < value < below
        if not inside or (least is not None and value < least):
            _refuse(owner, name, value, allowed, none)


def check_flag(owner: Any, names: Iterable[str]) -> None:
    """Raise unless each named option is True or False."""
    for name in names:
        if not isinstance(getattr(owner, name), bool):
            _refuse(owner, name, getattr(owner, name), "True or False", False)


def _refuse(owner: Any, name: str, value: Any, allowed: str, none: bool) -> None:
    found = " ".join(repr(value).split())[:60]
    raise ModelError(
        f"Option `{type(owner).__name__}({name}=...)`: found {found}. Pass {allowed}"
        f"{', or None' if none else ''}."
    )
