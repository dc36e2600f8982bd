"""Discrete latents summed out: log-factors, elimination, forward-backward."""

from ppl_em.discrete.axes import scaled
from ppl_em.discrete.elimination import LOG_ZERO, Table, add, product, true_zero
from ppl_em.discrete.enum_messenger import BASIS
from ppl_em.discrete.factors import Layout, LogFactors
from ppl_em.discrete.first_step import scan_from_any_start
from ppl_em.discrete.joint_states import States, indicators, num_states
from ppl_em.discrete.masked import partly_scaled, reached
from ppl_em.discrete.safe_laws import safe
from ppl_em.discrete.supports import MAX_VALUES, is_delta, mask_of, num_values, support_of

__all__ = [
    "BASIS",
    "LOG_ZERO",
    "MAX_VALUES",
    "Layout",
    "LogFactors",
    "States",
    "Table",
    "add",
    "indicators",
    "is_delta",
    "mask_of",
    "num_states",
    "num_values",
    "partly_scaled",
    "product",
    "reached",
    "safe",
    "scaled",
    "scan_from_any_start",
    "support_of",
    "true_zero",
]
