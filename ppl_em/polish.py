"""The last phase of Monte Carlo EM: Newton steps with Fisher's score and Louis's information.

Many draws are taken at one value of the parameters. Their mean score is the gradient of the
log-likelihood (Fisher), so one Newton step from there has an error that is known, however slow
EM is. Convergence is only ever declared here, on draws that no M-step has seen.
"""

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from ppl_em.e_step import EStep
from ppl_em.information import (
    MAX_SE_NOISE,
    Information,
    ScoreMoments,
    louis_information,
    score_moments,
)
from ppl_em.problem import Problem
from ppl_em.stopping import Stopping
from ppl_em.updates import expectation

SE_NOISE = 0.04
"""Relative Monte Carlo error that standard errors may have, unless `mcse_fraction` is larger."""


@dataclass(frozen=True)
class Polish:
    """The outcome of one round.

    `x` (p,) are the parameters after the Newton step, `information` belongs to where the draws
    were taken, `mcse_x` (p, p) is the Monte Carlo covariance of `x`, `precise` says whether the
    Monte Carlo error is small enough, `confirmed` whether moreover the score is zero within it.
    """

    x: jax.Array
    information: Information
    mcse_x: np.ndarray
    precise: bool
    confirmed: bool
    state: Any


def polish(
    e_step: EStep,
    problem: Problem,
    x: jax.Array,
    state: Any,
    stopping: Stopping,
    deadline: float,
    bar: tqdm,
) -> Polish:
    """Draw at `x` until the Newton step is precise, take it, and test whether it was needed.

    The number of draws doubles until every parameter's Monte Carlo error is below
    `stopping.mcse_fraction` of its standard error, and, unless the step is needed anyway, standard
    errors are within `SE_NOISE` or the draws are spent.
    """
    rows: list[ScoreMoments] = []
    target, num_draws = 10, 0
    while True:
        while len(rows) < target:
            posterior, state, info = expectation(e_step, problem, x, state)
            rows.append(jax.device_get(score_moments(problem, x, posterior)))
            num_draws += posterior.weights.size
            bar.set_postfix_str(f"confirming on {num_draws} draws, {e_step.describe(info)}")
            bar.update(0)
        information = louis_information(problem, x, rows)
        precise = information.usable and _precise(information, stopping)
        near = precise and information.gap <= _allowed(information, stopping)
        spent = num_draws >= stopping.max_draws or time.monotonic() > deadline
        if spent or (not information.usable and len(rows) >= 40):
            break
        if precise and not (near and information.se_noise > _allowed_se_noise(stopping)):
            break
        target *= 2
    if not information.usable:
        return Polish(x, information, np.full_like(information.matrix, np.nan), False, False, state)
    step = information.newton_step
    length = np.sqrt(step @ information.matrix @ step)
    step = step * min(1.0, 3.0 / max(length, 1e-300))
    x = x + jnp.asarray(step, x.dtype)
    return Polish(x, information, information.newton_error, precise, near, state)


def _precise(information: Information, stopping: Stopping) -> bool:
    error = np.sqrt(np.diag(information.newton_error))
    se = np.sqrt(np.diag(information.covariance))
    return bool(np.all(error <= stopping.mcse_fraction * se))


def _allowed(information: Information, stopping: Stopping) -> float:
    """Promised gain up to which a score counts as zero: the tolerance, and what noise makes."""
    return stopping.gap_for(True) + 4 * information.gap_noise


def _allowed_se_noise(stopping: Stopping) -> float:
    return float(np.clip(stopping.mcse_fraction, SE_NOISE, MAX_SE_NOISE))
