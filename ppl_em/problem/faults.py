"""Why a model failed, in one line: which of its arguments makes it fail, or what it said itself.

The argument is found by trial: without what is wrong with it, the model runs.
"""

import contextlib
import pathlib
import re
import sysconfig
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from ppl_em.params import ParamSpace, as_value, check_start, make_site
from ppl_em.problem.arguments import named_leaves
from ppl_em.problem.checks import Trace, check_param, param_constraint
from ppl_em.problem.repairs import Repair, is_frame, is_listed, repairs
from ppl_em.util import ModelError, name_of

MOST_TRIALS = 60
"""Runs of a failing model, in search of the argument that makes it fail."""

OWN = (pathlib.Path(__file__).resolve().parents[1], pathlib.Path(sysconfig.get_path("stdlib")))
"""Where lines are not the user's."""

TRACED = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)
"""What JAX raises where Python asks for a number that is not known yet."""

Again = Callable[[tuple, dict[str, Any]], Any]
"""What failed, on other arguments; raises if it still fails."""


class _Suspect(NamedTuple):
    place: int
    name: str
    repairs: list[Repair]


@contextlib.contextmanager
def explained(
    model: Callable, args: tuple, kwargs: dict[str, Any], again: Again | None = None
) -> Iterator[None]:
    """Put errors of a model into one line, whatever they are; `again` helps to find the cause."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        found = None if again is None else guilty(model, args, kwargs, error, again)
        raise (found or failed(model, args, kwargs, error)) from error


def guilty(
    model: Callable, args: tuple, kwargs: dict[str, Any], error: Exception, again: Again
) -> ModelError | None:
    """What is wrong with the argument that makes `model` fail; None if none is found."""
    arguments = (args, kwargs)
    leaves, treedef = jax.tree.flatten(arguments, is_leaf=lambda v: v is not args and _is_leaf(v))
    names = [name for name, _ in named_leaves(model, args, kwargs, _is_leaf)]
    complaint, trials = str(error).lower(), iter(range(MOST_TRIALS))
    suspects = []
    for i, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
        with contextlib.suppress(Exception):  # strange objects: the model's own words remain
            if found := repairs(name, leaf, complaint):
                suspects.append(_Suspect(i, name, found))

    def works(values: dict[int, Any]) -> bool:
        if next(trials, None) is None:
            return False
        mended = [values.get(i, leaf) for i, leaf in enumerate(leaves)]
        with contextlib.suppress(Exception):
            again(*jax.tree.unflatten(treedef, mended))
            return True
        return False

    if not suspects or works({}):
        return None
    for one in suspects:
        for i, repair in enumerate(one.repairs):
            if works({one.place: repair.value}):
                return _in_words(one.name, one.repairs[: i + 1], error)
    best = {one.place: one.repairs[-1].value for one in suspects}
    if len(suspects) < 2 or not works(best):
        return None
    for one in suspects:  # several are, and this is the first
        others = {place: value for place, value in best.items() if place != one.place}
        if not works(others):
            needed = (i for i, r in enumerate(one.repairs) if works(others | {one.place: r.value}))
            return _in_words(one.name, one.repairs[: next(needed, len(one.repairs)) + 1], error)
    return None


def failed(model: Callable, args: tuple, kwargs: dict[str, Any], error: Exception) -> ModelError:
    """What a model said when it failed, where, and what it was given."""
    if isinstance(error, TRACED):
        sites = re.findall(r"traced\[\d\]\['([^']+)'\]", str(error))
        which = f"site '{sites[0]}'" if sites else "a parameter or latent"
        return ModelError(
            f"Model '{name_of(model)}': it needs the number behind {which} in Python"
            f"{_where(error)}, which differentiation has none of. Use `jax.numpy.where` or "
            f"`jax.lax.cond` for `if`, and `jax.numpy` for `numpy`, `math` and `float`."
        )
    if "nested scan" in str(error):
        return ModelError(
            f"Model '{name_of(model)}': it has a `scan` inside a `scan`{_where(error)}, to whose "
            f"latents NumPyro can give no values. Merge them into one `scan`, or write one of them "
            f"as a plate or as a Python loop."
        )
    if "NoneType" in str(error):
        none = [n for n, v in named_leaves(model, args, kwargs, _is_leaf) if v is None]
        if none:
            return ModelError(
                f"Argument '{none[0]}': it is None, and the model fails on that ({_said(error)}). "
                f"Pass data."
            )
    empty = [n for n, v in named_leaves(model, args, kwargs, _is_leaf) if np.size(v) == 0]
    if empty:
        return ModelError(
            f"Argument '{empty[0]}': it is empty, and the model fails on that ({_said(error)}). "
            f"Pass data."
        )
    given = ", ".join(
        f"{name} {_kind(leaf)}" for name, leaf in named_leaves(model, args, kwargs, _is_leaf)
    )
    return ModelError(
        f"Model '{name_of(model)}': it failed with {_said(error)}. It was given "
        f"{given or 'nothing'}. Change that, or mend the model."
    )


def unusable(model: Callable, so_far: Trace, error: Exception) -> ModelError | None:
    """What to tell the user of an `error` that NumPyro raised in the model, after some sites.

    None for errors that are not about sites: those are the model's own.
    """
    if "unique names" in str(error):
        return ModelError(f"Model '{name_of(model)}': {error}. Rename one of the two sites.")
    try:
        for name, site in so_far.items():
            if site["type"] == "param":
                check_param(name, site)
    except ModelError as reason:
        return reason
    if "got invalid" not in str(error):
        return None
    values = {k: as_value(s["value"]) for k, s in so_far.items() if s["type"] == "param"}
    sites = [make_site(k, v, param_constraint(so_far[k]), False) for k, v in values.items()]
    try:
        check_start(ParamSpace(tuple(sites)), values)
    except ModelError as reason:
        return reason
    where = f"after site '{next(reversed(so_far))}'" if so_far else "at its first site"
    return ModelError(
        f"Model '{name_of(model)}': {str(error).rstrip('.')}, in the statement {where}. Check the "
        f"initial values of its parameters, or start elsewhere with `init_params`."
    )


def _in_words(name: str, needed: list[Repair], error: Exception) -> ModelError:
    """The first of the repairs that are needed together; what values are in is the last to say."""
    repair = next((one for one in needed if not one.is_container), needed[-1])
    return ModelError(
        f"Argument '{name}': {repair.fact}, and the model fails on that ({_said(error)}). "
        f"{repair.remedy}."
    )


def _said(error: Exception) -> str:
    """Kind, first line and place of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = lines[0].rstrip(".") if lines else ""
    words = words if len(words) <= 160 else f"{words[:160]}..."
    return f"{type(error).__name__}{': ' if words else ''}{words}{_where(error)}"


