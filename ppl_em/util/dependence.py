"""What the results of a traced function depend on, judged from the program."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

Marks = frozenset[Any]
"""Names of sources."""


def dependence(function: Callable, *arguments: Any) -> list[frozenset[int]]:
    """For each output leaf, which of the input leaves it depends on."""
    closed = jax.make_jaxpr(function)(*arguments)
    return sources(closed.jaxpr, [frozenset({i}) for i in range(len(closed.jaxpr.invars))])


def sources(jaxpr: Any, inputs: Sequence[Marks], held: Marks = frozenset()) -> list[Marks]:
    """The marks that reach each output of a jaxpr.

    Parameters
    ----------
    jaxpr
        The program. Compiled functions in it are followed inside; every other operation passes the
        marks of all that it takes to all that it returns.
    inputs
        Marks of its inputs.
    held
        Marks of the arrays, not the scalars, that the program holds as constants.
    """
    known: dict[Any, Marks] = dict(zip(jaxpr.invars, inputs, strict=True))
    known.update((var, held) for var in jaxpr.constvars if var.aval.shape)

    def marks(atom: Any) -> Marks:
        if hasattr(atom, "val"):  # a literal
            return held if np.ndim(atom.val) > 0 else frozenset()
        return known.get(atom, frozenset())

    for equation in jaxpr.eqns:
        found = [marks(atom) for atom in equation.invars]
        if equation.primitive.name in ("jit", "pjit"):
            results = sources(equation.params["jaxpr"].jaxpr, found, held)
        else:
            results = [frozenset().union(*found)] * len(equation.outvars)
        known.update(zip(equation.outvars, results, strict=True))
    return [marks(atom) for atom in jaxpr.outvars]
