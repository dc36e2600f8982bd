"""Normalizing constants from log-ratios of target and proposal: importance and bridge sampling.

With a target p of unknown constant c and a normalized proposal q, importance sampling averages
p / q over draws from q. Bridge sampling also uses draws from p itself:

    c = E_q[p h] / E_p[q h],   h = 1 / (s_p p / c + s_q q),

with shares s_p and s_q of the two samples. Both averages are of bounded functions: the proposal
need not have heavier tails than the target, which in many dimensions no good proposal has.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import expit

from ppl_em.stats.pareto import pareto_khat


class Integral(NamedTuple):
    """The log of an integral, the variance of its Monte Carlo error, and a tail index."""

    value: float
    variance: float
    khat: float


def importance(log_ratios: np.ndarray) -> Integral:
    """The mean of p / q over draws from q, from log-ratios (n,).

    The variance is by the delta method. Half of it is added to the log of the mean, whose
    expectation is too small by that; over many blocks it adds up.
    """
    size = len(log_ratios)
    largest = log_ratios.max()
    weights = np.exp(log_ratios - largest)
    mean = np.mean(weights)
    variance = np.var(weights, ddof=1) / mean**2 / size
    value = float(largest + np.log(mean) + 0.5 * variance)
    return Integral(value, float(variance), pareto_khat(log_ratios))


def bridge(of_proposal: np.ndarray, of_target: np.ndarray) -> Integral:
    """The constant c by the optimal bridge between draws from q and from p.

    Parameters
    ----------
    of_proposal
        log p / q at independent draws from q, shape (n,).
    of_target
        log p / q at draws from p of a Markov chain, to which q was not fitted, shape
        (chain, draw).

    Returns
    -------
    Integral
        `khat` is that of the terms of either average, whichever is worse. They are bounded, so
        it is low unless p and q hardly overlap and a few draws make up an average.

    References
    ----------
    Meng & Wong (1996), Statistica Sinica 6, section 4, for the optimal bridge; Bennett (1976),
    Journal of Computational Physics 22, for its fixed point as the root of a monotone function.
    Frühwirth-Schnatter (2004), Econometrics Journal 7, equation 17, for the error; as in Gronau,
    Singmann & Wagenmakers (2020), Journal of Statistical Software 92, autocorrelation lowers the
    number of draws from p, both in the shares and in the error.
    """
    from scipy.optimize import brentq  # costs a tenth of a second

    num_target = _effective(of_target)
    log_odds = np.log(num_target / of_proposal.size)

    def excess(log_c: float) -> float:
        a = np.mean(expit(of_proposal - log_c + log_odds)) * of_proposal.size
        b = np.mean(expit(log_c - log_odds - of_target)) * num_target
        return float(a - b)

    both = np.concatenate([of_proposal, of_target.ravel()])
    finite = both[np.isfinite(both)]
    log_c = brentq(excess, finite.min() - 30.0, finite.max() + 30.0, xtol=1e-10)
    # The terms p h and q h up to factors, on the log scale: log expit(a) = -log(1 + exp(-a)).
    terms = -np.logaddexp(0.0, -(of_proposal - log_c + log_odds))
    terms_target = -np.logaddexp(0.0, -(log_c - log_odds - of_target))
    variance = _relative_variance(terms) / terms.size
    variance += _relative_variance(terms_target) / _effective(np.exp(terms_target))
    khat = max(pareto_khat(terms), pareto_khat(terms_target.ravel()))
    return Integral(float(log_c), float(variance), khat)


def _relative_variance(log_terms: np.ndarray) -> float:
    terms = np.exp(log_terms - log_terms.max())
    return float(np.var(terms, ddof=1) / np.mean(terms) ** 2)


def _effective(values: np.ndarray) -> float:
    """Effective number of draws for the mean of `values` (chain, draw), at most all."""
    from arviz_stats.base import array_stats

    if values.shape[1] < 4 or not np.ptp(values) > 0:
        return float(values.size)
    effective = float(array_stats.ess(values, method="mean"))
    return min(effective, float(values.size)) if np.isfinite(effective) else 1.0
