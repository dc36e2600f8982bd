"""Which outputs of a traced function depend on which inputs."""

from collections.abc import Callable, Sequence
from typing import Any

import jax


def dependence(function: Callable, *arguments: Any) -> list[frozenset[int]]:
    """For each output leaf, which of the input leaves it depends on, judged from the program."""
    closed = jax.make_jaxpr(function)(*arguments)
    return _propagate(closed.jaxpr, [frozenset({i}) for i in range(len(closed.jaxpr.invars))])


def _propagate(jaxpr: Any, inputs: Sequence[frozenset[int]]) -> list[frozenset[int]]:
    known: dict[Any, frozenset[int]] = dict(zip(jaxpr.invars, inputs, strict=True))

    def sources(atom: Any) -> frozenset[int]:
        return frozenset() if hasattr(atom, "val") else known.get(atom, frozenset())

    for equation in jaxpr.eqns:
        found = [sources(atom) for atom in equation.invars]
        if equation.primitive.name in ("jit", "pjit"):
            results = _propagate(equation.params["jaxpr"].jaxpr, found)
        else:
            results = [frozenset().union(*found)] * len(equation.outvars)
        known.update(zip(equation.outvars, results, strict=True))
    return [sources(atom) for atom in jaxpr.outvars]
