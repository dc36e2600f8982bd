"""Indices out of range, in the data that the model looks others up with.

JAX reads the last entry in place of one that does not exist, and drops it from gradients: ids that
start at 1 would merge two groups without a word. What indices are made of, by operations on whole
numbers, is computed here from the program that the model traces to, without running that.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src.source_info_util import summarize
from jax.lax import GatherScatterMode
from numpyro.infer.util import compute_log_probs

from ppl_em.params import Params
from ppl_em.problem.arguments import named_leaves
from ppl_em.problem.problem import Latents, Problem
from ppl_em.util import Fingerprint, ModelError

logger = logging.getLogger("ppl_em")

MAX_KNOWN = 64
"""Programs that are remembered."""

_known: dict[Fingerprint | None, Any] = {}


class _Value(NamedTuple):
    """What is known of a variable: its array, if any, and the names of what it is made of."""

    array: np.ndarray | None
    names: tuple[str, ...] = ()


def _broadcast(x: np.ndarray, shape: tuple, broadcast_dimensions: tuple, **_: Any) -> np.ndarray:
    inner = [1] * len(shape)
    for size, axis in zip(x.shape, broadcast_dimensions, strict=True):
        inner[axis] = size
    return np.broadcast_to(x.reshape(inner), shape)


def _slice(
    x: np.ndarray, start_indices: tuple, limit_indices: tuple, strides: tuple | None, **_: Any
) -> np.ndarray:
    steps = strides or (1,) * x.ndim
    return x[tuple(map(slice, start_indices, limit_indices, steps))]


OPERATIONS: dict[str, Callable] = {
    "lt": lambda a, b, **_: a < b,
    "le": lambda a, b, **_: a <= b,
    "gt": lambda a, b, **_: a > b,
    "ge": lambda a, b, **_: a >= b,
    "eq": lambda a, b, **_: a == b,
    "ne": lambda a, b, **_: a != b,
    "add": lambda a, b, **_: a + b,
    "sub": lambda a, b, **_: a - b,
    "mul": lambda a, b, **_: a * b,
    "max": lambda a, b, **_: np.maximum(a, b),
    "min": lambda a, b, **_: np.minimum(a, b),
    "and": lambda a, b, **_: a & b,
    "or": lambda a, b, **_: a | b,
    "not": lambda a, **_: ~a,
    "neg": lambda a, **_: -a,
    "clamp": lambda low, a, high, **_: np.clip(a, low, high),
    "select_n": lambda which, *cases, **_: np.choose(which.astype(int), cases),
    "convert_element_type": lambda a, new_dtype, **_: a.astype(new_dtype),
    "broadcast_in_dim": _broadcast,
    "reshape": lambda a, new_sizes, **_: a.reshape(new_sizes),
    "squeeze": lambda a, dimensions, **_: np.squeeze(a, dimensions),
    "transpose": lambda a, permutation, **_: a.transpose(permutation),
    "concatenate": lambda *parts, dimension, **_: np.concatenate(parts, dimension),
    "slice": _slice,
    "copy": lambda a, **_: a,
    "stop_gradient": lambda a, **_: a,
}
"""Operations on whole numbers that indices are made by, in NumPy."""


def check_indices(problem: Problem, params: Params, closed: Any, terms: list[str]) -> None:
    """Raise if data of `problem` index what they look up out of its range.

    `closed` is the program of the model's `terms`, see `traced_terms`.
    """
    latents = {site.name: () for site in problem.spec.latents}
    free = {name: params[name] for name in problem.space.names}
    inputs: list[_Value] = []
    for values in (free, latents):
        for name in sorted(values):
            count = len(jax.tree.leaves(values[name])) or 1
            inputs += [_Value(None, (f"site '{name}'",))] * count
    named = zip(problem.leaves, leaf_names(problem), strict=True)
    inputs += [_Value(_array(leaf), (f"argument '{name}'",)) for leaf, name in named]
    used: set[tuple[str, ...]] = set()
    found = _follow(closed.jaxpr, closed.consts, inputs, used)
    _warn_of_negative(problem, used)
    if not problem.spec.discrete:
        _warn_of_untouched(problem, {n: v.names for n, v in zip(terms, found, strict=True)})


def _warn_of_negative(problem: Problem, used: set[tuple[str, ...]]) -> None:
    """Say so of ids that an argument has, some of them negative: those count from the end."""
    for name, leaf in zip(leaf_names(problem), problem.leaves, strict=True):
        if (f"argument '{name}'",) in used and leaf.dtype.kind == "i":
            ids = np.ravel(np.asarray(leaf))
            if ids.size and ids.min() < 0 <= ids.max():
                logger.warning(
                    "Argument '%s': it has negative ids, %d the first at position %d, which count "
                    "from the end. If they stand for what is missing, leave these rows out.",
                    *(name, ids[ids < 0][0], int(np.argmax(ids < 0))),
                )


def _warn_of_untouched(problem: Problem, names: dict[str, tuple[str, ...]]) -> None:
    """Say so of latents that no data depend on; `names` are what each site's density is made of.

    Values imputed by `obs_mask` are such by design.
    """
    seen = [*problem.spec.observed]
    for site in seen:
        inner = [name.split("'")[1] for name in names.get(site, ()) if name.startswith("site")]
        seen += [name for name in inner if name not in seen]
    for latent in problem.spec.latents:
        imputed = latent.name.replace("_unobserved", "_observed") in problem.spec.observed
        if latent.name not in seen and not imputed:
            logger.warning(
                "Site '%s': no data depend on this latent. Its integral is 1: remove it, or check "
                "that the model uses it.",
                latent.name,
            )


def traced_terms(problem: Problem, params: Params) -> tuple[Any, list[str]]:
    """The program of the model's terms with their names, traced once for all fits that share it."""
    known = _known.get(problem.spec.program)
    if known is None:
        known = _traced(problem, params)
        while len(_known) >= MAX_KNOWN:
            _known.pop(next(iter(_known)))
        _known[problem.spec.program] = known
    return known


