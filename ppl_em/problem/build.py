"""Build a Problem: run the model, give every site its role, and refuse what cannot be fitted."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints

from ppl_em.params import Params, ParamSpace, as_value, check_start, make_site
from ppl_em.problem.arguments import Arguments, split_arguments
from ppl_em.problem.checks import (
    Site,
    Trace,
    check_model,
    check_observations,
    check_options,
    is_factor,
    is_latent,
    param_constraint,
)
from ppl_em.problem.probe import probe
from ppl_em.problem.problem import DiscreteSite, LatentSite, Problem, ProblemSpec
from ppl_em.problem.subsampling import Plate, Whole
from ppl_em.problem.terms import density_and_gradients
from ppl_em.problem.trace import run_model
from ppl_em.util import ModelError, Static, check_call, check_mapping, content_key, site_error

logger = logging.getLogger("ppl_em")


def build_problem(
    rng_key: jax.Array,
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    *,
    map_sites: Iterable[str] = (),
    fixed: Params | None = None,
    constraints: dict[str, constraints.Constraint] | None = None,
    init_params: Params | None = None,
    by_term: bool = False,
) -> tuple[Problem, Params]:
    """Classify the sites of `model` on its data, and check that EM can fit it.

    Parameters
    ----------
    rng_key
        Seeds initial values that the model leaves to chance.
    model, args, kwargs
        A NumPyro model and its arguments.
    map_sites, fixed, constraints, init_params
        As in `ppl_em.EM` and `EM.run`.
    by_term
        Whether the fit will tell the terms of the log-joint apart, as Monte Carlo EM does.

    Returns
    -------
    tuple
        The problem, and the initial values of all its parameters.

    Raises
    ------
    ModelError
        One line per cause, naming the site, the fact and the remedy.
    """
    map_sites, fixed = tuple(map_sites), check_mapping("fixed", fixed)
    narrower = check_mapping("constraints", constraints)
    init_params = check_mapping("init_params", init_params)
    check_call(model, args, kwargs)
    trace = None
    plates: dict[str, Plate] = {}  # sub-sampled ones, which are made whole
    if not (map_sites or fixed or init_params):
        with contextlib.suppress(ModelError):  # it comes again, after checks that may say more
            trace = run_model(model, rng_key, args, kwargs, {}, validate=True, found=plates)
    raw = trace or run_model(model, rng_key, args, kwargs, {}, found=plates)
    model = Whole(model, tuple(plates.values())) if plates else model
    check_model(raw, model)
    fixed, init_params = check_options(raw, map_sites, fixed, narrower, init_params)
    start = {**init_params, **fixed}
    if trace is None:
        trace = run_model(model, rng_key, args, kwargs, start, spread=map_sites, validate=True)
    check_observations(trace)
    space, values = _parameters(trace, map_sites, fixed, narrower, model)
    latents = {
        name: site
        for name, site in trace.items()
        if is_latent(site) and name not in values and name not in fixed
    }
    continuous = {k: v for k, v in latents.items() if not v["fn"].support.is_discrete}
    discrete = {k: v for k, v in latents.items() if v["fn"].support.is_discrete}
    moving = _moving_supports(model, rng_key, args, kwargs, trace, space, values, fixed, continuous)
    sites = tuple(_latent_site(s, s["name"] not in moving) for s in continuous.values())
    frames = [f for s in trace.values() if s["type"] == "sample" for f in s["cond_indep_stack"]]
    spec = ProblemSpec(
        model,
        Arguments(None, ()),
        space,
        sites,
        tuple(_discrete_site(site) for site in discrete.values()),
        tuple(k for k, s in trace.items() if s["type"] == "sample" and s["is_observed"]),
        min([f.dim for f in frames if f.dim is not None], default=0) - 1,
        factors=tuple(k for k, s in trace.items() if is_factor(s)),
        by_term=by_term,
    )
    parts = [_unconstrained_start(continuous[site.name]) for site in sites]
    u = jax.device_put(np.concatenate(parts)) if parts else jnp.zeros((0,))
    problem = _with_arguments(spec, args, kwargs, fixed, values, u)
    if any("_scan_current_index" in site["infer"] for site in trace.values() if "infer" in site):
        problem = _side_by_side(problem, values)
    problem = probe(rng_key, problem, values)
    return problem, {**values, **fixed}


def _parameters(
    trace: Trace, map_sites: tuple, fixed: Params, narrower: dict, model: Callable
) -> tuple[ParamSpace, Params]:
    values: Params = {}
    own_sites, sites = [], []
    for name, site in trace.items():
        is_sample = name in map_sites
        if name in fixed or not (site["type"] == "param" or is_sample):
            continue
        values[name] = as_value(site["value"])
        own = site["fn"].support if is_sample else param_constraint(site)
        own_sites.append(make_site(name, values[name], own, is_sample))
        support = narrower.get(name, own)
        sites.append(make_site(name, values[name], support, is_sample))
    if not sites:
        names = [k for k, s in trace.items() if is_latent(s) and k not in fixed]
        raise ModelError(
            f"Model '{getattr(model, '__name__', 'model')}': it has no free parameters to "
            f"maximise. Make some sites `numpyro.param`, or name sample sites in `map_sites` "
            f"(it has: {', '.join(names) or 'none'})."
        )
    space = ParamSpace(tuple(sites))
    check_start(ParamSpace(tuple(own_sites)), values)
    if narrower:
        check_start(space, values)
    return space, values


@jax.jit(static_argnums=0)
def _shifted(space: ParamSpace, values: Params) -> Params:
    """Other valid values of the parameters, near the initial ones."""
    x = space.unconstrain(values)
    return space.constrain(x + 0.1 * (1 + jnp.arange(x.size) / (1 + x.size)))


def _support_key(site: Site) -> Any:
    support = site["fn"].support
    return (type(support).__name__, content_key(support), np.shape(site["value"]))


def _moving_supports(
    model, rng_key, args, kwargs, trace, space: ParamSpace, values: Params, fixed, continuous
) -> set[str]:
    """Latents whose support moves with other latents; raise if it moves with parameters."""
    supports = [trace[k]["fn"].support for k in continuous]
    supports += [s.constraint for s in space.sites if s.is_sample]
    if all(_has_no_numbers(support) for support in supports):
        return set()
    shifted = _shifted(space, values)
    at_same_latents = {k: s["value"] for k, s in trace.items() if is_latent(s) and k not in values}
    other = run_model(model, rng_key, args, kwargs, {**at_same_latents, **shifted, **fixed})
    moved = {k: _moved(s) for k, s in continuous.items()}
    drawn = run_model(model, rng_key, args, kwargs, {**at_same_latents, **moved, **values, **fixed})
    moving = set()
    for name in [*continuous, *(s.name for s in space.sites if s.is_sample)]:
        key = _support_key(trace[name])
        if name not in other or key != _support_key(other[name]):
            raise site_error(
                name,
                f"its support {trace[name]['fn'].support} or its shape changes with the parameters",
                "Rescale it: give the latent a fixed support (a unit interval, say) and apply the "
                "parameter afterwards",
            )
        if name in drawn and key != _support_key(drawn[name]):
            if name in space.names:
                raise site_error(
                    name,
                    "its support changes with other sites, so it cannot be in `map_sites`",
                    "Rescale it to a fixed support",
                )
            moving.add(name)
    return moving


def _has_no_numbers(support: Any) -> bool:
    """Whether a support is one of NumPyro's own, or has no bounds that a model could compute."""
    named = any(support is known for known in vars(constraints).values())
    return named or not jax.tree.leaves(support)


