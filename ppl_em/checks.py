"""What a traced model and the options for its sites must satisfy before EM looks at them."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

from ppl_em.params import Params, check_value, is_inside
from ppl_em.validation import ModelError, check_known, check_shape, site_error

Site = dict[str, Any]
Trace = dict[str, Site]


def is_latent(site: Site) -> bool:
    """Whether a site is an unobserved sample site."""
    return site["type"] == "sample" and not site["is_observed"]


def check_model(trace: Trace, model: Callable) -> None:
    for name, site in trace.items():
        if site["type"] == "mutable":
            raise site_error(
                name,
                "it is a mutable site, whose value changes from run to run",
                "EM needs a fixed log-density: remove it or make it a parameter",
            )
        if site["type"] == "plate" and site["args"][1] is not None:
            size, subsample = site["args"][:2]
            if subsample < size:
                raise site_error(
                    name,
                    f"the plate sub-samples {subsample} of {size} rows",
                    "Sub-sampled plates are not supported: use the whole plate",
                )
        if (
            is_latent(site)
            and site["fn"].support.is_discrete
            and not site["fn"].has_enumerate_support
        ):
            raise site_error(
                name,
                f"a discrete latent {type(site['fn']).__name__} has no finite support to sum over",
                "Use a distribution with enumerable support (a truncated one, say), or integrate "
                "it out in the model",
            )
    if not any(s["type"] == "sample" and s["is_observed"] for s in trace.values()):
        name = getattr(model, "__name__", "model")
        raise ModelError(
            f"Model '{name}': nothing is observed, so there is no likelihood. Pass the data "
            f"(`obs=` sites that received None count as latent)."
        )


def check_options(
    trace: Trace, map_sites: tuple, fixed: Params, narrower: dict, init_params: Params
) -> tuple[Params, Params]:
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
    for option, values in (("fixed", fixed), ("init_params", init_params)):
        for name, value in values.items():
            prototype = trace[name]["value"]
            if name in latent_names and trace[name]["fn"].support.is_discrete:
                check_shape(name, option, np.shape(value), np.shape(prototype))
                values[name] = jnp.asarray(value)
            else:
                values[name] = check_value(name, option, value, prototype)
    return fixed, init_params


def check_observations(trace: Trace) -> None:
    for name, site in trace.items():
        if site["type"] != "sample" or not site["is_observed"] or site["value"] is None:
            continue
        missing = np.isnan(np.asarray(site["value"], dtype=float))
        mask = getattr(site["fn"], "_mask", True)
        event = (1,) * site["fn"].event_dim
        if not isinstance(mask, bool):
            mask = np.asarray(mask).reshape(np.shape(mask) + event)
        if np.any(missing & np.asarray(mask)):
            raise site_error(
                name,
                f"{int(np.sum(missing & np.asarray(mask)))} of its observed values are NaN",
                "Drop these rows, or pass `obs_mask=` so that they become latent",
            )
