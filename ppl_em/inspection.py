"""Build a Problem: run the model, give every site its role, and refuse what cannot be fitted."""

import dataclasses
import logging
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.infer import init_to_median
from numpyro.infer.util import compute_log_probs

from ppl_em import params as params_module
from ppl_em.arguments import Arguments, split_arguments
from ppl_em.params import Params, ParamSpace
from ppl_em.problem import DiscreteSite, LatentSite, Problem, ProblemSpec
from ppl_em.static import Static, content_key
from ppl_em.validation import (
    ModelError,
    check_call,
    check_known,
    check_shape,
    site_error,
)

logger = logging.getLogger("ppl_em")

Site = dict[str, Any]
Trace = dict[str, Site]


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

    Returns
    -------
    tuple
        The problem, and the initial values of all its parameters.

    Raises
    ------
    ModelError
        One line per cause, naming the site, the fact and the remedy.
    """
    map_sites, fixed = tuple(map_sites), dict(fixed or {})
    narrower, init_params = dict(constraints or {}), dict(init_params or {})
    check_call(model, args, kwargs)
    raw = _run(model, rng_key, args, kwargs, {})
    _refuse_unsupported(raw, model)
    fixed, init_params = _check_names(raw, map_sites, fixed, narrower, init_params)

    trace = _run(model, rng_key, args, kwargs, {**init_params, **fixed})
    _check_observations(trace)
    space, values = _parameters(trace, map_sites, fixed, narrower, model)
    latents = {
        name: site
        for name, site in trace.items()
        if _is_latent(site) and name not in values and name not in fixed
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
    )
    start = [_unconstrained_start(continuous[site.name]) for site in sites]
    u = jnp.concatenate(start) if start else jnp.zeros((0,))
    problem = _with_arguments(spec, args, kwargs, fixed, values, u)
    problem = _probe(rng_key, problem, values)
    return problem, {**values, **fixed}


def _run(
    model: Callable, rng_key: jax.Array, args: tuple, kwargs: dict, values: Params, median=True
) -> Trace:
    program = handlers.seed(model, rng_key)
    if median:
        program = handlers.substitute(program, substitute_fn=_continuous(init_to_median()))
    program = handlers.substitute(program, data=values)
    return handlers.trace(program).get_trace(*args, **kwargs)


def _continuous(strategy: Callable) -> Callable:
    def substitute_fn(site: Site) -> Any:
        if site["type"] == "sample" and not site["is_observed"] and site["fn"].support.is_discrete:
            return None
        return strategy(site)

    return substitute_fn


def _is_latent(site: Site) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


def _refuse_unsupported(trace: Trace, model: Callable) -> None:
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
            _is_latent(site)
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


def _check_names(
    trace: Trace, map_sites: tuple, fixed: Params, narrower: dict, init_params: Params
) -> tuple[Params, Params]:
    param_names = [k for k, s in trace.items() if s["type"] == "param"]
    latent_names = [k for k, s in trace.items() if _is_latent(s)]
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
                values[name] = params_module.check_value(name, option, value, prototype)
    return fixed, init_params


def _check_observations(trace: Trace) -> None:
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


def _parameters(
    trace: Trace, map_sites: tuple, fixed: Params, narrower: dict, model: Callable
) -> tuple[ParamSpace, Params]:
    values: Params = {}
    own_sites, sites = [], []
    for name, site in trace.items():
        is_sample = name in map_sites
        if name in fixed or not (site["type"] == "param" or is_sample):
            continue
        values[name] = params_module.as_value(site["value"])
        own = site["fn"].support if is_sample else site["kwargs"].get("constraint")
        own = constraints.real if own is None else own
        own_sites.append(params_module.make_site(name, values[name], own, is_sample))
        support = narrower.get(name, own)
        sites.append(params_module.make_site(name, values[name], support, is_sample))
    if not sites:
        names = [k for k, s in trace.items() if _is_latent(s) and k not in fixed]
        raise ModelError(
            f"Model '{getattr(model, '__name__', 'model')}': it has no free parameters to "
            f"maximise. Make some sites `numpyro.param`, or name sample sites in `map_sites` "
            f"(it has: {', '.join(names) or 'none'})."
        )
    space = ParamSpace(tuple(sites))
    params_module.check_start(ParamSpace(tuple(own_sites)), values)
    if narrower:
        params_module.check_start(space, values)
    return space, values


@jax.jit(static_argnums=0)
def _unconstrain(space: ParamSpace, values: Params) -> jax.Array:
    return space.unconstrain(values)


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
    """Names of latents whose support moves with other latents; raise if it moves with parameters."""
    shifted = _shifted(space, values)
    at_same_latents = {k: s["value"] for k, s in trace.items() if _is_latent(s) and k not in values}
    other = _run(model, rng_key, args, kwargs, {**at_same_latents, **shifted, **fixed})
    drawn = _run(model, rng_key, args, kwargs, {**values, **fixed}, median=False)
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
        _dims(site, shape),
    )


def _discrete_site(site: Site) -> DiscreteSite:
    shape = np.shape(site["value"])
    values = np.asarray(site["fn"].enumerate_support(expand=False))
    return DiscreteSite(
        site["name"],
        shape,
        _dims(site, shape),
        Static(values.reshape((len(values), *site["fn"].event_shape))),
        "_scan_current_index" in site["infer"],
    )


def _dims(site: Site, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Name every axis of a site: plates by their names, the rest `NAME_dim_i`."""
    names = [f"{site['name']}_dim_{i}" for i in range(len(shape))]
    event = site["fn"].event_dim
    for frame in site["cond_indep_stack"]:
        axis = len(shape) - event + frame.dim if frame.dim is not None else -1
        if 0 <= axis < len(shape) and shape[axis] == frame.size:
            names[axis] = frame.name
    return tuple(names)


