"""What a fit hands to its user."""

from ppl_em.result.audit import Audit
from ppl_em.result.certificate import Certificate
from ppl_em.result.em_result import EMResult
from ppl_em.result.finding import Diagnosis, Finding
from ppl_em.result.inference.left_out import LeftOut
from ppl_em.result.inference.likelihood_ratio import (
    Counts,
    LikelihoodRatio,
    check_same_data,
    of_one_kind,
)
from ppl_em.result.inference.nested import Model
from ppl_em.result.latents import LatentPosterior, draw_discrete
from ppl_em.result.new_data import Evaluated, Options, predictions
from ppl_em.result.plots import plot_fit
from ppl_em.result.restarts import NO_OPTIMUM, Optimum, Restarts
from ppl_em.result.status import CONVERGED, Status
from ppl_em.result.text import remarks
from ppl_em.result.tree.datatree import (
    CHAINS,
    DRAWS,
    JointDraws,
    draws_at_estimate,
    held,
    to_datatree,
)
from ppl_em.result.tree.netcdf import write_tree
from ppl_em.result.tree.replay import BUDGET
from ppl_em.result.tree.storage import load
from ppl_em.result.uncertainty import Uncertainty, Unconstrained

__all__ = [
    "BUDGET",
    "CHAINS",
    "CONVERGED",
    "DRAWS",
    "NO_OPTIMUM",
    "Audit",
    "Certificate",
    "Counts",
    "Diagnosis",
    "EMResult",
    "Evaluated",
    "Finding",
    "JointDraws",
    "LatentPosterior",
    "LeftOut",
    "LikelihoodRatio",
    "Model",
    "Optimum",
    "Options",
    "Restarts",
    "Status",
    "Uncertainty",
    "Unconstrained",
    "check_same_data",
    "draw_discrete",
    "draws_at_estimate",
    "held",
    "load",
    "of_one_kind",
    "plot_fit",
    "predictions",
    "remarks",
    "to_datatree",
    "write_tree",
]
