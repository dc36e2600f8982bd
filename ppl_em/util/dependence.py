"""What the results of a traced function depend on, judged from the program."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src.source_info_util import summarize

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


def has_operation(jaxpr: Any, name: str) -> bool:
    """Whether a program, or one inside it, has an operation whose name begins so."""
    return any(
        equation.primitive.name.startswith(name)
        or any(has_operation(inner, name) for inner in _inner(equation))
        for equation in jaxpr.eqns
    )


STEPS = frozenset(
    [
        "lt",
        "le",
        "gt",
        "ge",
        "eq",
        "ne",
        "floor",
        "ceil",
        "round",
        "sign",
        "argmax",
        "argmin",
        "sort",
        "convert_element_type",
        "rem",
        "stop_gradient",
        "nextafter",
        "bitcast_convert_type",
        "pure_callback",
        "io_callback",
    ]
)
"""Operations whose result jumps, or whose derivative is not that of their value; others that make
whole numbers of real ones are steps as well."""

SMOOTH = (
    "/jax/_src/scipy/",
    "/jax/_src/nn/",
    "/jax/_src/ops/",
    "/jax/_src/lax/special",
    "linalg",
    "/jax/experimental/ode",
    "/diffrax/",
    "/discrete/safe_laws",
)
"""Where such operations are parts of functions that do not jump, by parts of file names."""

CONTINUOUS = ("binary_cross_entropy_with_logits", "true_zero")
"""Such functions of NumPyro and of our own, by name."""


class Step(NamedTuple):
    """An operation that may jump: the source that reaches it, its name, and the line of code."""

    source: str
    operation: str
    where: str


def find_steps(jaxpr: Any, inputs: Sequence[Marks]) -> list[Marks]:
    """The marks that reach each output of a jaxpr, a `Step` for each way through a jump.

    `inputs` are the names of the sources. A name and its steps both go on: whether the result
    jumps where a step is seen, only values can tell.
    """
    known: dict[Any, Marks] = dict(zip(jaxpr.invars, inputs, strict=True))

    def marks(atom: Any) -> Marks:
        return frozenset() if hasattr(atom, "val") else known.get(atom, frozenset())

    for equation in jaxpr.eqns:
        found = [marks(atom) for atom in equation.invars]
        joined: Marks = frozenset().union(*found)
        results = [joined] * len(equation.outvars)
        if joined:
            for inner in _inner(equation):
                same = len(inner.invars) == len(found)
                within = find_steps(inner, found if same else [joined] * len(inner.invars))
                if equation.primitive.name in ("jit", "pjit"):
                    results = within
                else:
                    results = [r | frozenset().union(*within) for r in results]
            if _jumps(equation):
                where = summarize(equation.source_info)
                name = equation.primitive.name
                new = frozenset(Step(m, name, where) for m in joined if isinstance(m, str))
                olds = frozenset(m for m in joined if isinstance(m, Step))
                results = [new | olds] * len(results)
        known.update(zip(equation.outvars, results, strict=True))
    return [marks(atom) for atom in jaxpr.outvars]


def _inner(equation: Any) -> list[Any]:
    """The programs inside an operation: those of a loop, a branch, a function with a rule."""
    held = jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
    )
    return [getattr(leaf, "jaxpr", leaf) for leaf in held if hasattr(leaf, "eqns")]


def _jumps(equation: Any) -> bool:
    name = equation.primitive.name
    kinds = [_kind(atom) for atom in equation.invars]
    whole = name != "is_finite" and all(_kind(atom) in "iub" for atom in equation.outvars)
    if name not in STEPS and not (whole and not _inner(equation)):
        return False
    if "f" not in kinds or (name == "sort" and len(kinds) == 1):
        return False
    if name == "convert_element_type" and _kind(equation.outvars[0]) == "f":
        return False
    if name in ("eq", "ne") and _is_nan_or_inf(*equation.invars):
        return False
    frames = equation.source_info.traceback.frames if equation.source_info.traceback else []
    if any(frame.function_name in CONTINUOUS for frame in frames):
        return False
    return not any(part in frame.file_name for frame in frames for part in SMOOTH)


def _kind(atom: Any) -> str:
    """`f`, `i`, `u` or `b` for the numbers in an array; other letters for keys and the like."""
    return getattr(atom.aval.dtype, "kind", "-")


def _is_nan_or_inf(first: Any, second: Any) -> bool:
    """Whether two operands are compared only to see if a number is finite."""
    if first is second:
        return True
    literals = [atom.val for atom in (first, second) if hasattr(atom, "val")]
    return any(not np.all(np.isfinite(value)) for value in literals)
