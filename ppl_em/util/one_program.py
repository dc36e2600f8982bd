"""Run a function of the user's as one program.

Outside of compiled code each operation on arrays is a program of its own, which takes XLA some
20 ms to compile the first time.
"""

from collections.abc import Callable
from typing import Any

import jax

from ppl_em.util.compilation import compiled
from ppl_em.util.digest import program_and_digest
from ppl_em.util.static import Static


def at_once(function: Callable[[], Any]) -> Any:
    """What `function()` returns, a tree of arrays and of anything else, computed by one program.

    Its operations on arrays are traced afresh, and compiled unless they have been before.

    Raises
    ------
    Exception
        Whatever the function raises where it is traced: also where it asks for the value of an
        array, which is not known then.
    """
    kept: list[Any] = []
    places: list[int] = []

    def traced() -> list[Any]:
        leaves, structure = jax.tree.flatten(function())
        kept[:] = [structure, leaves]
        places[:] = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.core.Tracer)]
        return [leaves[i] for i in places]

    closed, digest = program_and_digest(traced)
    structure, leaves = kept
    found = _run(Static(closed.jaxpr, digest), closed.consts)
    for place, value in zip(places, found, strict=True):
        leaves[place] = value
    return jax.tree.unflatten(structure, leaves)


@compiled(static_argnums=0)
def _run(program: Static, constants: list[Any]) -> list[Any]:
    return jax.core.eval_jaxpr(program.value, constants)
