"""What is wrong with a fit, in the order in which to look at it."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ppl_em.result.finding import Diagnosis, Finding
from ppl_em.result.status import CONVERGED, Status
from ppl_em.stats import MAX_KHAT, rank_rhat

if TYPE_CHECKING:
    from ppl_em.result.audit import Audit

NEARLY_FLAT = 1e-8
"""Smallest eigenvalue of the scaled information from which estimates are nearly dependent."""

NOISY = 0.25
"""Monte Carlo error of an estimate, in standard errors, above which it hides something."""

NOISY_VALUE = 0.5
"""Monte Carlo error of a log-likelihood, in nats, above which it cannot tell models apart."""

FAR = 0.2
"""Shift in an audit, in standard errors, that is worth a word."""

APART = 1.5
"""R-hat of a latent site whose chains sit in different places; that of short chains is noisy."""

NOTICEABLE = 0.01
"""Error by rounding, in standard errors, that is worth a word."""

SELDOM = 3
"""Starts that should have found the best optimum, where there were more and others elsewhere."""


class Diagnosed:
    """The method of `EMResult` that looks for what is wrong."""

    def diagnose(self, audit: "Audit | None" = None) -> Diagnosis:
        """What speaks against this fit, each with its evidence and the next step.

        Nothing is fitted anew: it looks at the end of the run, the certificate, boundaries and flat
        directions, draws and their weights, errors by Monte Carlo, the kind of likelihood,
        precision, and restarts.

        Parameters
        ----------
        audit
            What `result.audit(rng_key)` found; without one, estimates by an approximation count as
            not looked at.

        Returns
        -------
        Diagnosis
            A tuple of findings, which prints as a numbered list.

        Examples
        --------
        With the `result` of the example of `ppl_em.EM`:

        >>> result.diagnose()
        Nothing speaks against this fit.
        """
        found = [finding for rule in RULES for finding in rule(self)]
        found += _of_bias(self, audit)
        return Diagnosis(sorted(found, key=lambda finding: not finding.serious))


def _of_the_end(result: Any) -> Iterator[Finding]:
    """How the run ended, if not at a maximum."""
    if result.status in CONVERGED:
        return
    fact, _, remedy = result.status.value.partition(". ")
    if result.status is Status.UNHEALTHY:
        topic = "chains"
    else:
        topic = result.status.name.replace("_", " ").lower()
    detail = f" {result.degeneracy.rstrip('.')}." if result.degeneracy else ""
    yield Finding(topic, f"{fact.rstrip('.')}.{detail}", remedy, serious=True)


def _of_the_certificate(result: Any) -> Iterator[Finding]:
    """Curvature at the end: not seen, or next to none in some direction."""
    found = result.certificate
    if found is None or result.status not in CONVERGED:
        return
    if found.kind == "gradient":
        yield Finding(
            "certificate",
            "Only the score was looked at: the information is not available, so a saddle or a flat "
            "direction would not have been seen.",
            "Start elsewhere with `num_restarts`, and see whether the same optimum is found.",
        )
    elif abs(found.smallest_eigenvalue) < NEARLY_FLAT and not result.uncertainty.reason:
        yield Finding(
            "nearly flat",
            f"The smallest eigenvalue of the scaled information is "
            f"{found.smallest_eigenvalue:.1e}: parameters can hardly be told apart.",
            "Fix one of them with `fixed`, or center and scale predictors.",
        )


def _of_limits(result: Any) -> Iterator[Finding]:
    """Parameters at bounds, and constraints that hold the estimates."""
    for label, where in result.boundary.items():
        yield Finding(
            "boundary",
            f"{where.sentence(label).rstrip('.')}.",
            "It has no standard error. Report the limit, or the smaller model by `fixed`.",
        )
    for constraint in result.active_constraints:
        yield Finding(
            "constraint",
            f"{str(constraint).rstrip('.')}.",
            "The estimate is where the constraint holds it; its multiplier says what a wider one "
            "would gain.",
        )


def _of_errors(result: Any) -> Iterator[Finding]:
    """Standard errors that are not there."""
    if result.status not in CONVERGED:
        return
    if result.uncertainty.reason:
        yield Finding(
            "standard errors",
            f"They are not available: {result.uncertainty.reason.rstrip('.')}.",
            "Fix what is not identified with `fixed`, or constrain it.",
        )
    elif result.uncertainty.note and not (result.boundary or result.active_constraints):
        yield Finding("flat direction", f"{result.uncertainty.note.rstrip('.')}.", "")


def _of_chains(result: Any) -> Iterator[Finding]:
    """Divergences, and chains in different places whose scores agree."""
    diverged = np.asarray(result.history.get("divergences", [0.0]), float)[-1:]
    if result.status in CONVERGED and np.nansum(diverged):
        yield Finding(
            "divergences",
            f"{int(np.nansum(diverged))} transitions of the last step diverged: a part of the "
            f"posterior is hardly visited.",
            "Reparameterise the latents, or raise `NUTS(target_accept_prob=...)`.",
        )
    inner = getattr(result.posterior, "inner", None)
    if inner is None or not inner.by_draws:
        return
    draws = np.asarray(inner.draws)  # (chain, draw, D)
    if len(draws) < 2 or draws.shape[1] < 4:
        return
    place = 0
    for site in result.posterior.problem.spec.latents:
        size = int(np.prod(site.shape_u))
        rhat = rank_rhat(draws[..., place : place + size])
        place += size
        if rhat > APART:
            yield Finding(
                "labels or signs",
                f"The chains of site '{site.name}' sit in different places (R-hat {rhat:.1f}).",
                "If these are mirror images, signs or labels of the latents: break the symmetry in "
                "the model, or use nothing that depends on them; else draw more with "
                "NUTS(num_samples=...).",
                serious=result.status not in CONVERGED,
            )


def _of_weights(result: Any) -> Iterator[Finding]:
    """Importance weights with heavy tails."""
    khat, kind = result.log_likelihood.pareto_khat, result.log_likelihood.kind
    if khat is None or not khat > MAX_KHAT:
        return
    bound = kind == "lower_bound"
    far = (
        "the approximation is far from the posterior"
        if bound
        else "its error is not to be relied on"
    )
    remedy = "Compare with e_step='nuts'." if bound else "Draw more with NUTS(num_samples=...)."
    yield Finding(
        "k-hat",
        f"Pareto k-hat of the weights behind the log-likelihood is {khat:.2f}, above {MAX_KHAT}: "
        f"{far}.",
        remedy,
    )


def _of_draws(result: Any) -> Iterator[Finding]:
    """Monte Carlo errors that are too large."""
    if result.status not in CONVERGED:
        return
    se, mcse = np.sqrt(np.diag(result.uncertainty.covariance)), result.uncertainty.mcse
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(se > 0, mcse / se, 0.0)
    worst = int(np.argmax(np.nan_to_num(share, nan=0.0))) if share.size else 0
    if share.size and share[worst] > NOISY:
        yield Finding(
            "too few draws",
            f"The Monte Carlo error of {result.labels[worst]} is {share[worst]:.2f} of its "
            f"standard error.",
            "Allow more draws with `Stopping(max_draws=...)`, or a smaller error with "
            "`Stopping(mcse_fraction=...)`.",
        )
    if result.log_likelihood.mcse > NOISY_VALUE:
        yield Finding(
            "too few draws",
            f"That of the log-likelihood is {result.log_likelihood.mcse:.2g} nats.",
            "Draw more with NUTS(num_samples=...) before models are compared by it.",
        )


def _of_precision(result: Any) -> Iterator[Finding]:
    """float32 whose spacing is above the tolerance."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(result.params)]
    value = result.log_likelihood.value
    if not any(leaf.dtype == np.float32 for leaf in leaves) or not np.isfinite(value):
        return
    spacing = float(np.spacing(np.float32(abs(value))))
    if np.sqrt(2 * spacing) < NOTICEABLE:
        return
    yield Finding(
        "float32",
        f"Log-likelihoods of this size differ by {spacing:.1g} or more in float32: estimates may "
        f"be off by {np.sqrt(2 * spacing):.1g} standard errors.",
        "Call `numpyro.enable_x64()` first.",
    )


