"""The fingerprint of a problem: what its model is at this moment, whatever it reads.

A model reads globals, closures, attributes, environment variables. A program compiled before one of
them changed is another model's, so programs are looked up by what a fresh trace of the model gives.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.infer.util import compute_log_probs

from ppl_em.discrete import marginalization
from ppl_em.params import Params
from ppl_em.problem import minibatches
from ppl_em.problem.checks import is_latent
from ppl_em.problem.problem import Latents, Problem
from ppl_em.util import Fingerprint, ModelError, alone, fingerprint, site_error, zeros

P = ParamSpec("P")
R = TypeVar("R")


def program_of(problem: Problem) -> Fingerprint:
    """Trace the model of `problem` afresh, and digest what comes out.

    The program has every site's log-density and value, and the gradients in parameters and
    latents where it does not tell by itself what they are. Beside it count the names, kinds and
    plates of sites. With sub-sampled plates, the estimate from a mini-batch is traced as well.
    """
    notes: list[Any] = []

    def traced(params: Params, latents: Latents, leaves: tuple, fixed: Params) -> Any:
        own = Problem(leaves, fixed, problem.start, problem.spec)
        value, parts = _evaluated(own, params, latents, notes)
        if jnp.iscomplexobj(value):
            raise TypeError("its log-density is a complex number")
        return value, parts, _of_batch(own, params, latents)

    def derived(params: Params, latents: Latents, leaves: tuple, fixed: Params) -> Any:
        own = Problem(leaves, fixed, problem.start, problem.spec)
        return jax.value_and_grad(_evaluated, (1, 2), has_aux=True)(own, params, latents, [])

    shapes = jax.eval_shape(_at_start, problem)
    try:
        return fingerprint(
            traced, *shapes, problem.leaves, problem.fixed, notes=notes, derived=derived
        )
    except AssertionError as error:  # NumPyro's, where a site is to be drawn without a key
        _check_sites(problem, handlers.trace(handlers.seed(problem.at({}), 0)))
        raise error


def _check_sites(problem: Problem, tracer: handlers.trace) -> None:
    """Raise if the latents of a further run are not those of the first."""
    args, kwargs = problem.arguments
    known = {site.name for site in problem.spec.latents} | {*problem.space.names, *problem.fixed}
    known |= {site.name for site in problem.spec.discrete}
    for name, site in tracer.get_trace(*args, **kwargs).items():
        if is_latent(site) and name not in known:
            raise _unsteady(name)


def _check_plates(site: dict[str, Any]) -> None:
    """Raise if a value of the first run is not of the size of the site's plates in this one."""
    shape = jnp.shape(site["value"])
    own = shape[: len(shape) - site["fn"].event_dim]
    for frame in site["cond_indep_stack"]:
        if frame.dim is not None and -frame.dim <= len(own) and own[frame.dim] != frame.size:
            raise site_error(
                site["name"],
                f"its plate '{frame.name}' has {own[frame.dim]} elements in one run of the model, "
                f"and {frame.size} in another",
                "Give the plate the same size in each run",
            )


def _unsteady(name: str) -> ModelError:
    return site_error(
        name,
        "it is in some runs of the model and not in others",
        "Give the model the same sites in each run, whatever it counts or draws by itself",
    )


def check_unchanged(problem: Problem) -> None:
    """Raise if the model, or what it reads, is no longer what was fitted."""
    spec, failure = problem.spec, None
    try:
        params = problem.constrain(_zeros(problem))
        same = program_of(problem) == spec.program
        same = same and all(row.again(params) == row.program for row in spec.restrictions)
    except Exception as error:  # whatever a changed model raises
        same, failure = False, error
    if not same:
        raise ModelError(
            f"Model '{getattr(spec.model, '__name__', type(spec.model).__name__)}': it, or "
            f"something that it reads from outside its arguments, has changed since the fit. Ask "
            f"before you change it, or fit again."
        ) from failure


class _HasProblem(Protocol):
    @property
    def problem(self) -> Problem: ...


S = TypeVar("S", bound=_HasProblem)


def on_request(
    method: Callable[Concatenate[S, P], R],
) -> Callable[Concatenate[S, P], R]:
    """Make a method of what a fit left behind refuse if its model has changed since."""

    @wraps(method)
    def asked(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        with alone() as outermost:
            if outermost:
                check_unchanged(self.problem)
            return method(self, *args, **kwargs)

    return asked


def _zeros(problem: Problem) -> jax.Array:
    return zeros((problem.space.size,), problem.start.dtype)


def _at_start(problem: Problem) -> tuple[Params, Latents]:
    """Parameters and latents of the right shapes."""
    params = problem.space.constrain(_zeros(problem))
    return params, {
        site.name: jnp.zeros(site.shape, problem.start.dtype) for site in problem.spec.latents
    }


def _evaluated(
    problem: Problem, params: Params, latents: Latents, notes: list[Any]
) -> tuple[jax.Array, Any]:
    """The log-joint, and the parts that it is made of; what is not numbers goes to `notes`."""
    if problem.spec.discrete:
        tables = problem.log_factors(params, latents)
        notes += [tuple(tables.tables), tables.layout]
        return marginalization.log_normalizer(tables), tables.tables
    args, kwargs = problem.arguments
    values = {**params, **problem.fixed, **latents}
    terms, sites = compute_log_probs(problem.spec.model, args, kwargs, values, sum_log_prob=False)
    gone = {*(site.name for site in problem.spec.latents), *problem.spec.observed} - {*sites}
    if gone:
        raise _unsteady(min(gone))
    for latent in problem.spec.latents:
        _check_plates(sites[latent.name])
    notes += [_words(site) for site in sites.values()]
    total = sum((jnp.sum(term) for term in terms.values()), start=jnp.zeros(()))
    named = [site["value"] for site in sites.values() if site["type"] == "deterministic"]
    results = [leaf for leaf in jax.tree.leaves(named) if hasattr(leaf, "dtype")]
    return total, (terms, results)


def _words(site: dict[str, Any]) -> tuple:
    """Name, kind, plates and law of a site."""
    law = site["fn"] if site["type"] == "sample" else None
    kinds = []
    while law is not None:
        kinds.append((type(law).__name__, law.batch_shape, law.event_shape))
        law = getattr(law, "base_dist", None)
    frames = [(f.name, f.dim, f.size) for f in site.get("cond_indep_stack", ())]
    return site["name"], site["type"], site.get("is_observed"), tuple(kinds), tuple(frames)


def _of_batch(problem: Problem, params: Params, latents: Latents) -> Any:
    """The estimate from the first rows, for a model with sub-sampled plates."""
    rows = {plate.name: jnp.arange(plate.batch) for plate in minibatches.plates_of(problem)}
    if not rows:
        return ()
    try:
        return minibatches.log_joint(problem, params, latents, rows)
    except (ModelError, ValueError, TypeError, IndexError):
        return ()  # it has no mini-batches, which is said where they are asked for