def _moved(site: Site) -> jax.Array:
    """Another value of a continuous site, inside its support."""
    transform = biject_to(site["fn"].support)
    return transform(transform.inv(jnp.asarray(site["value"])) + 0.3)


def _latent_site(site: Site, fixed_support: bool) -> LatentSite:
    fn = site["fn"]
    transform = biject_to(fn.support)
    shape = np.shape(site["value"])
    shape_u = jax.eval_shape(transform.inv, site["value"]).shape
    event_u = len(shape_u) - (len(shape) - fn.event_dim)
    frames = sorted((f for f in site["cond_indep_stack"] if f.dim is not None), key=lambda f: f.dim)
    return LatentSite(
        site["name"],
        Static(fn.support, (type(fn.support).__name__, content_key(fn.support)))
        if fixed_support
        else None,
        shape,
        shape_u,
        tuple((f.name, f.dim - event_u) for f in frames),
        site_dims(site, shape),
    )


def _discrete_site(site: Site) -> DiscreteSite:
    shape = np.shape(site["value"])
    values = np.asarray(site["fn"].enumerate_support(expand=False))
    return DiscreteSite(
        site["name"],
        shape,
        site_dims(site, shape),
        Static(values.reshape((len(values), *site["fn"].event_shape))),
        "_scan_current_index" in site["infer"],
    )


def site_dims(site: Site, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Name every axis of a site: plates by their names, `time_T` in a scan, else `NAME_dim_i`."""
    names = [f"{site['name']}_dim_{i}" for i in range(len(shape))]
    if shape and "_scan_current_index" in site["infer"]:
        names[0] = f"time_{shape[0]}"
    event = site["fn"].event_dim
    for frame in site["cond_indep_stack"]:
        axis = len(shape) - event + frame.dim if frame.dim is not None else -1
        if 0 <= axis < len(shape) and shape[axis] == frame.size:
            names[axis] = frame.name
    return tuple(names)


def _unconstrained_start(site: Site) -> np.ndarray:
    value = jnp.asarray(site["value"], jnp.result_type(float))
    return np.ravel(biject_to(site["fn"].support).inv(value))


def _with_arguments(
    spec: ProblemSpec, args: tuple, kwargs: dict, fixed: Params, values: Params, u: jax.Array
) -> Problem:
    x = spec.space.unconstrain(values)

    def candidate(arguments: Arguments, leaves: tuple) -> Problem:
        return Problem(leaves, fixed, u, dataclasses.replace(spec, arguments=arguments))

    def traceable(arguments: Arguments, leaves: tuple) -> None:
        jax.eval_shape(density_and_gradients, candidate(arguments, leaves), x, u)

    return candidate(*split_arguments(args, kwargs, traceable))


def _side_by_side(problem: Problem, values: Params) -> Problem:
    """Let the steps of the model's scans be evaluated side by side, if they are of that kind."""
    candidate = dataclasses.replace(problem, spec=dataclasses.replace(problem.spec, scans=True))
    try:
        x = problem.spec.space.unconstrain(values)
        jax.eval_shape(density_and_gradients, candidate, x, problem.start)
    except Exception as error:
        if problem.spec.discrete:
            raise
        logger.info("scans are followed step by step: %s", str(error).split("\n")[0])
        return problem
    return candidate
