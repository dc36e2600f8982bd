"""Degenerate optima: where the likelihood grows without bound, as a scale goes to 0.

A component of a mixture that sits on one value gains as many nats per e-fold of its scale as it has
rows. By the time that this is lost in rounding, a run may look as if it had converged.
"""

from dataclasses import replace
from typing import Any, cast

import jax
import numpy as np

from ppl_em.algorithms import STEEP, why_no_maximum
from ppl_em.e_step import DeterministicEStep
from ppl_em.likelihood import rounding_noise
from ppl_em.result import EMResult, Status

DONE = (Status.CONVERGED, Status.STALLED, Status.DECREASED)
"""How runs end that find nothing more to gain."""

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
        return result
    status = Status.INTERRUPTED if result.status is Status.INTERRUPTED else Status.DEGENERATE
    return replace(result, status=status, degeneracy=reason)
