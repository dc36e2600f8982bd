"""What a traced model and the options for its sites must satisfy before EM looks at them."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Unit, constraints

from ppl_em.discrete import MAX_VALUES, is_delta, mask_of, num_values
from ppl_em.params import (
    Params,
    ParamSpace,
    as_value,
    check_start,
    check_value,
    is_inside,
    make_site,
)
from ppl_em.util import ModelError, brief, check_known, check_shape, site_error

Site = dict[str, Any]
Trace = dict[str, Site]


def is_latent(site: Site) -> bool:
    """Whether a site is an unobserved sample site, other than a value by the name of Delta."""
    return site["type"] == "sample" and not site["is_observed"] and not is_delta(site["fn"])


def _is_discrete(site: Site) -> bool:
    return is_latent(site) and site["fn"].support.is_discrete


def is_factor(site: Site) -> bool:
    """Whether a site is a `numpyro.factor` statement."""
    fn = site.get("fn")
    return site["type"] == "sample" and isinstance(getattr(fn, "base_dist", fn), Unit)


def param_constraint(site: Site) -> constraints.Constraint:
    """The constraint that a `numpyro.param` site declares."""
    constraint = site["kwargs"].get("constraint")
    return constraints.real if constraint is None else constraint


def unusable(model: Callable, so_far: Trace, error: Exception) -> ModelError | None:
    """What to tell the user of an `error` that NumPyro raised in the model, after some sites.

    None for errors that are not about sites: those are the model's own.
    """
    name = getattr(model, "__name__", type(model).__name__)
    if "unique names" in str(error):
        return ModelError(f"Model '{name}': {error}. Rename one of the two sites.")
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
        f"Model '{name}': {str(error).rstrip('.')}, in the statement {where}. Check the initial "
        f"values of its parameters, or start elsewhere with `init_params`."
    )


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


def check_model(trace: Trace, model: Callable) -> None:
    """Raise if the model, whatever the options, is not one that EM can fit."""
    for name, site in trace.items():
        if site["type"] == "mutable":
            raise site_error(
                name,
                "it is a mutable site, whose value changes from run to run",
                "EM needs a fixed log-density: remove it or make it a parameter",
            )
        count = num_values(site["fn"]) if _is_discrete(site) else 1
        if count == math.inf:
            raise site_error(
                name,
                f"a discrete latent {type(site['fn']).__name__} has no finite support to sum over",
                "Use a distribution with enumerable support (a truncated one, say), or integrate "
                "it out in the model",
            )
        if count > MAX_VALUES and site["fn"].event_shape:
            raise site_error(
                name,
                f"its {site['fn'].event_shape} elements have {count:,} joint values; at most "
                f"{MAX_VALUES:,} are summed over",
                "Put independent elements in a `numpyro.plate` instead of `.to_event`",
            )
    if any(_is_discrete(site) for site in trace.values()):
        _check_plates(trace)
    if not any(s["type"] == "sample" and s["is_observed"] for s in trace.values()):
        name = getattr(model, "__name__", "model")
        raise ModelError(
            f"Model '{name}': nothing is observed, so there is no likelihood. Pass the data "
            f"(`obs=` sites that received None count as latent)."
        )


def _check_plates(trace: Trace) -> None:
    """Raise if an axis is in no plate: enumeration could not tell it from a discrete site."""
    sites = [site for site in trace.values() if site["type"] == "sample"]
    if any("_scan_current_index" in site["infer"] for site in sites):
        return
    for site in sites:
        declared = {frame.dim for frame in site["cond_indep_stack"]}
        value_shape = np.shape(site["value"])
        own_shape = value_shape[: len(value_shape) - site["fn"].event_dim]
        shape = np.broadcast_shapes(site["fn"].batch_shape, own_shape)
        free = [dim for dim in range(-len(shape), 0) if shape[dim] > 1 and dim not in declared]
        if free:
            raise site_error(
                site["name"],
                f"its batch shape is {shape} and axis {free[0]} is in no plate, which models with "
                f"discrete latents need",
                "Put the site in `numpyro.plate`, or make the axis part of the event with "
                "`.to_event`",
            )


def check_options(
    trace: Trace, map_sites: tuple, fixed: Params, narrower: dict, init_params: Params
) -> tuple[Params, Params]:
    """Raise if an option names a site wrongly, or gives it a value that it cannot have.

    Returns
    -------
    tuple
        `fixed` and `init_params` with their values converted to arrays.
    """
    param_names = [k for k, s in trace.items() if s["type"] == "param"]
    latent_names = [k for k, s in trace.items() if is_latent(s)]
    check_known("map_sites", map_sites, latent_names, "latent sample site")
    check_known("fixed", fixed, param_names + latent_names, "parameter or latent sample site")
    check_known("constraints", narrower, [*param_names, *map_sites], "parameter")
    check_known("init_params", init_params, [*param_names, *map_sites], "parameter")
    for name in map_sites:
        if trace[name]["fn"].support.is_discrete:
            raise site_error(
                name,
                "`map_sites` names it, but it is discrete",
                "Only continuous sites can be maximised; leave it out and it is summed out",
            )
        if name in fixed:
            raise site_error(
                name, "both `fixed` and `map_sites` name it", "Keep it in one of the two"
            )
    for name, constraint in narrower.items():
        if not isinstance(constraint, constraints.Constraint):
            raise site_error(
                name,
                f"`constraints` gives it a {type(constraint).__name__}",
                "Pass one of `numpyro.distributions.constraints`",
            )
    for name in init_params:
        if name in fixed:
            raise site_error(
                name, "both `fixed` and `init_params` name it", "Keep it in one of the two"
            )
    for option, values in (("fixed", fixed), ("init_params", init_params)):
        for name, value in values.items():
            prototype = trace[name]["value"]
            if name in latent_names and trace[name]["fn"].support.is_discrete:
                check_shape(name, option, np.shape(value), np.shape(prototype))
                values[name] = jnp.asarray(value)
            else:
                values[name] = check_value(name, option, value, prototype)
    for name, value in fixed.items():
        site = trace[name]
        support = site["fn"].support if name in latent_names else param_constraint(site)
        if not is_inside(value, support):
            raise site_error(
                name,
                f"its `fixed` value {brief(value)} is outside its support {support}",
                "Hold it at a value inside",
            )
    return fixed, init_params


def check_observations(trace: Trace) -> None:
    """Raise if observed values are NaN where they are not masked."""
    for name, site in trace.items():
        if site["type"] != "sample" or not site["is_observed"] or site["value"] is None:
            continue
        _check_outcome_shape(site)
        missing = np.isnan(np.asarray(site["value"], dtype=float))
        mask = mask_of(site["fn"])
        event = (1,) * site["fn"].event_dim
        if not isinstance(mask, bool):
            mask = np.asarray(mask).reshape(np.shape(mask) + event)
        if np.any(missing & np.asarray(mask)):
            raise site_error(
                name,
                f"{int(np.sum(missing & np.asarray(mask)))} of its observed values are NaN",
                "Put the site in `numpyro.handlers.mask(mask=~jax.numpy.isnan(...))`, which leaves "
                "them out and stays exact",
            )


def _check_outcome_shape(site: Site) -> None:
    """Raise if outcomes are spread over an axis that is neither theirs nor a plate's.

    Outcomes of shape (n, 1) next to means of shape (n,) would count n times each.
    """
    law, shape = site["fn"], np.shape(site["value"])
    own = shape[: len(shape) - law.event_dim]
    if len(shape) < law.event_dim or math.prod(own) == 1:
        return
    try:
        joint = np.broadcast_shapes(own, law.batch_shape)
    except ValueError:
        return  # NumPyro says more
    in_plates = {frame.dim for frame in site["cond_indep_stack"]}
    ours, laws = (((1,) * (len(joint) - len(some)) + some) for some in (own, law.batch_shape))
    for axis in range(len(joint)):
        spread = ours[axis] == 1 < laws[axis] and axis - len(joint) not in in_plates
        if spread or (math.prod(joint) > max(math.prod(own), math.prod(law.batch_shape))):
            raise site_error(
                site["name"],
                f"its outcomes have shape {shape} and its law has batch shape {law.batch_shape}: "
                f"each outcome would count several times",
                f"Give both the same shape: `y.ravel()` or `y[:, 0]`, say, or predictors of shape "
                f"({own[0] if own else 1},)",
            )