def _traced(problem: Problem, params: Params) -> tuple[Any, list[str]]:
    """The program of the model's terms, and their names in the order of its results."""
    free = {name: params[name] for name in problem.space.names}
    latents = {
        site.name: jax.ShapeDtypeStruct(site.shape, problem.start.dtype)
        for site in problem.spec.latents
    }

    def terms(params: Params, latents: Latents, leaves: tuple) -> Any:
        own = Problem(leaves, problem.fixed, problem.start, problem.spec)
        if problem.spec.discrete:
            return own.log_factors(params, latents).tables
        args, kwargs = own.arguments
        values = {**params, **problem.fixed, **latents}
        return compute_log_probs(own.spec.model, args, kwargs, values, sum_log_prob=False)[0]

    closed, found = jax.make_jaxpr(terms, return_shape=True)(free, latents, problem.leaves)
    return closed, sorted(found)


def _follow(
    jaxpr: Any, consts: Any, inputs: list[_Value], used: set[tuple[str, ...]]
) -> list[_Value]:
    """What is known of the results of a program, whose lookups are checked on the way.

    `used` collects what indices are made of.
    """
    env: dict[Any, _Value] = dict(zip(jaxpr.invars, inputs, strict=True))
    env.update((v, _Value(_array(c))) for v, c in zip(jaxpr.constvars, consts, strict=True))

    def value(atom: Any) -> _Value:
        if hasattr(atom, "val"):
            return _Value(_array(atom.val))
        return env.get(atom, _Value(None))

    for equation in jaxpr.eqns:
        found, name = [value(atom) for atom in equation.invars], equation.primitive.name
        names = tuple(dict.fromkeys(n for one in found for n in one.names))
        inner = equation.params.get("jaxpr") if name in ("jit", "pjit") else None
        if inner is not None:
            results = _follow(inner.jaxpr, inner.consts, found, used)
            env.update(zip(equation.outvars, results, strict=True))
            continue
        if name == "gather":
            _check(equation, *found)
            used.add(found[1].names)
        known = None
        whole = all(_is_whole(atom.aval) for atom in equation.outvars)
        if whole and name == "iota":
            known = _iota(**equation.params)
        elif whole and name in OPERATIONS and all(one.array is not None for one in found):
            known = OPERATIONS[name](*(one.array for one in found), **equation.params)
        env.update((out, _Value(known, names)) for out in equation.outvars)
    return [value(atom) for atom in jaxpr.outvars]


def _array(value: Any) -> np.ndarray | None:
    """An array of NumPy; None for random keys."""
    is_key = jax.dtypes.issubdtype(getattr(value, "dtype", None), jax.dtypes.prng_key)
    return None if is_key else np.asarray(value)


def _is_whole(aval: Any) -> bool:
    """Whether these are whole numbers or truth values; random keys are neither."""
    return getattr(getattr(aval, "dtype", None), "kind", "") in ("i", "u", "b")


def _iota(dtype: Any, shape: tuple, dimension: int, **_: Any) -> np.ndarray:
    steps = np.arange(shape[dimension], dtype=dtype)
    return _broadcast(steps, shape, (dimension,))


def _check(equation: Any, looked_up: _Value, indices: _Value) -> None:
    """Raise if some of the indices of a lookup are out of range."""
    promised = equation.params["mode"] == GatherScatterMode.PROMISE_IN_BOUNDS
    if not promised or indices.array is None or not indices.array.size:
        return
    shape, sizes = equation.invars[0].aval.shape, equation.params["slice_sizes"]
    axes = equation.params["dimension_numbers"].start_index_map
    for column, axis in enumerate(axes):
        asked, last = indices.array[..., column], shape[axis] - sizes[axis]
        below, above = int(np.min(asked)), int(np.max(asked))
        if below >= 0 and above <= last:
            continue
        which = " and ".join(indices.names) or "an array that the model holds"
        what = " and ".join(looked_up.names) or "an array"
        wrong = above if above > last else below - shape[axis]
        raise ModelError(
            f"{which[0].upper()}{which[1:]}: it looks up entry {wrong} of {what} "
            f"({summarize(equation.source_info)}), where entries 0 to {last} exist. Subtract 1 if "
            f"its ids start at 1, or make the axis longer."
        )


def leaf_names(problem: Problem) -> list[str]:
    """For every traced leaf of the data, the argument that it is or belongs to."""
    described = problem.spec.arguments
    count = len(described.constants)
    args, kwargs = jax.tree.unflatten(described.treedef, list(range(count)))
    names = {i: name for name, i in named_leaves(problem.spec.model, args, kwargs)}
    return [names[i] for i, constant in enumerate(described.constants) if constant is None]
