"""Functions that only have reverse-mode derivatives, made to have all of them.

`jax.experimental.ode.odeint`, or a user's `jax.custom_vjp`, has a rule for gradients and none for
`jax.jvp`, on which Hessians are built. For a function F from q (n,) to (m,) there are two families,

    A_k(q, c; t_1, ..., t_k) = grad_q of the k-th derivative of <F, c> along t_1, ..., t_k,   (n,)
    B_k(q; t_1, ..., t_k) = the k-th derivative of F along t_1, ..., t_k,                     (m,)

linear in c and in every t, symmetric in the t. The derivative of either in q along t is the next of
its family. The transposes: of B_k in t_i, to c, it is A_(k-1) without t_i; of A_k in t_i, to w, A_k
with w for t_i; of A_k in c, to w, B_(k+1) with w as one more t. So this is one primitive, which JAX
can differentiate either way for ever. It is evaluated by gradients only,

    A_0 = grad <F, c>,   A_k = grad <A_(k-1), t_k>,   B_k = grad_c <A_(k-1), t_k>,

as deep as these have gradients themselves. That is twice for `odeint` and once for a rule that is a
`pure_callback`; from there on, by differences in q.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.flatten_util import ravel_pytree
from jax.interpreters import ad, batching, mlir

DEEPEST = 3
"""Gradients of gradients of gradients: of what is found by Newton's method, a gradient is that."""

Function = Callable[..., jax.Array]
"""Of a vector q (n,), then of arrays that it is not differentiated in; values (m,)."""

_derivative = Primitive("derivative_by_reverse_mode")


