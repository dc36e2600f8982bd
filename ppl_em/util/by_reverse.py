"""Functions that only have reverse-mode derivatives, made to have all of them.

`jax.experimental.ode.odeint`, or a user's `jax.custom_vjp`, has a rule for gradients and none for
`jax.jvp`, on which Hessians are built. Here every derivative of a scalar function f is a gradient:

    D_k(q; t_1, ..., t_k) = grad_q <D_(k-1)(q; t_1, ..., t_(k-1)), t_k>,    D_0 = grad f.

It is linear in every t, and symmetric in all of them and in what multiplies it, so its transpose
in t_i is D_k itself with t_i replaced: one primitive that JAX can differentiate either way for
ever. Where a gradient has no gradient (a `pure_callback`), D_k is a difference of D_(k-1). A
function F of many values is seen through f(p, w) = <F(p), w>: J t is the part in w of
D_1(f; (p, 0); (t, 0)).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.flatten_util import ravel_pytree
from jax.interpreters import ad, batching, mlir

BY_GRADIENTS, BY_DIFFERENCES = "gradients of gradients", "differences of gradients"

Function = Callable[..., jax.Array]
"""A scalar function of a vector q (n,), then of arrays that it is not differentiated in."""

_derivative = Primitive("derivative_by_reverse_mode")


def with_all_derivatives(function: Callable, by: str) -> Callable:
    """`function` of two pytrees, with derivatives of all kinds and orders in the first.

    Parameters
    ----------
    function
        Takes a pytree of real arrays and one of any arrays, and closes over none that is traced.
        It returns a pytree of real arrays.
    by
        `BY_GRADIENTS`, or `BY_DIFFERENCES` for functions whose gradients have none.
    """

    def called(inputs: Any, data: Any) -> Any:
        every, form = jax.tree.flatten(inputs)
        is_real = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in every]
        q, unravel = ravel_pytree([a for a, real in zip(every, is_real, strict=True) if real])
        whole = [a for a, real in zip(every, is_real, strict=True) if not real]
        leaves, structure = jax.tree.flatten((whole, data))

        def plain(q: jax.Array, *leaves: Any) -> Any:
            held, data = jax.tree.unflatten(structure, leaves)
            parts = {True: iter(unravel(q)), False: iter(held)}
            return function(jax.tree.unflatten(form, [next(parts[r]) for r in is_real]), data)

        out, rebuild = _raveled(plain, q, *leaves)
        scalar = out.shape == ()

        def values(q: jax.Array, *leaves: Any) -> jax.Array:
            found = plain(q, *leaves)
            return jnp.asarray(found) if scalar else ravel_pytree(found)[0]

        def weighted(both: jax.Array, *leaves: Any) -> jax.Array:
            return jnp.vdot(values(both[: q.size], *leaves), both[q.size :])

        @jax.custom_jvp
        def smooth(q: jax.Array, *leaves: Any) -> jax.Array:
            return values(q, *leaves)

        @smooth.defjvp
        def smooth_jvp(primals: tuple, tangents: tuple) -> tuple:
            (q, *leaves), t = primals, tangents[0]
            if scalar:
                gradient = _bind(values, by, q, (), leaves)
                return smooth(q, *leaves), jnp.vdot(gradient, t)
            zeros = jnp.zeros(out.size, q.dtype)
            both, along = jnp.concatenate([q, zeros]), jnp.concatenate([t, zeros])
            push = _bind(weighted, by, both, (along,), leaves)[q.size :]
            return smooth(q, *leaves), push.astype(out.dtype)

        return rebuild(smooth(q, *leaves))

    return called


def way_of_derivatives(function: Callable, inputs: Any, data: Any) -> str:
    """How the second derivatives of a scalar function are had: by gradients, if they have any."""
    q, unravel = ravel_pytree(inputs)

    def gradient(q: jax.Array) -> jax.Array:
        return jax.grad(lambda q: function(unravel(q), data))(q)

    try:
        jax.eval_shape(jax.grad(lambda q: jnp.sum(gradient(q))), q)
    except Exception:  # whatever a rule of the user's raises
        return BY_DIFFERENCES
    return BY_GRADIENTS


def _raveled(function: Callable, *args: Any) -> tuple[Any, Callable]:
    """Shape of the raveled results of a function, and a function that gives them their form."""
    shapes: Any = jax.eval_shape(function, *args)
    if getattr(shapes, "shape", None) == ():
        return shapes, lambda value: value
    _, rebuild = ravel_pytree(jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes))
    return jax.eval_shape(lambda tree: ravel_pytree(tree)[0], shapes), rebuild


def _bind(function: Function, by: str, q: jax.Array, ts: tuple, leaves: Any) -> jax.Array:
    return _derivative.bind(q, *ts, *leaves, function=function, by=by, order=len(ts), levels=())


def _evaluate(
    q: jax.Array, *rest: Any, function: Function, by: str, order: int, levels: tuple
) -> jax.Array:
    """D_k, under as many `vmap` as there are `levels`: each says which leaves are mapped."""

    power = 1 / (2 + order)  # rounding errors as large as those of the differences

    def plain(q: jax.Array, *rest: Any) -> jax.Array:
        return _along(partial(_of_first, function, rest[order:]), q, rest[:order], by, power)

    for axes in levels:
        plain = jax.vmap(plain, in_axes=(0,) * (1 + order) + axes)
    return plain(q, *rest)


def _of_first(function: Function, leaves: tuple, q: jax.Array) -> jax.Array:
    return function(q, *leaves)


def _along(function: Callable, q: jax.Array, ts: tuple, by: str, power: float) -> jax.Array:
    """The gradient of `function` at `q` (n,), derived along each of `ts`.

    Differences are over the rounding unit to this power of what a coordinate is.
    """
    if not ts:
        return jax.grad(function)(q)
    *others, t = ts

    def lower(q: jax.Array) -> jax.Array:
        return _along(function, q, tuple(others), by, power)

    if by == BY_GRADIENTS:
        return jax.grad(lambda q: jnp.vdot(lower(q), t))(q)
    longest = jnp.max(jnp.abs(t) / (1 + jnp.abs(q)))
    width = jnp.finfo(q.dtype).eps ** power / jnp.where(longest > 0, longest, 1.0)
    return (lower(q + width * t) - lower(q - width * t)) / (2 * width)


def _jvp(primals: tuple, tangents: tuple, *, order: int, **params: Any) -> tuple:
    q, ts, leaves = primals[0], primals[1 : 1 + order], primals[1 + order :]
    if any(not isinstance(t, ad.Zero) for t in tangents[1 + order :]):
        raise NotImplementedError("a derivative in what a function was said to hold fixed")
    result = _derivative.bind(*primals, order=order, **params)
    parts = []
    if not isinstance(tangents[0], ad.Zero):
        more = _derivative.bind(q, *ts, tangents[0], *leaves, order=order + 1, **params)
        parts.append(more)
    for i, t in enumerate(tangents[1 : 1 + order]):
        if not isinstance(t, ad.Zero):
            other = (*ts[:i], t, *ts[i + 1 :])
            parts.append(_derivative.bind(q, *other, *leaves, order=order, **params))
    return result, sum(parts[1:], parts[0]) if parts else jnp.zeros_like(result)


def _transpose(cotangent: Any, q: Any, *rest: Any, order: int, **params: Any) -> list:
    places = [i for i, t in enumerate(rest[:order]) if ad.is_undefined_primal(t)]
    found: list[Any] = [None] * (1 + len(rest))
    if isinstance(cotangent, ad.Zero):
        return found
    (place,) = places  # it is linear in each, not in several at once
    other = (*rest[:place], cotangent, *rest[place + 1 :])
    found[1 + place] = _derivative.bind(q, *other, order=order, **params)
    return found


def _batch(args: tuple, dims: tuple, *, order: int, levels: tuple, **params: Any) -> tuple:
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)

    def moved(array: Any, dim: int | None, always: bool) -> Any:
        if dim is None:
            return jnp.broadcast_to(array, (size, *array.shape)) if always else array
        return jnp.moveaxis(array, dim, 0)

    pairs = enumerate(zip(args, dims, strict=True))
    laid = [moved(array, dim, i <= order) for i, (array, dim) in pairs]
    axes = tuple(None if dim is None else 0 for dim in dims[1 + order :])
    return _derivative.bind(*laid, order=order, levels=(*levels, axes), **params), 0


_derivative.def_impl(_evaluate)
_derivative.def_abstract_eval(lambda q, *_, **__: q)
ad.primitive_jvps[_derivative] = _jvp
ad.primitive_transposes[_derivative] = _transpose
batching.primitive_batchers[_derivative] = _batch
mlir.register_lowering(_derivative, mlir.lower_fun(_evaluate, multiple_results=False))
