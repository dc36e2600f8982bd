"""What an audit found: a fit as a stronger E-step sees it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ppl_em.posterior import LogLikelihood
from ppl_em.stats import MAX_KHAT
from ppl_em.util import printable

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Audit:
    """What a stronger E-step says about a fit. Arrays are (P,), in the order of `labels`.

    Attributes
    ----------
    labels
        Names of the flattened parameters, `alpha[0]`, `sd`, ...
    estimate, corrected
        The fit, and the nearest maximum of the stronger log-likelihood, on the model's own scale.
    se
        Standard errors at `corrected`, by the stronger E-step; 0 where fixed, NaN where there are
        none.
    shift, shift_mcse
        corrected - estimate in units of `se`, and its Monte Carlo error; positive where the
        estimate is too small. NaN if the audit is not to be trusted.
    one_step
        The shift after the first Newton step alone, taken on the unconstrained scale. Differs from
        `shift` where the fit is far off; NaN where the log-likelihood is not concave at the fit, or
        the step longer than three standard errors.
    fit, e_step
        The flags of the fit and of the stronger E-step.
    log_likelihood
        By the stronger E-step, at the fitted parameters.
    gap, gap_mcse
        That minus the fit's own log-likelihood or bound, and its Monte Carlo error.
    khat
        Pareto k-hat of the fit's own approximation; None if it has none.
    reason
        Why the audit is not to be trusted; empty if it is.
    note
        Which parameters it says nothing about; empty if none.
    sentence
        The finding in words.
    seconds
        Wall time.

    Examples
    --------
    With the `result` of the example of `ppl_em.EM`:

    >>> audit = result.audit(jax.random.key(1))
    >>> audit.e_step, audit.trusted
    ('exact', True)
    >>> bool(audit.table()["shift"].abs().max() < 0.01)
    True
    """

    labels: list[str]
    estimate: np.ndarray
    corrected: np.ndarray
    se: np.ndarray
    shift: np.ndarray
    shift_mcse: np.ndarray
    one_step: np.ndarray
    fit: str
    e_step: str
    log_likelihood: LogLikelihood
    gap: float
    gap_mcse: float
    khat: float | None
    reason: str
    note: str
    sentence: str
    seconds: float

    @property
    def trusted(self) -> bool:
        """Whether the shifts may be believed."""
        return not self.reason

    def table(self) -> "pandas.DataFrame":
        """A row per scalar parameter: estimate, se, shift, shift_mcse, one_step, corrected.

        Shifts are in units of `se`.
        """
        import pandas

        names = ("estimate", "se", "shift", "shift_mcse", "one_step", "corrected")
        columns = {name: getattr(self, name) for name in names}
        return pandas.DataFrame(columns, index=pandas.Index(self.labels, name="parameter"))

    def __str__(self) -> str:
        gap = f"{self.gap:.4g}" + (f" ± {self.gap_mcse:.2g}" if self.gap_mcse else "")
        if (self.log_likelihood.pareto_khat or 0.0) > MAX_KHAT:
            gap += ", not to be trusted"
        lines = [
            f"{self.table().round(4) + 0.0}",
            f"log-likelihood at the fit {self.log_likelihood}, by {self.e_step}",
            f"gap to the fit's own      {gap}",
        ]
        if self.khat is not None:
            far = ": q is far from the posterior" if self.khat > MAX_KHAT else ""
            lines.append(f"k-hat of the fit          {self.khat:.2f}{far}")
        return printable("\n".join([*lines, *filter(None, [self.note]), self.sentence]))
