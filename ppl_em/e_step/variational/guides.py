"""From what users pass as a guide to a law of the unconstrained latents."""

import functools
from typing import Any

import jax
from numpyro import handlers
from numpyro.infer import autoguide
from numpyro.infer.autoguide import AutoContinuous, AutoGuide
from numpyro.infer.util import log_density

from ppl_em.params import Params, as_value
from ppl_em.posterior import AutoLaw, Law, UserLaw
from ppl_em.problem import AllRows, Problem
from ppl_em.util import Fingerprint, ModelError, content_key, fingerprint, site_error

WITHOUT_LAW = (
    autoguide.AutoLaplaceApproximation,
    autoguide.AutoDAIS,
    autoguide.AutoBatchedMultivariateNormal,
    autoguide.AutoBatchedLowRankMultivariateNormal,
)
"""Autoguides of flat vectors that have no density to fit by SVI, or that need plates."""


def find_law(guide: Any, problem: Problem, params: Params) -> Law:
    """The law behind an autoguide's class, or behind a guide written for the model.

    Raises
    ------
    ModelError
        If the guide cannot be used: what it is, and what would do.
    """
    made = guide.func if isinstance(guide, functools.partial) else guide
    if isinstance(made, type) and issubclass(made, AutoGuide):
        if made is autoguide.AutoNormal:  # the same family, as one vector
            options = guide.keywords if isinstance(guide, functools.partial) else {}
            guide = functools.partial(autoguide.AutoDiagonalNormal, **options)
            return AutoLaw(guide if options else guide.func, problem.num_latents)
        if not issubclass(made, AutoContinuous) or issubclass(made, WITHOUT_LAW):
            raise ModelError(
                f"Option `guide`: {made.__name__} is not a law that SVI fits to all latents at "
                f"once. Use AutoNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal, "
                f"AutoIAFNormal or a guide of your own."
            )
        return AutoLaw(guide, problem.num_latents)
    if isinstance(made, type | AutoGuide) or not callable(made):
        name = made.__name__ if isinstance(made, type) else type(made).__name__
        raise ModelError(
            f"Option `guide`: found {name}. Pass a class of `numpyro.infer.autoguide`, not an "
            f"object of it, or a function."
        )
    return UserLaw(guide, _program(guide, problem, _checked(guide, problem, params)))


def _program(guide: Any, problem: Problem, trace: dict[str, Any]) -> Fingerprint:
    """What the guide is at this moment, from a trace of it: see `problem/fingerprint.py`."""
    own = {name: site for name, site in trace.items() if site["type"] == "param"}
    values = {name: as_value(site["value"]) for name, site in own.items()}
    supports = [content_key(site["kwargs"].get("constraint")) for site in own.values()]

    def density(values: Params, rng_key: jax.Array, leaves: tuple) -> tuple[jax.Array, Any]:
        args, kwargs = problem.spec.arguments.rebuild(leaves)
        total, sites = log_density(handlers.seed(AllRows(guide), rng_key), args, kwargs, values)
        return total, {k: s["value"] for k, s in sites.items() if s["type"] == "sample"}

    traced = jax.value_and_grad(density, has_aux=True)
    notes = [values, supports]
    return fingerprint(traced, values, jax.random.key(0), problem.leaves, notes=notes)


def _checked(guide: Any, problem: Problem, params: Params) -> dict[str, Any]:
    """A guide written by hand: does it have the model's latent sites, and can it be fitted?"""
    moving = [site.name for site in problem.spec.latents if site.support is None]
    if moving:
        raise site_error(
            moving[0], "its support moves with other latents", "Use an autoguide of `numpyro.infer`"
        )
    args, kwargs = problem.arguments
    program = handlers.seed(AllRows(guide), jax.random.key(0))
    trace = handlers.trace(program).get_trace(*args, **kwargs)
    sampled = {name for name, site in trace.items() if site["type"] == "sample"}
    latents = {site.name: site for site in problem.spec.latents}
    for name in sorted(sampled ^ set(latents)):
        fact = "the guide does not sample it" if name in latents else "no latent of the model"
        raise site_error(name, fact, f"The guide's sites must be: {', '.join(sorted(latents))}")
    for name, site in latents.items():
        if trace[name]["value"].shape != site.shape:
            raise site_error(
                name,
                f"the guide gives it shape {trace[name]['value'].shape}, the model {site.shape}",
                "Use the same plates in both",
            )
        if not trace[name]["fn"].has_rsample:
            raise site_error(
                name,
                f"the guide's {type(trace[name]['fn']).__name__} has no reparameterised draws",
                "Use a law whose draws have gradients",
            )
    for name, site in trace.items():
        if site["type"] == "param" and name in params:
            raise site_error(name, "a parameter of both model and guide", "Rename the guide's")
    return trace
