"""What a fit hands to its user."""

from ppl_em.result.audit import Audit
from ppl_em.result.certificate import Certificate
from ppl_em.result.datatree import (
    CHAINS,
    DRAWS,
    JointDraws,
    draws_at_estimate,
    held,
    to_datatree,
)
from ppl_em.result.em_result import EMResult
from ppl_em.result.latents import LatentPosterior, draw_discrete
from ppl_em.result.netcdf import write_tree
from ppl_em.result.plots import plot_fit
from ppl_em.result.replay import BUDGET
from ppl_em.result.restarts import NO_OPTIMUM, Optimum, Restarts
from ppl_em.result.status import CONVERGED, Status
from ppl_em.result.storage import load
from ppl_em.result.text import remarks
from ppl_em.result.uncertainty import Uncertainty, Unconstrained

__all__ = [
    "BUDGET",
    "CHAINS",
    "CONVERGED",
    "DRAWS",
    "NO_OPTIMUM",
    "Audit",
    "Certificate",
    "EMResult",
    "JointDraws",
    "LatentPosterior",
    "Optimum",
    "Restarts",
    "Status",
    "Uncertainty",
    "Unconstrained",
    "draw_discrete",
    "draws_at_estimate",
    "held",
    "load",
    "plot_fit",
    "remarks",
    "to_datatree",
    "write_tree",
]
