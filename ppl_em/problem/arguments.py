"""The model's arguments: which are traced (data), and which are compile-time constants."""

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ppl_em.util import Static, content_key

logger = logging.getLogger("ppl_em")


@dataclass(frozen=True)
class Arguments:
    """How to rebuild `(args, kwargs)` from the traced leaves.

    `constants[i]` is None where leaf i is traced, else the leaf itself.
    """

    treedef: Any
    constants: tuple[Static | None, ...]

    def rebuild(self, leaves: tuple[Any, ...]) -> tuple[tuple, dict[str, Any]]:
        """Return `(args, kwargs)` with the traced leaves put back in their places."""
        traced = iter(leaves)
        full = [next(traced) if c is None else c.value for c in self.constants]
        return jax.tree.unflatten(self.treedef, full)


def split_arguments(
    args: tuple, kwargs: dict[str, Any], traceable: Callable[[Arguments, tuple], None]
) -> tuple[Arguments, tuple[Any, ...]]:
    """Trace every array argument that the model lets us trace; close over the rest.

    Parameters
    ----------
    args, kwargs
        As given by the user. Python scalars, strings, None and callables stay constants.
    traceable
        Called with a candidate and its leaves; raises if the model cannot be traced that way
        (it calls `np.unique` on the argument, say).

    Returns
    -------
    tuple
        The static description and the traced leaves.
    """
    leaves, treedef = jax.tree.flatten((args, kwargs), is_leaf=_is_frame)
    leaves = [_own(leaf) for leaf in leaves]
    arrays = [_as_array(leaf) for leaf in leaves]

    def candidate(traced: list[bool]) -> tuple[Arguments, tuple[Any, ...]]:
        constants = tuple(
            None if is_traced else Static(leaf, _constant_key(leaf))
            for leaf, is_traced in zip(leaves, traced, strict=True)
        )
        data = tuple(a for a, is_traced in zip(arrays, traced, strict=True) if is_traced)
        return Arguments(treedef, constants), data

    def works(traced: list[bool]) -> bool:
        try:
            traceable(*candidate(traced))
        except Exception as error:
            logger.info("an argument cannot be traced: %s", str(error).split("\n")[0])
            return False
        return True

    possible = [array is not None for array in arrays]
    if not any(possible) or works(possible):
        return candidate(possible)
    traced = _without_one(possible, works) or _one_by_one(possible, works)
    closed = sum(a and not b for a, b in zip(possible, traced, strict=True))
    logger.info(
        "%d of %d array arguments are closed over as constants, because the model computes with "
        "their concrete values",
        closed,
        sum(possible),
    )
    return candidate(traced)


def named_leaves(
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    is_leaf: Callable[[Any], bool] | None = None,
) -> list[tuple[str, Any]]:
    """Every leaf of the arguments of `model`, by the argument's name: `data['group']`, say."""
    try:
        own = list(inspect.signature(model).parameters)
    except (TypeError, ValueError):
        own = []
    named = [(own[i] if i < len(own) else str(i + 1), arg) for i, arg in enumerate(args)]
    return [
        (f"{name}{jax.tree_util.keystr(path)}", leaf)
        for name, argument in [*named, *sorted(kwargs.items())]
        for path, leaf in jax.tree_util.tree_leaves_with_path(argument, is_leaf=is_leaf)
    ]


def _without_one(possible: list[bool], works: Callable[[list[bool]], bool]) -> list[bool] | None:
    """Close over a single argument, the usual case: an index of groups."""
    for i, is_possible in enumerate(possible):
        traced = [p and i != j for j, p in enumerate(possible)]
        if is_possible and any(traced) and works(traced):
            return traced
    return None


def _one_by_one(possible: list[bool], works: Callable[[list[bool]], bool]) -> list[bool]:
    """Trace those arguments that can be traced alone, or none."""
    traced = [
        is_possible and works([i == j for j in range(len(possible))])
        for i, is_possible in enumerate(possible)
    ]
    return traced if any(traced) and works(traced) else [False] * len(possible)


def _is_frame(leaf: Any) -> bool:
    return type(leaf).__module__.split(".")[0] == "pandas"


def _as_array(leaf: Any) -> Any:
    """Return the numeric array that stands for `leaf` under tracing, or None."""
    if isinstance(leaf, jax.Array):
        return leaf
    if isinstance(leaf, np.ndarray) or (_is_frame(leaf) and hasattr(leaf, "to_numpy")):
        array = np.asarray(leaf)
        return array if array.dtype.kind in "fiub" else None
    return None


def _own(leaf: Any) -> Any:
    """`leaf`, or a copy of what its owner may change in place while the problem is in use."""
    if isinstance(leaf, np.ndarray) or (_is_frame(leaf) and hasattr(leaf, "copy")):
        return leaf.copy()
    return leaf


def _constant_key(leaf: Any) -> Any:
    """What tells constants apart by content; objects count by what the model makes of them.

    That is in the fingerprint of the problem.
    """
    kind = (type(leaf).__module__, type(leaf).__qualname__)
    if isinstance(leaf, np.ndarray | np.generic | jax.Array | int | float | complex | str | bytes):
        return (kind, content_key(leaf))
    return kind
