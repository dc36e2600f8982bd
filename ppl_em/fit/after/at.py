"""A fit on other data: the same model at the fitted parameters, by one E-step."""

import contextlib
import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from ppl_em.e_step import FLAGS, EStep, from_flag
from ppl_em.fit.after.by_plate import by_plate
from ppl_em.fit.after.evaluation import evaluated, settled
from ppl_em.params import AtBounds, Params
from ppl_em.posterior import Posterior
from ppl_em.problem import Prepared, Problem, Whole, build_problem, explained, init_near_mean
from ppl_em.problem.penalties import penalties
from ppl_em.result import EMResult, Evaluated, LatentPosterior
from ppl_em.util import ModelError, as_key, check_call, name_of, site_error, split

OPTIONS = ("e_step", "rng_key")


class Fit(Protocol):
    """What a fit left behind: the problem and the end of the run."""

    @property
    def problem(self) -> Problem:
        """The model with the data of the fit."""
        ...

    @property
    def e_step(self) -> EStep:
        """The one that ran."""
        ...

    @property
    def asked(self) -> EStep | None:
        """The one that the user asked for."""
        ...

    @property
    def x(self) -> jax.Array:
        """The parameters, (p,)."""
        ...

    @property
    def e_state(self) -> Any:
        """The state of the E-step there."""
        ...

    @property
    def posterior(self) -> Posterior:
        """The posterior there."""
        ...

    @property
    def at(self) -> AtBounds | None:
        """Which parameters are at a bound."""
        ...

    def covariance_x(self) -> tuple[np.ndarray, str]:
        """Of the parameters, (p, p), and why there is none."""
        ...


def at(
    fit: Fit,
    result: EMResult,
    rng_key: jax.Array | None,
    args: tuple,
    kwargs: dict[str, Any],
    e_step: str | EStep | None,
) -> Evaluated:
    """Evaluate a fit on other data; arguments as of `EMResult.at`."""
    key = jax.random.key(0) if rng_key is None else as_key(rng_key)
    keys = split(key, 4)
    problem, x = fit.problem, fit.x
    if args or kwargs:
        problem = on_other_data(problem, fit.e_step, x, args, kwargs)
    elif e_step is None:
        apart = partial(by_plate, keys[3], problem, x, fit.posterior)
        return Evaluated(result.log_likelihood, result.posterior, result.e_step, apart)
    params = problem.constrain(x)
    engine = _chosen(fit, e_step).choose(keys[0], problem, params)[0]
    engine, state = settled(keys[1], problem, x, engine)
    posterior, _, found, _ = evaluated(keys[2], problem, x, engine, state)
    value = found.value - sum(penalties(problem, params).values())
    found = found._replace(value=value)
    apart = partial(by_plate, keys[3], problem, x, posterior)
    return Evaluated(
        found, LatentPosterior(problem, params, posterior, keys[3]), engine.flag, apart
    )


def _chosen(fit: Fit, e_step: str | EStep | None) -> EStep:
    """The configuration that is asked for; where the fit chose one by itself, that."""
    if e_step is not None:
        return from_flag(e_step)
    if fit.asked is not None and fit.asked.flag == fit.e_step.flag:
        return fit.asked
    return FLAGS[fit.e_step.flag]()


def on_other_data(
    problem: Problem, e_step: EStep, x: jax.Array, args: tuple, kwargs: dict[str, Any]
) -> Problem:
    """The problem of the same model with other data, its parameters those of the fit.

    Raises
    ------
    ModelError
        If a parameter has another shape with these data, or a site that the fit observed has none.
    """
    model = source(problem)
    check_names("at", model.model, args, OPTIONS)
    check_call(model.model, args, kwargs)
    params = problem.constrain(x)
    sites = shapes(problem, params, args, kwargs)
    check_params("at", problem, params, sites)
    for name in problem.spec.observed:
        if name in sites and not sites[name].is_observed:
            raise site_error(
                name,
                "it is observed in the fit and has no data in this call of `at`",
                "Pass data, or use `predict` for what is not known",
            )
    with explained(model.model, args, kwargs):
        found, _ = build_problem(
            model.rng_key,
            model.model,
            args,
            kwargs,
            map_sites=[site.name for site in problem.space.sites if site.is_sample],
            fixed=problem.fixed,
            init_params={name: params[name] for name in problem.space.names},
            by_term=e_step.stochastic,
            space=problem.space,
        )
    return found.with_spec(restrictions=problem.spec.restrictions)


def source(problem: Problem) -> Prepared:
    """The user's model, and the key that it gets if it asks for one."""
    model: Any = problem.spec.model
    return cast(Prepared, model.model if isinstance(model, Whole) else model)


class SiteShape:
    """A site in a call of the model: its kind, its shape, and whether it is observed."""

    def __init__(self, site: dict[str, Any]):
        self.type = site["type"]
        self.shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(site["value"])]
        self.is_observed = bool(site.get("is_observed"))
        self.in_scan = "_scan_current_index" in site.get("infer", {})


def shapes(
    problem: Problem, params: Params, args: tuple, kwargs: dict[str, Any]
) -> dict[str, SiteShape]:
    """The sites of the model on other arguments, where nothing is computed.

    Parameters have the shapes that the model gives them; empty if it cannot be told.
    """
    model, found = problem.spec.model, dict[str, SiteShape]()

    def run(key: jax.Array) -> None:
        program = handlers.substitute(handlers.seed(model, key), substitute_fn=init_near_mean(()))
        program = handlers.trace(program)
        with contextlib.suppress(Exception):
            for name, site in program.get_trace(*args, **kwargs).items():
                found[name] = SiteShape(site)

    jax.eval_shape(run, jax.random.key(0))
    return found


def check_params(
    method: str, problem: Problem, params: Params, sites: dict[str, SiteShape]
) -> None:
    """Raise if a parameter has another shape than in the fit."""
    for name, value in {**params, **problem.fixed}.items():
        own = [jnp.shape(leaf) for leaf in jax.tree.leaves(value)]
        if name in sites and sites[name].shapes != own:
            raise site_error(
                name,
                f"the parameter has shape {_joined(own)} in the fit and "
                f"{_joined(sites[name].shapes)} in this call of `{method}`, as it depends on the "
                f"data",
                "Pass data of the same size, or make it a `sample` site with a law of its own",
            )


def _joined(shapes: list[tuple[int, ...]]) -> str:
    return str(shapes[0]) if len(shapes) == 1 else str(shapes)


def check_names(method: str, model: Callable, args: tuple, options: Iterable[str]) -> None:
    """Raise if an argument of the model has the name of an option, and is not given by place."""
    try:
        names = list(inspect.signature(model).parameters)
    except (TypeError, ValueError):
        return
    for option in options:
        if option in names[len(args) :] and (args or names):
            raise ModelError(
                f"Model '{name_of(model)}': its argument `{option}` has the name of an option of "
                f"`{method}`, so that the model would never receive it. Pass it by position."
            )
