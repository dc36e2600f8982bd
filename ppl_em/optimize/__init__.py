"""Maximisers of functions of a vector; nothing of models in them."""

from ppl_em.optimize.base import Maximum, Objective
from ppl_em.optimize.differences import gradients_and_hessians, hessian_on_host, units
from ppl_em.optimize.kkt import Conditions, is_feasible
from ppl_em.optimize.newton import Curvature, no_curvature, secant
from ppl_em.optimize.scipy import (
    DERIVATIVE_FREE,
    METHODS,
    SECOND_ORDER,
    TAKES,
    TAKES_BOUNDS,
    TAKES_CONDITIONS,
    HostMaximum,
    maximize,
)
from ppl_em.optimize.trust_region import Quadratic

__all__ = [
    "DERIVATIVE_FREE",
    "METHODS",
    "SECOND_ORDER",
    "TAKES",
    "TAKES_BOUNDS",
    "TAKES_CONDITIONS",
    "Conditions",
    "Curvature",
    "HostMaximum",
    "Maximum",
    "Objective",
    "Quadratic",
    "gradients_and_hessians",
    "hessian_on_host",
    "is_feasible",
    "maximize",
    "no_curvature",
    "secant",
    "units",
]