def _where(error: Exception) -> str:
    """The innermost line of the traceback that belongs to neither a library nor this one."""
    place, frame = "", error.__traceback__
    while frame is not None:
        path = pathlib.Path(frame.tb_frame.f_code.co_filename)
        if "site-packages" not in path.parts and not any(map(path.is_relative_to, OWN)):
            place = f" at {path.name}:{frame.tb_lineno}"
        frame = frame.tb_next
    return place


def _is_leaf(value: Any) -> bool:
    return value is None or is_frame(value) or is_listed(value)


def _kind(leaf: Any) -> str:
    """An argument by type and shape."""
    if leaf is None or isinstance(leaf, bool | int | float):
        return repr(leaf)
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape") and not is_frame(leaf):
        return f"{leaf.dtype} {tuple(leaf.shape)}"
    size = f" of {len(leaf)}" if hasattr(leaf, "__len__") else ""
    return f"{type(leaf).__name__}{size}"


NO_GRADIENT = (
    "do not support JVP",
    "Reverse-mode differentiation does not work",
    "not implemented",
)
"""What JAX says of operations without a gradient."""


def no_gradient(model: Callable, error: Exception) -> ModelError | None:
    """What to tell the user if JAX has no gradient of the model; None if that is not the error."""
    words = str(error).split("\n")[0]
    if not any(part in words for part in NO_GRADIENT):
        return None
    return ModelError(
        f"Model '{getattr(model, '__name__', type(model).__name__)}': its log-density has no "
        f"gradient: {words.rstrip('.')}. Give the function a rule with `jax.custom_vjp`, or make "
        f"its loops `jax.lax.scan`."
    )
