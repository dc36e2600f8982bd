"""Run a model once, on the host: its sites, or why it cannot be used."""

import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.distribution import validation_enabled

from ppl_em.params import Params, check_numbers
from ppl_em.problem.checks import Trace
from ppl_em.problem.faults import failed, guilty, unusable
from ppl_em.problem.initial_values import init_near_mean
from ppl_em.problem.prepared import Prepared
from ppl_em.problem.subsampling import AllRows, Plate, check_rows, whole_error
from ppl_em.util import ModelError, at_once


def accepts(model: Callable, kwargs: dict) -> bool:
    """Whether a model runs on arguments, and observes numbers."""
    program = handlers.seed(handlers.substitute(model, substitute_fn=init_near_mean(())), 0)
    with contextlib.suppress(Exception), validation_enabled(False):
        trace = handlers.trace(program).get_trace(**kwargs)
        for name, site in trace.items():
            if site["type"] == "sample" and site["is_observed"]:
                check_numbers(name, "its `obs`", site["value"])
        return True
    return False


def refused(model: Callable, args: tuple, kwargs: dict, values: Params) -> str:
    """What a distribution of the model says of values that it does not accept; empty if nothing."""
    program = handlers.substitute(model, substitute_fn=init_near_mean(()))
    values = jax.device_put(jax.tree.map(np.asarray, values))
    tracer = handlers.trace(handlers.seed(handlers.substitute(program, data=values), 0))
    if _at_once(tracer, args, kwargs, validate=True) is not None:
        return ""
    try:
        with validation_enabled(True):
            tracer.get_trace(*args, **kwargs)
    except ValueError as error:
        return str(error).rstrip(".") if "got invalid" in str(error) else ""
    return ""


def first_run(
    model: Prepared,
    rng_key: jax.Array,
    args: tuple,
    kwargs: dict,
    found: dict[str, Plate],
    validate: bool = False,
) -> tuple[Prepared, Trace]:
    """All sites of a model as it starts, and the model, from now on with steps that may differ.

    Arguments as in `run_model`.
    """
    try:
        return model, run_model(model, rng_key, args, kwargs, {}, validate=validate, found=found)
    except (TypeError, ModelError) as error:
        if "scan body function carry" not in str(error):
            raise
        model = dataclasses.replace(model, any_start=True)
    return model, run_model(model, rng_key, args, kwargs, {}, validate=validate, found=found)


def run_model(
    model: Callable,
    rng_key: jax.Array,
    args: tuple,
    kwargs: dict,
    values: Params,
    spread: tuple[str, ...] = (),
    validate: bool = False,
    found: dict[str, Plate] | None = None,
) -> Trace:
    """All sites of a model at `values`, its latents at their start, its plates whole.

    Parameters
    ----------
    model, rng_key, args, kwargs
        As in `build_problem`.
    values
        Of parameters and latents, by site.
    spread
        As in `init_near_mean`.
    validate
        Let distributions check their parameters.
    found
        Collects the sub-sampled plates, by name.

    Raises
    ------
    ModelError
        If one of the model's sites makes it fail, or its data do not follow its plates.
    """
    plates: dict[str, Plate] = {} if found is None else found

    def run(whole: AllRows) -> handlers.trace:
        program = handlers.seed(whole, rng_key)
        program = handlers.substitute(program, substitute_fn=init_near_mean(spread))
        return handlers.trace(handlers.substitute(program, data=values))

    seen: dict[str, Plate] = {}
    tracer = run(AllRows(model, None, plates))
    with contextlib.nullcontext() if validate else validation_enabled(False):
        try:
            trace = _at_once(run(AllRows(model, None, seen)), args, kwargs, validate)
            if trace is None:
                trace = tracer.get_trace(*args, **kwargs)
            else:
                plates.update(seen)
        except ModelError:
            raise
        except Exception as error:

            def works(*names: str) -> bool:
                with contextlib.suppress(Exception):
                    run(AllRows(model, names)).get_trace(*args, **kwargs)
                    return True
                return False

            refused = [plate for plate in plates.values() if not works(plate.name)]
            refused = refused or [*plates.values()]
            if refused and works():
                raise whole_error(refused[0], str(error).split("\n")[0].rstrip(".")) from error

            def again(args: tuple, kwargs: dict) -> None:
                run(AllRows(model)).get_trace(*args, **kwargs)

            reason = guilty(model, args, kwargs, error, again)
            reason = reason or unusable(model, tracer.trace, error)
            raise (reason or failed(model, args, kwargs, error)) from error
    for site in trace.values():
        if plates and site["type"] == "sample":
            check_rows(site, plates.values())
    return trace


def _at_once(tracer: handlers.trace, args: tuple, kwargs: dict, validate: bool) -> Trace | None:
    """All sites, their arrays on the host, from one program; None where that does not work.

    The model then runs as it is written, and says what is wrong with it, if anything is.
    """

    def run() -> tuple[Trace, list[jax.Array]]:
        trace = tracer.get_trace(*args, **kwargs)
        laws = [site["fn"] for site in trace.values() if site["type"] == "sample" and validate]
        return trace, [jnp.all(good) for law in laws for good in _are_valid(law)]

    with contextlib.suppress(Exception):
        trace, good = jax.tree.map(_on_host, at_once(run))
        if all(good):
            return OrderedDict((name, trace[name]) for name in tracer.trace)
    return None


def _on_host(leaf: Any) -> Any:
    is_number = isinstance(leaf, jax.Array) and not jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )
    return np.asarray(leaf) if is_number else leaf


def _are_valid(law: Any) -> Iterator[jax.Array]:
    """Whether parameters of a distribution, and of those that it is made of, are valid."""
    for part in vars(law).values():
        for inner in part if isinstance(part, list | tuple) else [part]:
            if isinstance(inner, Distribution):
                yield from _are_valid(inner)
    for name, value in law.get_args().items():
        constraint = law.arg_constraints[name]
        if not constraints.is_dependent(constraint):
            yield constraint(value)
