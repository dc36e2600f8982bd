"""Importance weights, proposals, bridges: statistics of draws; nothing of models in them."""

from ppl_em.stats.bridge import Integral, importance
from ppl_em.stats.diagnostics import Health, ebfmi, mean_and_error, rank_rhat, relative_error
from ppl_em.stats.pareto import MAX_KHAT, pareto_khat, smooth
from ppl_em.stats.proposals import DEGREES, Proposals, log_density_of_noise

__all__ = [
    "DEGREES",
    "MAX_KHAT",
    "Health",
    "Integral",
    "Proposals",
    "ebfmi",
    "importance",
    "log_density_of_noise",
    "mean_and_error",
    "pareto_khat",
    "rank_rhat",
    "relative_error",
    "smooth",
]
