"""What a traced model and the options for its sites must satisfy before EM looks at them."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Unit, biject_to, constraints

from ppl_em.discrete import MAX_VALUES, is_delta, mask_of, num_values
from ppl_em.params import (
    Params,
    check_numbers,
    check_value,
    is_inside,
)
from ppl_em.util import ModelError, brief, brief_repr, check_known, check_shape, name_of, site_error

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


def check_model(trace: Trace, model: Callable) -> None:
    """Raise if the model, whatever the options, is not one that EM can fit."""
    for name, site in trace.items():
        if not isinstance(name, str) or not name:
            raise ModelError(
                f"Model '{name_of(model)}': the name of one of its sites is {brief_repr(name)}. "
                f"Pass a text."
            )
        if site["type"] == "param":
            check_param(name, site)
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
        raise ModelError(
            f"Model '{name_of(model)}': nothing is observed, so there is no likelihood. Pass the "
            f"data (`obs=` sites that received None count as latent)."
        )


def check_param(name: str, site: Site) -> None:
    """Raise if a parameter has no initial value, or a constraint that cannot be kept."""
    leaves = jax.tree.leaves(site["value"])
    if not leaves and site["value"] is None:
        raise site_error(
            name, "the parameter has no initial value", "Give `numpyro.param` one, 0.0 say"
        )
    check_numbers(name, "the initial value", site["value"])
    _check_support(name, "its constraint", param_constraint(site), site["value"])


def _check_support(name: str, whose: str, constraint: Any, value: Any) -> None:
    """Raise if values of a site cannot be moved in a constraint as unconstrained numbers are."""
    if not isinstance(constraint, constraints.Constraint):
        raise site_error(
            name,
            f"{whose} is a {type(constraint).__name__}",
            "Pass one of `numpyro.distributions.constraints`",
        )
    dims = min((np.ndim(leaf) for leaf in jax.tree.leaves(value)), default=0)
    try:
        biject_to(constraint)
        fits = not constraint.is_discrete and constraint.event_dim <= dims
    except NotImplementedError:
        fits = False
    if not fits:
        raise site_error(
            name,
            f"{whose} is {constraint}, which is not for real values of shape {_shape(value)}",
            "Pass one of `numpyro.distributions.constraints` that is continuous and of this shape",
        )


def _shape(value: Any) -> tuple[int, ...]:
    return np.shape(jax.tree.leaves(value)[0]) if jax.tree.leaves(value) else ()


def _check_plates(trace: Trace) -> None:
    """Raise if an axis is in no plate: enumeration could not tell it from a discrete site."""
    sites = [site for site in trace.values() if site["type"] == "sample"]
    scanned = [site for site in sites if "_scan_current_index" in site["infer"]]
    for site in scanned or sites:
        declared = {frame.dim for frame in site["cond_indep_stack"]}
        value_shape, steps = np.shape(site["value"]), 1 if scanned else 0  # axes of the scan's own
        own_shape = value_shape[steps : len(value_shape) - site["fn"].event_dim]
        shape = np.broadcast_shapes(site["fn"].batch_shape[steps:], own_shape)
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
    _refuse_elements("fixed", fixed, trace)
    _refuse_elements("init_params", init_params, trace)
    _refuse_elements("constraints", narrower, trace)
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
        _check_support(name, "what `constraints` gives it", constraint, trace[name]["value"])
    for name in init_params:
        if name in fixed:
            raise site_error(
                name, "both `fixed` and `init_params` name it", "Keep it in one of the two"
            )
    for option, values in (("fixed", fixed), ("init_params", init_params)):
        for name, value in values.items():
            prototype = trace[name]["value"]
            if name in latent_names and trace[name]["fn"].support.is_discrete:
                check_numbers(name, f"its value in `{option}`", value)
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


def _refuse_elements(option: str, values: dict[Any, Any], trace: Trace) -> None:
    """Raise if an option names an element of a parameter, `beta[1]`."""
    for name, value in values.items():
        base, bracket, index = str(name).partition("[")
        site = trace.get(base, {"type": "none"})
        if not bracket or name in trace or site["type"] != "param" or not _shape(site["value"]):
            continue
        remedy = f"Pass an array for the whole of '{base}'"
        if option != "init_params":
            bound = brief(value) if option == "fixed" else "..."
            remedy = f"Pass `constraints=[ppl_em.Constraint(lambda p: p['{base}'][{index}, "
            remedy += f"lower={bound}, upper={bound})]`"
        fact = f"`{option}` names it, but only whole parameters have names"
        raise site_error(str(name), fact, remedy)


def check_observations(trace: Trace) -> None:
    """Raise if observed values are no numbers, or NaN where they are not masked."""
    observed = [s for s in trace.values() if s["type"] == "sample" and s["is_observed"]]
    if observed and all(np.size(site["value"]) == 0 and not is_factor(site) for site in observed):
        raise site_error(observed[0]["name"], "it has no data: all outcomes are empty", "Pass some")
    for site in observed:
        name = site["name"]
        if site["value"] is None:
            continue
        if isinstance(site["value"], dict | set):
            kind = type(site["value"]).__name__
            raise site_error(name, f"its `obs` is a {kind}", "Pass an array")
        check_numbers(name, "its `obs`", site["value"])
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
