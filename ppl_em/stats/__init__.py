"""Importance weights, proposals, bridges: statistics of draws; nothing of models in them."""

from ppl_em.stats.bridge import Integral, importance
from ppl_em.stats.diagnostics import ebfmi
from ppl_em.stats.pareto import pareto_khat
from ppl_em.stats.proposals import Proposals
from ppl_em.stats.smoothing import smooth

__all__ = ["Integral", "Proposals", "ebfmi", "importance", "pareto_khat", "smooth"]