def _unconstrained_start(site: Site) -> jax.Array:
    value = jnp.asarray(site["value"], jnp.result_type(float))
    return jnp.ravel(biject_to(site["fn"].support).inv(value))


def _with_arguments(
    spec: ProblemSpec, args: tuple, kwargs: dict, fixed: Params, values: Params, u: jax.Array
) -> Problem:
    x = _unconstrain(spec.space, values)

    def candidate(arguments: Arguments, leaves: tuple) -> Problem:
        return Problem(leaves, fixed, u, dataclasses.replace(spec, arguments=arguments))

    def traceable(arguments: Arguments, leaves: tuple) -> None:
        jax.eval_shape(_density_and_gradients, candidate(arguments, leaves), x, u)

    return candidate(*split_arguments(args, kwargs, traceable))


def _density(problem: Problem, x: jax.Array, u: jax.Array) -> jax.Array:
    params = problem.constrain(x)
    return problem.log_joint(params, problem.constrain_latents(params, u))


def _density_and_gradients(problem: Problem, x: jax.Array, u: jax.Array) -> tuple:
    return jax.value_and_grad(_density, argnums=(1, 2))(problem, x, u)


@jax.jit
def _density_at_points(problem: Problem, x: jax.Array, points: jax.Array) -> tuple:
    return jax.vmap(lambda u: _density_and_gradients(problem, x, u))(points)


def _probe(rng_key: jax.Array, problem: Problem, values: Params) -> Problem:
    """Evaluate the log-joint near its start: is it finite, and what does it depend on?"""
    x, u = _unconstrain(problem.spec.space, values), problem.start
    noise = jax.random.normal(rng_key, (8, *u.shape), u.dtype)
    scales = jnp.asarray([0.0, 0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0])[:, None]
    points = u + scales * noise
    density, (by_param, by_latent) = _density_at_points(problem, x, points)
    good = np.isfinite(density) & np.all(np.isfinite(by_param), 1) & np.all(np.isfinite(by_latent), 1)
    if not good.any():
        raise _not_finite(problem, values, points[0])
    by_param, by_latent = np.asarray(by_param)[good], np.asarray(by_latent)[good]
    _refuse_unused(problem, np.all(by_param == 0, axis=0))
    idle = np.all(by_latent == 0, axis=0)
    spec = problem.spec
    if idle.any():
        logger.info("%d latent coordinates touch nothing (imputed where observed)", idle.sum())
        spec = dataclasses.replace(spec, idle=Static(idle))
    return dataclasses.replace(problem, start=points[int(np.argmax(good))], spec=spec)


def _refuse_unused(problem: Problem, unused: np.ndarray) -> None:
    space = problem.spec.space
    flags = space.unravel(jnp.asarray(unused, jnp.result_type(float)))
    for name in space.names:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(flags[name])]
        if leaves and all(np.all(leaf == 1) for leaf in leaves):
            raise site_error(
                name,
                "the parameter touches no log-density when the latents are held fixed, so no "
                "M-step can move it",
                "Fix it with `fixed`, remove it, or write the model so that the parameter enters "
                "a density (undo a reparameterisation, say)",
            )


def _not_finite(problem: Problem, values: Params, u: jax.Array) -> ModelError:
    params = {**values, **problem.fixed}
    args, kwargs = problem.arguments
    program = handlers.seed(problem.at(params), 0)
    latents = problem.constrain_latents(params, u)
    terms, _ = compute_log_probs(program, args, kwargs, latents)
    for name, term in terms.items():
        if not bool(jnp.isfinite(term)):
            return site_error(
                name,
                f"its log-density at the initial values is {float(term)}",
                "Check that the data lie in its support, or start elsewhere with `init_params`",
            )
    name = problem.spec.space.names[0]
    return site_error(
        name,
        "the gradient of the log-joint is not finite at the initial values",
        "Start elsewhere with `init_params`, away from the edges of the supports",
    )
