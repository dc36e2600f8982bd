"""A model and its data as one function of parameters and latents."""

from ppl_em.problem.arguments import named_leaves
from ppl_em.problem.barrier import barrier_weights, firm, has_barrier
from ppl_em.problem.build import build_problem
from ppl_em.problem.checks import is_factor
from ppl_em.problem.derivatives import WIDE, density_and_gradients, look
from ppl_em.problem.faults import explained
from ppl_em.problem.feasibility import (
    all_conditions,
    bounds,
    brought_inside,
    conditions,
    curvature,
    is_inside,
    nearest_feasible,
    needs,
    restrict,
    violated,
)
from ppl_em.problem.fingerprint import check_unchanged, on_request
from ppl_em.problem.initial_values import init_near_mean
from ppl_em.problem.minibatches import check_batches, draw_rows
from ppl_em.problem.prepared import Prepared
from ppl_em.problem.problem import Latents, Problem
from ppl_em.problem.sites import LatentSite, site_dims
from ppl_em.problem.subsampling import AllRows, Indices, Rows, Whole
from ppl_em.problem.terms import Observed, cells_of_terms, observations, parts, terms_by_plate
from ppl_em.problem.trace import accepts, refused, run_model

__all__ = [
    "WIDE",
    "AllRows",
    "Indices",
    "LatentSite",
    "Latents",
    "Observed",
    "Prepared",
    "Problem",
    "Rows",
    "Whole",
    "accepts",
    "all_conditions",
    "barrier_weights",
    "bounds",
    "brought_inside",
    "build_problem",
    "cells_of_terms",
    "check_batches",
    "check_unchanged",
    "conditions",
    "curvature",
    "density_and_gradients",
    "draw_rows",
    "explained",
    "firm",
    "has_barrier",
    "init_near_mean",
    "is_factor",
    "is_inside",
    "look",
    "named_leaves",
    "nearest_feasible",
    "needs",
    "observations",
    "on_request",
    "parts",
    "refused",
    "restrict",
    "run_model",
    "site_dims",
    "terms_by_plate",
    "violated",
]
