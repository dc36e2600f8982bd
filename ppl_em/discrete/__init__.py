"""Discrete latents summed out: log-factors, elimination, forward-backward."""

from ppl_em.discrete.elimination import LOG_ZERO, Table, add, product, true_zero
from ppl_em.discrete.enum_messenger import BASIS
from ppl_em.discrete.factors import Layout, LogFactors
from ppl_em.discrete.joint_states import States, indicators, num_states

__all__ = [
    "BASIS",
    "LOG_ZERO",
    "Layout",
    "LogFactors",
    "States",
    "Table",
    "add",
    "indicators",
    "num_states",
    "product",
    "true_zero",
]
