"""A fit in words, as `print` shows it."""

from typing import Any

from ppl_em.result.status import Status
from ppl_em.util import ModelError, visible


def in_words(result: Any) -> str:
    """Estimates, log-likelihood, how the run ended, and what speaks for or against it."""
    try:
        table = f"{result.summary().round(4)}"
    except ModelError as error:  # the model has changed: there are no standard errors to show
        table = f"{result.params}\n{error}"
    lines = [
        table,
        f"log-likelihood {result.log_likelihood}{doubt(result)}"
        + (f", penalised {result.penalised:.6f}" if result.penalties else ""),
        f"{result.status.value} ({result.num_steps} steps, {result.seconds['total']:.1f} s)",
        str(result.certificate or ""),
        *(f"{where.sentence(label)}." for label, where in result.boundary.items()),
        result.degeneracy,
        str(result.restarts or ""),
    ]
    return visible("\n".join(line for line in lines if line))


def doubt(result: Any) -> str:
    """Words to put behind the log-likelihood where it is not to be believed; else empty."""
    if result.status is Status.UNHEALTHY and result.log_likelihood.kind == "estimate":
        return ": not to be believed, nor is its error, because the chains are not"
    return ""
