"""The end of a run: from the loop's outcome to a result."""

import logging
import time
from typing import Any

import jax
import numpy as np

from ppl_em.algorithms import Outcome, Stopping
from ppl_em.e_step import EStep
from ppl_em.fit.after.evaluation import evaluated
from ppl_em.fit.fitted import FittedParts
from ppl_em.params import Params
from ppl_em.posterior import LogLikelihood
from ppl_em.problem import Problem
from ppl_em.problem.penalties import penalties
from ppl_em.result import Certificate, EMResult, LatentPosterior
from ppl_em.util import split

logger = logging.getLogger("ppl_em")


def _warn_of_float32(e_step: EStep, value: float, dtype: Any) -> None:
    """Say so where float32 cannot tell log-likelihoods apart to within the tolerance."""
    if np.dtype(dtype) == np.float64 or not np.isfinite(value):
        return
    spacing = float(np.spacing(np.asarray(abs(value), dtype)))
    wanted = Stopping().gap_for(e_step.stochastic)
    if spacing > wanted:
        logger.warning(
            "Log-likelihoods of this size differ by %.1g or more in float32, above the tolerance "
            "of %.1g: estimates may be off by %.1g standard errors. Call `numpyro.enable_x64()` "
            "first.",
            spacing,
            wanted,
            np.sqrt(2 * spacing),
        )


def make_result(
    rng_key: jax.Array, problem: Problem, outcome: Outcome, asked: EStep | None = None
) -> EMResult:
    """End a run: an E-step at the returned parameters, and the log-likelihood there.

    `asked` is the E-step as the user asked for it.
    """
    key_posterior, key_evidence = split(rng_key)
    x, e_step = outcome.x, outcome.e_step
    known = outcome.polish.known_blocks(problem, x) if outcome.polish else None
    posterior, state, log_likelihood, sampler = evaluated(
        key_evidence, problem, x, e_step, outcome.e_state, outcome.m_step, known
    )
    if outcome.at is not None:
        log_likelihood = log_likelihood._replace(value=log_likelihood.value + outcome.at.rest)
    _warn_of_float32(e_step, log_likelihood.value, x.dtype)
    params = problem.constrain(x)
    reported = params if outcome.at is None else outcome.at.exactly(params)
    history = _history(outcome.rows, params, e_step, log_likelihood)
    terms = penalties(problem, params)
    value = log_likelihood.value - sum(terms.values())
    return EMResult(
        params=reported,
        log_likelihood=log_likelihood._replace(value=value),
        status=outcome.status,
        num_steps=len(outcome.rows),
        history=history,
        posterior=LatentPosterior(problem, params, posterior, key_posterior),
        e_step=e_step.flag,
        seconds={"total": time.monotonic() - outcome.begin, "compile": outcome.compile_seconds},
        parts=FittedParts(
            problem,
            e_step,
            x,
            state,
            posterior,
            outcome.polish,
            outcome.at,
            bool(terms),
            outcome.certified,
            outcome.status,
            asked,
            sampler,
        ),
        boundary={} if outcome.at is None else outcome.at.found,
        penalties=terms,
        certificate=_certificate(problem, outcome),
    )


def _certificate(problem: Problem, outcome: Outcome) -> Certificate | None:
    """What was checked; after a run by draws its confirming phase."""
    if outcome.certified is not None:
        return outcome.certified.certificate
    if outcome.polish is None or not outcome.polish.information.usable:
        return None
    found = outcome.polish.information
    step, errors = found.newton_step, np.sqrt(np.diag(found.covariance))
    longest = float(np.max(np.abs(step) / np.where(errors > 0, errors, np.inf)))
    smallest = float(np.linalg.eigvalsh(found.inside[1])[0])
    return Certificate(found.gap, longest, smallest, (), "monte_carlo")


def _history(
    rows: list[dict[str, Any]], params: Params, e_step: EStep, final: LogLikelihood
) -> dict[str, np.ndarray]:
    history: dict[str, np.ndarray] = {}
    names = list(dict.fromkeys(name for row in rows for name in row if name != "params"))
    for name in names:
        missing = "" if name in ("phase", "verdict", "decision") else np.nan
        history[name] = np.array([row.get(name, missing) for row in rows])
    if e_step.stochastic and rows:
        history["objective"] = history["objective"] + final.value - history["objective"][-1]
    for name in params:
        leaves = [jax.tree.leaves(row["params"][name]) for row in rows]
        if len(jax.tree.leaves(params[name])) == 1:
            history[name] = np.array([leaf[0] for leaf in leaves])
        else:
            history[name] = np.array([np.concatenate([np.ravel(v) for v in vs]) for vs in leaves])
    return history
