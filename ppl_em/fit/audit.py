"""Audit: how far off a fit is, in standard errors, as a stronger E-step sees it."""

import logging
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.algorithms import MAX_LENGTH
from ppl_em.e_step import DEFAULT, FLAGS, EStep, Strength, from_flag
from ppl_em.fit.audit_newton import Climb, climb
from ppl_em.likelihood import MAX_SE_NOISE, constrained_covariance, flat_and_jacobian, set_aside
from ppl_em.params import Params, flat_labels
from ppl_em.problem import Problem
from ppl_em.result import Audit, EMResult
from ppl_em.util import ModelError, as_key

logger = logging.getLogger("ppl_em")

NOTABLE = 0.1
"""Shifts, in standard errors, that are called wrong: it would take 100 times the data to see less
under a correct model."""


def audit(
    rng_key: jax.Array, problem: Problem, x: jax.Array, result: EMResult, e_step: str | EStep
) -> Audit:
    """Audit a fit.

    Parameters
    ----------
    rng_key
        For an audit by draws.
    problem, x
        Of the fit, x of shape (p,).
    result
        The fit.
    e_step
        The stronger E-step, or `"auto"`.

    Raises
    ------
    ModelError
        If it is weaker than the fit's own, or does not apply.

    References
    ----------
    Fisher (1925), Theory of statistical estimation, Mathematical Proceedings of the Cambridge
    Philosophical Society 22, for the score; Louis (1982), JRSS B 44, for the information.
    """
    begin = time.monotonic()
    key_resolve, key_climb = jax.random.split(as_key(rng_key))
    flag, engine = _auditor(key_resolve, problem, problem.constrain(x), result.e_step, e_step)
    found = climb(key_climb, problem, x, engine)
    shifts = _shifts(problem, x, found)
    own, ours = result.log_likelihood, found.log_likelihood
    ours = ours._replace(value=ours.value - result.penalty)
    labels = flat_labels(problem.constrain(x))
    return Audit(
        labels=labels,
        **shifts,
        fit=result.e_step,
        e_step=flag,
        log_likelihood=ours,
        gap=ours.value - own.value,
        gap_mcse=float(np.hypot(ours.mcse, own.mcse)),
        khat=own.pareto_khat,
        sentence=_sentence(labels, shifts, result, flag),
        seconds=time.monotonic() - begin,
    )


def _auditor(
    rng_key: jax.Array, problem: Problem, params: Params, fitted: str, e_step: str | EStep
) -> tuple[str, EStep]:
    """The flag of the stronger E-step, and the engine that it resolves to."""
    config = from_flag(e_step)
    if config.flag != DEFAULT:
        own = FLAGS[fitted].strength if fitted in FLAGS else Strength.BOUND
        if config.strength < max(own, Strength.EXPANSION):  # the same one may look again
            stronger = [flag for flag in _ladder() if FLAGS[flag].strength > own]
            raise ModelError(
                f"`result.audit`: e_step='{config.flag}' is no stronger than the '{fitted}' of the "
                f"fit. Pass one of {', '.join(map(repr, [*reversed(stronger), DEFAULT]))}."
            )
        return config.flag, config.resolve(rng_key, problem, params)
    auditors = [flag for flag in _ladder() if FLAGS[flag].strength >= Strength.DRAWS]
    last = ModelError(f"`result.audit`: none of {', '.join(auditors)} applies.")
    for flag in auditors:
        try:
            return flag, FLAGS[flag]().resolve(rng_key, problem, params)
        except ModelError as error:
            last = error
            logger.info("The audit does not use '%s': %s", flag, error)
    raise last


def _ladder() -> list[str]:
    """Flags of E-steps, the strongest first."""
    return sorted((f for f in FLAGS if f != DEFAULT), key=lambda f: -FLAGS[f].strength)


def _shifts(problem: Problem, x: jax.Array, found: Climb) -> dict[str, Any]:
    """What an `Audit` says by parameter, and how far it may be trusted."""
    information, left_out, note = set_aside(problem, found.x, found.information)
    reason = found.trouble or information.reason
    if not reason and information.se_noise > MAX_SE_NOISE:
        reason = f"standard errors have a Monte Carlo error of {information.se_noise:.0%}"
    estimate = _flat(problem, x)
    nothing = np.full(len(estimate), np.nan)
    if reason:
        names = ("corrected", "se", "shift", "shift_mcse", "one_step")
        return {"estimate": estimate, **dict.fromkeys(names, nothing), "reason": reason, "note": ""}
    corrected = _flat(problem, found.x)
    se = _errors(problem, found.x, information.covariance)
    se[left_out] = np.nan
    error = _errors(problem, found.x, found.mcse_x)
    one_step = nothing
    first, promised = found.start.uphill(MAX_LENGTH)
    if found.start.usable and 2 * promised < MAX_LENGTH**2:
        one_step = _flat(problem, x + jnp.asarray(first, x.dtype))
    scale = np.where(se == 0, 1.0, se)  # what is fixed does not shift
    return {
        "estimate": estimate,
        "corrected": corrected,
        "se": se,
        "shift": (corrected - estimate) / scale,
        "shift_mcse": error / scale,
        "one_step": (one_step - estimate) / scale,
        "reason": reason,
        "note": note,
    }


def _flat(problem: Problem, x: jax.Array) -> np.ndarray:
    return np.asarray(flat_and_jacobian(problem, x)[0])


def _errors(problem: Problem, x: jax.Array, covariance: np.ndarray) -> np.ndarray:
    """Standard errors on the model's own scale, (P,), by the delta method."""
    covariance = constrained_covariance(problem, x, covariance)
    return np.sqrt(np.maximum(np.diag(covariance), 0.0))


def _sentence(labels: list[str], shifts: dict[str, Any], result: EMResult, flag: str) -> str:
    """The finding in words."""
    if shifts["reason"]:
        return f"This audit by {flag} is not to be trusted: {shifts['reason']}."
    shift, error = shifts["shift"], shifts["shift_mcse"]
    size = np.nan_to_num(np.abs(shift))
    excess = size - 2 * np.nan_to_num(error)
    wrong = np.flatnonzero(excess > NOTABLE)
    if len(wrong) == 0:
        rest = "other " if shifts["note"] else ""
        most = max(np.max(size + 2 * np.nan_to_num(error), initial=0.0), 0.01)
        return (
            f"Nothing wrong is seen by {flag}: every {rest}estimate is within {most:.2g} standard "
            f"errors of its maximum."
        )
    worst, *others = wrong[np.argsort(-size[wrong])]
    about = f" ± {error[worst]:.2g}" if error[worst] else ""
    also = [f"`{labels[i]}`" for i in others[:3]] + ["more"] * (len(others) > 3)
    text = (
        f"`{labels[worst]}` is {size[worst]:.2g}{about} standard errors too "
        f"{'small' if shift[worst] > 0 else 'large'} under {result.e_step}"
    )
    if also:
        text += f" ({', '.join(also)} also off by more than {NOTABLE})"
    if flag == result.e_step and result.converged:
        return f"{text}: run it again with another key, and allow more draws."
    if flag == result.e_step:
        return f"{text}: it had not converged. Go on from `init_params=result.params`."
    unfinished = "" if result.converged else ", which had not converged"
    return f"{text}{unfinished}; use e_step='{flag}'."
