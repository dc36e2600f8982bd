"""Which of two nested fits: sizes of fits, and the test of the likelihood ratio."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy.special import chdtrc

from ppl_em.posterior import OF_PARAMETERS, UNBIASED
from ppl_em.util import ModelError

EQUAL = 1e-8
"""Difference of log-likelihoods, relative to 1 + their size, that is none."""

GROSS = 1e-3
"""By how much, in nats, the smaller of nested fits may be higher, as runs end a little early."""


class Counts(NamedTuple):
    """Sizes of a fit, see `EMResult.num_params` and `num_obs`; a digest tells data apart."""

    num_params: int
    num_obs: float
    digest: str


@dataclass(frozen=True)
class LikelihoodRatio:
    """A test of the likelihood ratio of two nested fits, as `EMResult.lrt` returns it.

    Attributes
    ----------
    statistic
        Twice the difference of the log-likelihoods.
    df
        Difference of the numbers of parameters.
    p_value
        Probability of a larger statistic if the smaller model is true.
    weights
        Degrees of freedom to the weight of their chi-squared law; 0 is the law of the constant 0.
    mcse, p_mcse
        Monte Carlo errors of the statistic and of the p-value.
    boundary
        Parameters of the larger model that the smaller one has at a bound of their support.
    note
        What else is to be known; empty if nothing.

    Examples
    --------
    >>> from ppl_em.result import LikelihoodRatio
    >>> print(LikelihoodRatio(2.7055, 1, 0.05, {0: 0.5, 1: 0.5}))
    likelihood ratio 2.7055, df 1, law 0.5 chi2(0) + 0.5 chi2(1): p = 0.05
    """

    statistic: float
    df: int
    p_value: float
    weights: dict[int, float]
    mcse: float = 0.0
    p_mcse: float = 0.0
    boundary: tuple[str, ...] = field(default=())
    note: str = ""

    def __str__(self) -> str:
        error = f" (Monte Carlo error {self.mcse:.2g})" if self.mcse else ""
        law = " + ".join(f"{w:g} chi2({df})" for df, w in self.weights.items())
        p_error = f" (Monte Carlo error {self.p_mcse:.2g})" if self.p_mcse else ""
        text = f"likelihood ratio {self.statistic:.4f}{error}, df {self.df}, law {law}: "
        text += f"p = {self.p_value:.4g}{p_error}"
        return text + (f". {self.note}." if self.note else "")


def likelihood_ratio(
    smaller: Any, larger: Any, boundary: tuple[str, ...], note: str
) -> LikelihoodRatio:
    """The test, with these parameters of the larger model at a bound under the smaller one."""
    few, many = smaller.log_likelihood, larger.log_likelihood
    statistic = 2 * (many.value - few.value)
    mcse = 2 * float(np.hypot(few.mcse, many.mcse))
    if statistic < -2 * GROSS - 4 * mcse:
        raise ModelError(
            f"`result.lrt`: the model with {smaller.num_params} parameters has a higher "
            f"log-likelihood ({few.value:.6f}) than that with {larger.num_params} "
            f"({many.value:.6f}). They are not nested, or the larger one is not at its maximum: "
            f"start it at the estimates of the smaller one with `init_params`."
        )
    none = 2 * EQUAL * (1 + abs(many.value))
    statistic = 0.0 if statistic < none else statistic
    df = larger.num_params - smaller.num_params
    weights = {df: 1.0} if not boundary else {df - 1: 0.5, df: 0.5}
    if len(boundary) > 1:
        more = (
            f"{len(boundary)} parameters stand at a bound: the weights of the mixture depend on "
            f"the model, and these make the p-value an upper bound"
        )
        note = f"{more}. {note}" if note else more
    p_value = tail(statistic, weights)
    ends = [tail(max(statistic + side * mcse, 0.0), weights) for side in (-1, 1)]
    p_mcse = float(abs(ends[0] - ends[1]) / 2) if mcse else 0.0
    return LikelihoodRatio(statistic, df, p_value, weights, mcse, p_mcse, boundary, note)


def tail(statistic: float, weights: dict[int, float]) -> float:
    """Probability of `statistic` or more under a mixture of chi-squared laws."""
    if statistic <= 0:
        return 1.0
    return float(sum(w * chdtrc(df, statistic) for df, w in weights.items() if df > 0))


def check_comparable(one: Any, other: Any, what: str) -> None:
    """Raise if two log-likelihoods are not those of one kind and of the same data."""
    kinds = one.log_likelihood.kind, other.log_likelihood.kind
    same = all(kind in UNBIASED for kind in kinds) or (
        kinds[0] == kinds[1] and kinds[0] in OF_PARAMETERS
    )
    if not same:
        raise ModelError(
            f"`{what}`: log-likelihoods of the kinds '{kinds[0]}' and '{kinds[1]}' cannot be "
            f"compared. Fit both models with e_step='exact', 'quadrature' or 'nuts'."
        )
    if one.penalties or other.penalties:
        raise ModelError(
            f"`{what}`: one of the fits maximises a penalised likelihood (`map_sites` or "
            f"`numpyro.factor`), whose ratio has no chi-squared law. Fit without penalties."
        )
    check_same_data(one, other, what)


def check_same_data(one: Any, other: Any, what: str) -> None:
    """Raise if two fits are of different data."""
    first, second = one.counts, other.counts
    if first.num_obs != second.num_obs or first.digest != second.digest:
        raise ModelError(
            f"`{what}`: the fits are of different data ({first.num_obs:g} and {second.num_obs:g} "
            f"observations that count). Fit both models to the same rows."
        )


def of_one_kind(kinds: list[str]) -> np.ndarray:
    """Which log-likelihoods stand for one number: those without bias, or else the first's kind."""
    unbiased = np.array([kind in UNBIASED for kind in kinds])
    return unbiased if unbiased.any() else np.array([kind == kinds[0] for kind in kinds])
