"""Fit NumPyro models by Expectation-Maximization, with a numerical M-step."""

from ppl_em import e_step, m_step
from ppl_em.algorithms import Stopping
from ppl_em.cli import catalog
from ppl_em.compare import (
    AlgorithmComparison,
    Comparison,
    compare_algorithms,
    compare_e_steps,
    compare_models,
)
from ppl_em.direct import Direct
from ppl_em.em import EM
from ppl_em.params import Constraint
from ppl_em.posterior import LogLikelihood
from ppl_em.result import Audit, Diagnosis, EMResult, Finding, Optimum, Restarts, Status, load
from ppl_em.util import ModelError, enable_cache

__version__ = "0.1.0"

__all__ = [
    "EM",
    "AlgorithmComparison",
    "Audit",
    "Comparison",
    "Constraint",
    "Diagnosis",
    "Direct",
    "EMResult",
    "Finding",
    "LogLikelihood",
    "ModelError",
    "Optimum",
    "Restarts",
    "Status",
    "Stopping",
    "catalog",
    "compare_algorithms",
    "compare_e_steps",
    "compare_models",
    "e_step",
    "enable_cache",
    "load",
    "m_step",
]
