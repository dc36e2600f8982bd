"""A model and its data as one function of parameters and latents."""

from ppl_em.problem.build import build_problem, site_dims
from ppl_em.problem.checks import is_factor
from ppl_em.problem.feasibility import (
    all_conditions,
    barrier,
    barrier_weights,
    bounds,
    brought_inside,
    conditions,
    curvature,
    firm,
    has_barrier,
    is_inside,
    nearest_feasible,
    needs,
    restrict,
    violated,
)
from ppl_em.problem.minibatches import check_batches, draw_rows
from ppl_em.problem.problem import Latents, LatentSite, Problem
from ppl_em.problem.subsampling import AllRows, Indices, Rows
from ppl_em.problem.terms import WIDE, density_and_gradients, look, owners

__all__ = [
    "WIDE",
    "AllRows",
    "Indices",
    "LatentSite",
    "Latents",
    "Problem",
    "Rows",
    "all_conditions",
    "barrier",
    "barrier_weights",
    "bounds",
    "brought_inside",
    "build_problem",
    "check_batches",
    "conditions",
    "curvature",
    "density_and_gradients",
    "draw_rows",
    "firm",
    "has_barrier",
    "is_factor",
    "is_inside",
    "look",
    "nearest_feasible",
    "needs",
    "owners",
    "restrict",
    "site_dims",
    "violated",
]
