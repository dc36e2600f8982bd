"""Degenerate optima: where the likelihood grows without bound, as a scale goes to 0.

A component of a mixture that sits on one value gains as many nats per e-fold of its scale as it has
rows. By the time that this is lost in rounding, a run may look as if it had converged.
"""

from dataclasses import replace
from typing import Any, cast

import jax
import numpy as np
from numpyro.distributions import constraints

from ppl_em.algorithms import STEEP, why_no_maximum
from ppl_em.e_step import DeterministicEStep
from ppl_em.likelihood import rounding_noise
from ppl_em.params import Params
from ppl_em.problem import Problem, refused
from ppl_em.result import CONVERGED, EMResult, Status
from ppl_em.util import brief

DONE = (Status.CONVERGED, Status.STALLED, Status.DECREASED)
"""How runs end that find nothing more to gain."""

REAL = (constraints.real, constraints.real_vector)
"""Constraints that keep nothing out."""

FAR = 20.0
"""Distance, in sizes of a parameter, at which a distribution that has bounds for it shows."""

MAX_KNOWN = 64
"""Programs that are remembered."""

_known: dict[Any, bool] = {}

DOUBTFUL = (Status.STALLED, Status.DECREASED)
"""Those that rounding may have ended."""


def judged(result: EMResult, start: jax.Array, x: jax.Array, parts: Any) -> EMResult:
    """The result of a run, with what makes it degenerate; as it is if nothing does.

    `start` and `x` (p,) are where the run began and ended, `parts` its `FittedParts`.
    """
    problem, e_step, state, noise = parts.problem, parts.e_step, parts.e_state, 0.0
    norms = result.history.get("gradient_norm", np.zeros(0))
    steep = result.status in DONE and bool(np.any(norms[np.isfinite(norms)][-1:] > STEEP))
    if e_step.is_function and result.status in DOUBTFUL:
        value = result.penalised
        noise = rounding_noise(cast(DeterministicEStep, e_step), problem, x, state, value)
    away = np.asarray(x) - np.asarray(start)
    reason = why_no_maximum(problem, e_step, x, state, parts.posterior, away, steep, noise)
    if not reason and result.status is Status.NON_FINITE:
        return replace(result, degeneracy="a step gave a value that is not finite")
    if not reason:
        outside = left_support(problem, problem.constrain(start), result)
        return replace(result, status=Status.OUTSIDE, degeneracy=outside) if outside else result
    status = Status.INTERRUPTED if result.status is Status.INTERRUPTED else Status.DEGENERATE
    return replace(result, status=status, degeneracy=reason)


def left_support(problem: Problem, start: Params, result: EMResult) -> str:
    """Which parameter a run took out of what the model's distributions accept; empty if none did.

    Only parameters without a constraint can. Latents are where the posterior has them.
    """
    free = [s.name for s in problem.space.sites if not s.is_sample and s.constraint in REAL]
    if result.status not in CONVERGED or not free:
        return ""
    (args, kwargs), model = problem.arguments, problem.spec.model
    params = {**problem.fixed, **result.params}
    if _accepts_all(problem, params, free) or not refused(model, args, kwargs, params):
        return ""
    latents = result.posterior.mean()
    values = {**params, **{site.name: latents[site.name] for site in problem.spec.latents}}
    words = refused(model, args, kwargs, values)
    for name in free:
        if words and not refused(model, args, kwargs, {**values, name: start[name]}):
            return f"{words}, as `{name}` became {brief(params[name])}"
    return ""


def _accepts_all(problem: Problem, params: Params, free: list[str]) -> bool:
    """Whether the parameters `free` may have any values, seen far out; once for each program."""
    program = problem.spec.program
    if program not in _known:
        (args, kwargs), model = problem.arguments, problem.spec.model
        while len(_known) >= MAX_KNOWN:
            _known.pop(next(iter(_known)))
        own = {name: jax.tree.map(np.asarray, params[name]) for name in free}
        far = [
            jax.tree.map(lambda v, by=side * FAR: v + by * (1 + np.abs(v)), own) for side in (-1, 1)
        ]
        _known[program] = not any(refused(model, args, kwargs, {**params, **v}) for v in far)
    return _known[program]
