"""A function over leading axes, as many at once as memory allows."""

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import jax
import numpy as np


def in_batches(function: Callable, inputs: Any, at_once: int) -> Any:
    """`function` over the leading axis of `inputs`, at most `at_once` side by side.

    Where they are more, batches follow one another and are evaluated again for the gradient, which
    keeps memory small. Batches have one size if a fair one divides the number: else the rest is a
    second program.
    """
    count, most = len(jax.tree.leaves(inputs)[0]), max(at_once, 1)
    if count <= most:
        return jax.vmap(function)(inputs)
    side = next(n for n in range(most, 0, -1) if count % n == 0)
    side = side if 4 * side >= most else most
    return jax.lax.map(jax.checkpoint(function), inputs, batch_size=side)


def by_chunks(program: Callable, inputs: Any, size: int) -> Any:
    """A compiled `program` of `size` rows at a time, called until all rows of `inputs` are done.

    One program for any number of rows, small to compile; the last chunk is filled up with copies of
    its last row. Returns arrays of NumPy.
    """
    count = len(jax.tree.leaves(inputs)[0])
    size = min(size, count)
    rows = np.minimum(np.arange(-(-count // size) * size), count - 1).reshape(-1, size)
    chunks = (jax.tree.map(itemgetter(some), inputs) for some in rows)
    found = [jax.device_get(program(chunk)) for chunk in chunks]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *found)
