"""A fit in words, as `print` shows it."""

from typing import Any

import jax
import numpy as np

from ppl_em.result.plain_tables import without_zeros
from ppl_em.result.status import Status
from ppl_em.stats import MAX_KHAT
from ppl_em.util import ModelError, printable


def in_words(result: Any) -> str:
    """Estimates, log-likelihood, how the run ended, and what speaks for or against it."""
    try:
        table = f"{without_zeros(result.summary()).round(4)}"
    except ModelError as error:  # the model has changed: there are no standard errors to show
        table = f"{result.params}\n{error}"
    return printable("\n".join([table, *findings(result)]))


def in_short(result: Any) -> str:
    """How it ended and the log-likelihood, in one line."""
    count, steps = len(result.labels), result.num_steps
    return printable(
        f"<EMResult: {result.status.name}, log-likelihood {result.log_likelihood}, "
        f"{count} parameter{'s' * (count != 1)}, {steps} step{'s' * (steps != 1)}>"
    )


def findings(result: Any) -> list[str]:
    """What is said below the table of estimates, a line or more each."""
    lines = [
        f"log-likelihood {result.log_likelihood}{doubt(result)}"
        + (f", penalised {result.penalised:.6f}" if result.penalties else ""),
        f"{result.status.value} ({result.num_steps} steps, {result.seconds['total']:.1f} s)",
        result.e_step_reason,
        *remarks(result),
        str(result.restarts or ""),
    ]
    return [printable(line) for line in lines if line]


def remarks(result: Any) -> list[str]:
    """What was checked at the end of the run, and what speaks against it; a line each."""
    lines = [
        str(result.certificate or ""),
        *(f"{where.sentence(label)}." for label, where in result.boundary.items()),
        result.degeneracy,
    ]
    single = any(np.asarray(leaf).dtype == np.float32 for leaf in jax.tree.leaves(result.params))
    if single and result.status in (Status.DECREASED, Status.STALLED):
        lines.append("This run was in float32: call `numpyro.enable_x64()` before it.")
    likelihood = result.log_likelihood
    if likelihood.kind == "lower_bound":
        far = (likelihood.pareto_khat or 0.0) > MAX_KHAT
        lines.append(
            f"The estimates are those of a lower bound{', far from the log-likelihood' * far}: "
            f"`result.audit(rng_key)` says by how many standard errors they are off."
        )
    return [line for line in lines if line]


def doubt(result: Any) -> str:
    """Words to put behind the log-likelihood where it is not to be believed; else empty."""
    if result.status is Status.UNHEALTHY and result.log_likelihood.kind == "estimate":
        return ": not to be believed, nor is its error, because the chains are not"
    return ""
