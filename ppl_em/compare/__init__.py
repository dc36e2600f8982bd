"""One model under several E-steps, or several algorithms."""

from ppl_em.compare.algorithms import ALGORITHMS, AlgorithmComparison, compare_algorithms
from ppl_em.compare.e_steps import Comparison, compare_e_steps
from ppl_em.compare.models import compare_models

__all__ = [
    "ALGORITHMS",
    "AlgorithmComparison",
    "Comparison",
    "compare_algorithms",
    "compare_e_steps",
    "compare_models",
]
