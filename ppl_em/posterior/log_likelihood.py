"""LogLikelihood: a value that says what kind of likelihood it is, and its error."""

from typing import NamedTuple

from ppl_em.stats import MAX_KHAT

OF_PARAMETERS = ("exact", "quadrature", "laplace")
"""Kinds that are log-likelihoods, functions of the parameters alone: no bounds, no estimates."""

UNBIASED = ("exact", "quadrature", "estimate")
"""Kinds that stand for the same number."""

KINDS = (*OF_PARAMETERS, "lower_bound", "estimate")
"""Every kind of marginal log-likelihood; only `"exact"` is free of approximation."""


WARNINGS = {
    "estimate": ": too large, so neither the value nor its error can be trusted; draw more per "
    "step with NUTS(num_samples=...), or reparameterise the latents",
    "lower_bound": ": the approximation is far from the posterior; compare with e_step='nuts'",
}
"""What a bad k-hat means for each kind of likelihood."""


class LogLikelihood(NamedTuple):
    """Marginal log-likelihood at the returned parameters, with all constants.

    Attributes
    ----------
    value
        The number, in natural-log units.
    kind
        One of `KINDS`.
    mcse
        Its Monte Carlo standard error; 0 where nothing is random.
    pareto_khat
        Worst tail index of the importance weights behind the number; below 0.7 it can be
        trusted. `None` where no weights are involved.

    Examples
    --------
    >>> from ppl_em import LogLikelihood
    >>> print(LogLikelihood(-8.3193, "estimate", mcse=0.0021, pareto_khat=0.31))
    -8.319300 (estimate, Monte Carlo error 0.0021, Pareto k-hat 0.31)
    """

    value: float
    kind: str
    mcse: float = 0.0
    pareto_khat: float | None = None

    def __str__(self) -> str:
        text = f"{self.value:.6f} ({self.kind.replace('_', ' ')}"
        if self.mcse:
            text += f", Monte Carlo error {self.mcse:.2g}"
        if self.pareto_khat is not None:
            text += f", Pareto k-hat {self.pareto_khat:.2f}"
        if self.pareto_khat is not None and self.pareto_khat > MAX_KHAT:
            text += WARNINGS.get(self.kind, "")
        return text + ")"
