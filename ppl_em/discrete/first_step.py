"""A `scan` whose first step is run by itself, since its carry is of another kind than all others.

`scan(step, None, y)` draws the first state inside the step. NumPyro runs such programs where it
enumerates discrete sites, and nowhere else: a loop needs a carry of one kind.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.contrib.control_flow.scan import _subs_wrapper, scan_wrapper
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.ops.pytree import PytreeTrace

from ppl_em.util import site_error


def kinds(carry: Any) -> Any:
    """The structure of a carry, and the shapes and dtypes in it."""
    leaves, structure = jax.tree.flatten(carry)
    return structure, [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]


def scan_from_any_start(
    f: Callable,
    init: Any,
    xs: Any,
    length: int | None,
    reverse: bool,
    rng_key: Any = None,
    substitute_stack: Any = (),
    **options: Any,
) -> tuple:
    """What NumPyro's `scan_wrapper` does, also if the carry of step 2 is of a new kind."""
    size = jnp.shape(jax.tree.leaves(xs)[0])[0] if length is None else length

    def step(carry: Any, x: Any) -> tuple:
        i, key, carry = carry
        key, own = (None, None) if key is None else jax.random.split(key)
        program = handlers.infer_config(f, lambda _: {"_scan_current_index": i})
        program = program if own is None else handlers.seed(program, own)
        for kind, values in substitute_stack:
            at_step = partial(_subs_wrapper, values, i, size)
            if kind == "condition":
                program = handlers.condition(program, condition_fn=at_step)
            else:
                program = handlers.substitute(program, substitute_fn=at_step)
        with handlers.block(), handlers.trace() as trace:
            carry, output = program(carry, x)
        return (i + 1, key, jax.tree.map(jnp.asarray, carry)), (PytreeTrace(trace), output)

    def usual() -> tuple:
        return scan_wrapper(f, init, xs, length, reverse, rng_key, substitute_stack, **options)

    if not size or reverse:
        return usual()
    now = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], xs)
    carry, (trace, output) = step((jnp.asarray(0), rng_key, init), now)
    begun, found = kinds(init), kinds(carry[2])
    if begun == found or (begun[0] != found[0] and not _has_none(init)):
        return usual()
    first: dict[str, Any] = jax.tree.map(jnp.asarray, trace).trace
    rest: dict[str, Any] = {}
    outputs = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], output)
    if size > 1:
        later = jax.tree.map(lambda leaf: jnp.asarray(leaf)[1:], xs)
        others: Any
        carry, others = jax.lax.scan(step, carry, later, size - 1)
        rest, outputs = others[0].trace, jax.tree.map(_stacked, output, others[1])
    summed = any(_is_sample(s) and _is_summed(s) for s in first.values())
    joined = {name: _joined(site, rest.get(name), size, summed) for name, site in first.items()}
    return carry, (PytreeTrace({**rest, **joined}), outputs)


def _has_none(carry: Any) -> bool:
    return any(leaf is None for leaf in jax.tree.leaves(carry, is_leaf=lambda leaf: leaf is None))


def _is_sample(site: dict[str, Any]) -> bool:
    return site["type"] == "sample"


def _is_summed(site: dict[str, Any]) -> bool:
    return not site["is_observed"] and site["fn"].support.is_discrete


def _joined(
    first: dict[str, Any], rest: dict[str, Any] | None, size: int, summed: bool
) -> dict[str, Any]:
    """One site for all steps, of a site in the first step and in the others.

    Where discrete sites are `summed` out, laws are read off the steps themselves, not from here.
    """
    if first["type"] not in ("sample", "deterministic"):
        return first
    if rest is None and size > 1:
        raise site_error(
            first["name"],
            "it is in the first step of its `scan` only",
            "Give it the name that it has in other steps, or draw it before the `scan`",
        )
    if rest is None:
        site = {**first, "value": first["value"][None]}
        if _is_sample(first):
            site["fn"] = promote_batch_shape(jax.tree.map(lambda leaf: leaf[None], first["fn"]))
        return site
    site = {**rest, "value": _stacked(first["value"], rest["value"])}
    if _is_sample(first):
        law: Any = rest["fn"]
        kind: Any = jax.tree.structure(first["fn"])
        if kind == jax.tree.structure(law):
            law = jax.tree.map(_stacked, first["fn"], law)
        elif summed:
            law = jax.tree.map(lambda leaf: jnp.concatenate([leaf[:1], leaf]), law)
        else:
            raise site_error(
                first["name"],
                f"its law is a {type(first['fn']).__name__} in the first step of its `scan` and a "
                f"{type(law).__name__} of another kind or shape later",
                "Write both as one law of one shape",
            )
        site["fn"] = promote_batch_shape(law)
    return site


def _stacked(first: Any, rest: jax.Array) -> jax.Array:
    """The array of step one ahead of those of the others."""
    return jnp.concatenate([jnp.broadcast_to(first, (1, *rest.shape[1:])), rest])
