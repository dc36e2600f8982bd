"""Fit NumPyro models by Expectation-Maximization, with a numerical M-step."""

from ppl_em import e_step, m_step
from ppl_em.algorithms import AlgorithmComparison, compare_algorithms
from ppl_em.audited import Audit
from ppl_em.compare import Comparison, compare_e_steps
from ppl_em.direct import Direct
from ppl_em.em import EM
from ppl_em.likelihood import LogLikelihood
from ppl_em.optima import Optimum, Restarts
from ppl_em.restrictions import Constraint
from ppl_em.result import EMResult
from ppl_em.status import Status
from ppl_em.stopping import Stopping
from ppl_em.storage import load
from ppl_em.validation import ModelError

__version__ = "0.1.0"

__all__ = [
    "EM",
    "AlgorithmComparison",
    "Audit",
    "Comparison",
    "Constraint",
    "Direct",
    "EMResult",
    "LogLikelihood",
    "ModelError",
    "Optimum",
    "Restarts",
    "Status",
    "Stopping",
    "compare_algorithms",
    "compare_e_steps",
    "e_step",
    "load",
    "m_step",
]
