"""Hashable stand-ins for values that JAX must treat as compile-time constants."""

from typing import Any

import jax
import numpy as np


def content_key(value: Any) -> Any:
    """Return a hashable key that is equal for equal content.

    Arrays compare by bytes, pytrees (such as NumPyro constraints) by structure and leaves, and
    anything else by itself where it is hashable, else by identity.
    """
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        if array.dtype == object:
            return ("array", array.shape, tuple(map(repr, array.ravel())))
        return ("array", array.shape, str(array.dtype), array.tobytes())
    leaves, treedef = jax.tree.flatten(value)
    if len(leaves) == 1 and leaves[0] is value:
        try:
            hash(value)
        except TypeError:
            return ("object", id(value))
        return value
    return (treedef, tuple(content_key(leaf) for leaf in leaves))


class Static:
    """A value with the hash and equality of its content, for the static part of a pytree."""

    __slots__ = ("_hash", "key", "value")

    def __init__(self, value: Any, key: Any = None):
        self.value = value
        self.key = content_key(value) if key is None else key
        self._hash = hash(self.key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self._hash == other._hash and self.key == other.key

    def __repr__(self) -> str:
        return f"Static({type(self.value).__name__})"

    def __reduce__(self) -> tuple:
        return (Static, (self.value,))
