"""Build a Problem: run the model, give every site its role, and refuse what cannot be fitted."""

import contextlib
import dataclasses
import logging
import random
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints

from ppl_em.params import (
    Params,
    ParamSite,
    ParamSpace,
    as_value,
    check_start,
    is_inside,
    make_site,
)
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
from ppl_em.problem.derivatives import density_and_gradients, with_derivatives
from ppl_em.problem.faults import explained, no_gradient
from ppl_em.problem.fingerprint import program_of
from ppl_em.problem.indices import check_indices, traced_terms
from ppl_em.problem.masks import (
    check_masked_arrays,
    check_masked_values,
    check_masks,
    check_scales,
)
from ppl_em.problem.prepared import Prepared
from ppl_em.problem.probe import check_proper, probe
from ppl_em.problem.problem import Problem
from ppl_em.problem.sites import ProblemSpec, _discrete_site, _latent_site
from ppl_em.problem.subsampling import Plate, Whole
from ppl_em.problem.supports import _moving_supports
from ppl_em.problem.trace import first_run, run_model
from ppl_em.util import (
    Fingerprint,
    ModelError,
    brief,
    check_call,
    check_mapping,
    make_room,
    name_of,
    site_error,
    zeros,
)

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
    space: ParamSpace | None = None,
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
    space
        The parameters of a fit that is over: whatever these data say of them, none is refused.

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
    check_masked_arrays(model, args, kwargs)
    before = _random_states()
    trace, own = None, Prepared(model, rng_key)
    plates: dict[str, Plate] = {}  # sub-sampled ones, which are made whole
    if not (map_sites or fixed or init_params):
        with contextlib.suppress(ModelError):  # it comes again, after checks that may say more
            own, trace = first_run(own, rng_key, args, kwargs, plates, validate=True)
    own, raw = (own, trace) if trace else first_run(own, rng_key, args, kwargs, plates)
    draws = _random_states() != before
    model = Whole(own, tuple(plates.values())) if plates else own
    check_model(raw, model)
    fixed, init_params = check_options(raw, map_sites, fixed, narrower, init_params)
    start = {**init_params, **fixed}
    if trace is None:
        trace = run_model(model, rng_key, args, kwargs, start, spread=map_sites, validate=True)
    check_masked_values(trace)
    check_observations(trace)
    over = space is not None
    if space is None:
        space, values = _parameters(trace, map_sites, fixed, narrower, model)
    else:
        values = {name: as_value(trace[name]["value"]) for name in space.names}
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
        term_slopes=by_term,
    )
    parts = [_unconstrained_start(continuous[site.name]) for site in sites]
    u = jax.device_put(np.concatenate(parts)) if parts else zeros((0,))
    if sites and not u.size:
        what = "a single value is possible for it" if sites[0].shape != (0,) else "it is empty"
        raise site_error(sites[0].name, f"{what}, so it is no latent", "Write the value itself")
    with explained(model, args, kwargs, lambda a, k: _with_arguments(spec, a, k, fixed, u)):
        problem = _with_arguments(spec, args, kwargs, fixed, u)
        if draws and program_of(problem) != problem.spec.program:
            raise ModelError(
                f"Model '{name_of(model)}': it draws from `numpy.random` or `random`, so that its "
                f"density is another in each run. Draw outside, and pass the numbers as arguments."
            )
        return _looked_at(rng_key, problem, values, trace, over), {**values, **fixed}


def _looked_at(
    rng_key: jax.Array, problem: Problem, values: Params, trace: Trace, over: bool
) -> Problem:
    """The problem with what its values and its program show."""
    program, terms = traced_terms(problem, values)
    check_indices(problem, values, program, terms)
    problem = with_derivatives(problem, values, program)
    if any("_scan_current_index" in site["infer"] for site in trace.values() if "infer" in site):
        problem = _side_by_side(problem, values)
    problem = probe(rng_key, problem, values, over)
    check_proper(problem, values, trace)
    check_masks(problem, values, trace)
    check_scales(problem, values, trace)
    return problem


def _random_states() -> tuple[Any, ...]:
    """Of the generators that Python and NumPy have one of for all."""
    _, keys, *rest = np.random.get_state(legacy=True)
    return random.getstate(), np.asarray(keys).tobytes(), rest


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
            f"Model '{name_of(model)}': it has no free parameters to "
            f"maximise. Make some sites `numpyro.param`, or name sample sites in `map_sites` "
            f"(it has: {', '.join(names) or 'none'})."
        )
    space = ParamSpace(tuple(sites))
    check_start(ParamSpace(tuple(own_sites)), values)
    if narrower:
        check_start(space, values)
        for own, narrow in zip(own_sites, sites, strict=True):
            _check_narrower(own, narrow, values[own.name])
    return space, values


def _check_narrower(own: ParamSite, narrow: ParamSite, value: Any) -> None:
    """Raise if values that the option `constraints` allows are outside of the model's own."""
    x = narrow.unconstrain(value)
    for step in (-3.0, -1.0, 1.0, 3.0) if narrow.support != own.support else ():
        moved = narrow.constrain(jax.tree.map(lambda leaf, by=step: leaf + by, x))
        if not is_inside(moved, own.constraint):
            raise site_error(
                own.name,
                f"`constraints` gives it {narrow.constraint}, but its own is {own.constraint} and "
                f"{brief(moved)} is outside",
                "Pass a narrower constraint",
            )


def _unconstrained_start(site: Site) -> np.ndarray:
    value = jnp.asarray(site["value"], jnp.result_type(float))
    return np.ravel(biject_to(site["fn"].support).inv(value))


def _with_arguments(
    spec: ProblemSpec, args: tuple, kwargs: dict, fixed: Params, u: jax.Array
) -> Problem:
    programs: dict[Arguments, Fingerprint] = {}

    def candidate(arguments: Arguments, leaves: tuple) -> Problem:
        return Problem(leaves, fixed, u, dataclasses.replace(spec, arguments=arguments))

    def traceable(arguments: Arguments, leaves: tuple) -> None:
        programs[arguments] = program_of(candidate(arguments, leaves))

    arguments, leaves = split_arguments(args, kwargs, traceable)
    problem = candidate(arguments, leaves)
    try:
        program = programs.get(arguments) or program_of(problem)
    except Exception as error:
        reason = no_gradient(spec.model, error)
        if reason is None:
            raise
        raise reason from error
    make_room(program)
    return problem.with_spec(program=program)


def _side_by_side(problem: Problem, values: Params) -> Problem:
    """Let the steps of the model's scans be evaluated side by side, if they are of that kind."""
    candidate = problem.with_spec(scans=True)
    try:
        x = problem.space.unconstrain(values)
        jax.eval_shape(density_and_gradients, candidate, x, problem.start)
    except Exception as error:
        if problem.spec.discrete:
            raise
        logger.info("scans are followed step by step: %s", str(error).split("\n")[0])
        return problem
    return candidate