def _of_restarts(result: Any) -> Iterator[Finding]:
    """An optimum that few of the starts have found, and what is peculiar about it."""
    found = result.restarts
    if found is None or not found.optima:
        return
    best, tried = found.optima[0], len(found.cluster)
    if best.note:
        yield Finding("components", f"{best.note.rstrip('.')}.", "Try a model with fewer of them.")
    if tried > SELDOM and len(best.starts) < SELDOM and len(found.optima) > 1:
        yield Finding(
            "several optima",
            f"The best of {len(found.optima)} optima was found by {len(best.starts)} of {tried} "
            f"starts: there may be a better one.",
            f"Raise `num_restarts` above {tried}.",
        )


def _of_bias(result: Any, audit: "Audit | None") -> Iterator[Finding]:
    """What an approximation does to the estimates."""
    kind = result.log_likelihood.kind
    if audit is not None:
        shift = np.nan_to_num(np.abs(audit.shift), nan=0.0)
        if not audit.trusted or np.max(shift, initial=0.0) > FAR:
            yield Finding("bias", audit.sentence, f"Fit with e_step='{audit.e_step}'.")
    elif kind == "lower_bound" and result.status in CONVERGED:
        yield Finding(
            "bias",
            "The estimates are those of a lower bound, not looked at by a stronger E-step.",
            "`result.diagnose(audit=result.audit(rng_key))` says by how many standard errors they "
            "are off.",
        )


RULES: tuple[Callable[[Any], Iterator[Finding]], ...] = (
    _of_the_end,
    _of_the_certificate,
    _of_limits,
    _of_errors,
    _of_chains,
    _of_weights,
    _of_draws,
    _of_precision,
    _of_restarts,
)
"""In the order in which findings of one rank are shown."""
