"""Fit NumPyro models by Expectation-Maximization, with a numerical M-step."""

import importlib
from typing import TYPE_CHECKING, Any

from ppl_em import e_step, m_step
from ppl_em.algorithms import Stopping
from ppl_em.direct import Direct
from ppl_em.em import EM
from ppl_em.params import Constraint
from ppl_em.posterior import LogLikelihood
from ppl_em.result import Audit, Diagnosis, EMResult, Finding, Optimum, Restarts, Status, load
from ppl_em.util import ModelError, enable_cache

if TYPE_CHECKING:
    from ppl_em.cli import catalog
    from ppl_em.compare import (
        AlgorithmComparison,
        Comparison,
        compare_algorithms,
        compare_e_steps,
        compare_models,
    )

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

_LATE = dict.fromkeys(
    (
        "AlgorithmComparison",
        "Comparison",
        "compare_algorithms",
        "compare_e_steps",
        "compare_models",
    ),
    "ppl_em.compare",
) | {"catalog": "ppl_em.cli"}
"""What is loaded when it is first asked for, by the folder that has it (PEP 562)."""


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'ppl_em' has no attribute {name!r}")
    return getattr(importlib.import_module(_LATE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