def with_all_derivatives(function: Callable, depth: int) -> Callable:
    """`function` of two pytrees, with derivatives of all kinds and orders in the first.

    Parameters
    ----------
    function
        Takes a pytree of real arrays and one of any arrays, and closes over none that is traced.
        It returns a pytree of real arrays.
    depth
        How often a gradient can be taken of it, see `depth_of`.
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

        def values(q: jax.Array, *leaves: Any) -> jax.Array:
            return ravel_pytree(plain(q, *leaves))[0].astype(q.dtype)

        @jax.custom_jvp
        def smooth(q: jax.Array, *leaves: Any) -> jax.Array:
            return values(q, *leaves)

        @smooth.defjvp
        def smooth_jvp(primals: tuple, tangents: tuple) -> tuple:
            (q, *leaves), t = primals, tangents[0]
            if out.size == 1:  # a gradient does more for the same
                gradient = _bind(values, 1, depth, q, (jnp.ones(1, q.dtype),), (), leaves)
                return smooth(q, *leaves), jnp.vdot(gradient, t)[None]
            return smooth(q, *leaves), _bind(values, out.size, depth, q, (), (t,), leaves)

        return rebuild(smooth(q, *leaves).astype(out.dtype))

    return called


def depth_of(function: Callable, inputs: Any, data: Any) -> int:
    """How often gradients can be taken of a scalar function of two pytrees, in the first."""
    q, unravel = ravel_pytree(inputs)

    def values(q: jax.Array) -> jax.Array:
        return jnp.ravel(function(unravel(q), data))

    for depth in range(2, DEEPEST + 1):
        try:
            jax.eval_shape(
                lambda q, k=depth: _gradients(values, q, jnp.ones(1), (q,) * (k - 1), k), q
            )
        except Exception:  # whatever a rule raises that cannot be differentiated
            return depth - 1
    return DEEPEST


def _raveled(function: Callable, *args: Any) -> tuple[Any, Callable]:
    """Shape of the raveled results of a function, and what gives them back their form."""
    shapes: Any = jax.eval_shape(function, *args)
    _, rebuild = ravel_pytree(jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes))
    return jax.eval_shape(lambda tree: ravel_pytree(tree)[0], shapes), rebuild


def _bind(
    function: Function, size: int, depth: int, q: jax.Array, c: tuple, ts: tuple, leaves: Any
) -> jax.Array:
    """A_k if there is a c, else B_k, of a function of `size` values."""
    order, pulled = len(ts), bool(c)
    params = {"function": function, "size": size, "depth": depth, "levels": ()}
    return _derivative.bind(q, *c, *ts, *leaves, pulled=pulled, order=order, **params)


def _split(args: Any, pulled: bool, order: int) -> tuple[Any, tuple, tuple, tuple]:
    """q, c if there is one, the ts, the leaves."""
    ends = 1 + int(pulled), 1 + int(pulled) + order
    return args[0], (*args[1 : ends[0]],), (*args[ends[0] : ends[1]],), (*args[ends[1] :],)


def _evaluate(
    *args: Any, function: Function, size: int, depth: int, pulled: bool, order: int, levels: tuple
) -> jax.Array:
    """One of the families, under as many `vmap` as there are `levels`: of which leaves each is."""

    def plain(*args: Any) -> jax.Array:
        q, c, ts, leaves = _split(args, pulled, order)

        def own(q: jax.Array) -> jax.Array:
            return function(q, *leaves)

        if pulled:
            return _gradients(own, q, c[0], ts, depth)
        if len(ts) > depth - 1:
            return _differences(own, q, ts)

        def along(c: jax.Array) -> jax.Array:
            return jnp.vdot(_gradients(own, q, c, ts[:-1], depth), ts[-1])

        return jax.grad(along)(jnp.zeros(size, q.dtype))

    for axes in levels:
        plain = jax.vmap(plain, in_axes=(0,) * (1 + int(pulled) + order) + axes)
    return plain(*args)


def _gradients(function: Callable, q: jax.Array, c: jax.Array, ts: tuple, depth: int) -> jax.Array:
    """A_k, by so many gradients at most."""
    if len(ts) >= depth:
        lower = partial(_gradients, function, c=c, ts=ts[: depth - 1], depth=depth)
        return _differences(lower, q, ts[depth - 1 :])

    def along(q: jax.Array) -> jax.Array:
        if not ts:
            return jnp.vdot(function(q), c)
        return jnp.vdot(_gradients(function, q, c, ts[:-1], depth), ts[-1])

    return jax.grad(along)(q)


def _differences(function: Callable, q: jax.Array, ts: tuple) -> jax.Array:
    """The derivative along `ts`, over lengths at which rounding is as large as what is left out."""
    power = 1 / (2 + len(ts))

    def along(q: jax.Array, ts: tuple) -> jax.Array:
        if not ts:
            return function(q)
        *others, t = ts
        longest = jnp.max(jnp.abs(t) / (1 + jnp.abs(q)))
        width = jnp.finfo(q.dtype).eps ** power / jnp.where(longest > 0, longest, 1.0)
        ends = jnp.array([1.0, -1.0], q.dtype) * width
        ahead, behind = jax.lax.map(lambda s: along(q + s * t, tuple(others)), ends)
        return (ahead - behind) / (2 * width)

    return along(q, ts)


def _jvp(primals: tuple, tangents: tuple, *, pulled: bool, order: int, **params: Any) -> tuple:
    q, c, ts, leaves = _split(primals, pulled, order)
    dq, dc, dts, held = _split(tangents, pulled, order)
    if any(not isinstance(t, ad.Zero) for t in held):
        raise NotImplementedError("a derivative in what a function was said to hold fixed")

    def found(c: tuple, ts: tuple) -> jax.Array:
        return _derivative.bind(q, *c, *ts, *leaves, pulled=pulled, order=len(ts), **params)

    result = found(c, ts)
    parts = [] if isinstance(dq, ad.Zero) else [found(c, (*ts, dq))]
    parts += [found((t,), ts) for t in dc if not isinstance(t, ad.Zero)]
    for i, t in enumerate(dts):
        if not isinstance(t, ad.Zero):
            parts.append(found(c, (*ts[:i], t, *ts[i + 1 :])))
    return result, sum(parts[1:], parts[0]) if parts else jnp.zeros_like(result)


def _transpose(cotangent: Any, *args: Any, pulled: bool, order: int, **params: Any) -> list:
    found: list[Any] = [None] * len(args)
    if isinstance(cotangent, ad.Zero):
        return found
    q, c, ts, leaves = _split(args, pulled, order)
    (place,) = (i for i, arg in enumerate((q, *c, *ts)) if ad.is_undefined_primal(arg))
    i = place - 1 - int(pulled)  # the place among the ts
    if i < 0:  # c
        operands: tuple = q, *ts, cotangent
        pulled, order = False, order + 1
    elif pulled:
        operands = q, *c, *ts[:i], cotangent, *ts[i + 1 :]
    else:
        operands = q, cotangent, *ts[:i], *ts[i + 1 :]
        pulled, order = True, order - 1
    found[place] = _derivative.bind(*operands, *leaves, pulled=pulled, order=order, **params)
    return found


def _batch(
    args: tuple, dims: tuple, *, pulled: bool, order: int, levels: tuple, **params: Any
) -> tuple:
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    count = 1 + int(pulled) + order

    def moved(array: Any, dim: int | None, always: bool) -> Any:
        if dim is None:
            return jnp.broadcast_to(array, (size, *array.shape)) if always else array
        return jnp.moveaxis(array, dim, 0)

    pairs = enumerate(zip(args, dims, strict=True))
    laid = [moved(array, dim, i < count) for i, (array, dim) in pairs]
    levels = (*levels, tuple(None if dim is None else 0 for dim in dims[count:]))
    params = {**params, "pulled": pulled, "order": order, "levels": levels}
    return _derivative.bind(*laid, **params), 0


def _shape(q: Any, *_: Any, size: int, pulled: bool, **params: Any) -> Any:
    return q if pulled else q.update(shape=(*q.shape[:-1], size))


_derivative.def_impl(_evaluate)
_derivative.def_abstract_eval(_shape)
ad.primitive_jvps[_derivative] = _jvp
ad.primitive_transposes[_derivative] = _transpose
batching.primitive_batchers[_derivative] = _batch
mlir.register_lowering(_derivative, mlir.lower_fun(_evaluate, multiple_results=False))
