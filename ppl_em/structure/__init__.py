"""Where the Hessian of the log-joint in the latents is zero: proposed patterns, checked."""

from ppl_em.structure.additive import (
    NotAdditive,
    Target,
    by_block,
    by_component,
    log_joints,
    owners,
    targets,
)
from ppl_em.structure.arrow import Arrow, ArrowMatrix
from ppl_em.structure.base import (
    Density,
    Structure,
    compressed_hessian,
    hessian_product,
    restrict,
    tolerance,
)
from ppl_em.structure.blocks import Blocks, dense
from ppl_em.structure.candidates import coordinates, site_names
from ppl_em.structure.chain import Band, Chain
from ppl_em.structure.components import find_components
from ppl_em.structure.condense_rows import Condensation
from ppl_em.structure.condense_steps import (
    StepPoints,
    StepTotals,
    other_terms,
    steps_term,
    summed,
    totals,
)
from ppl_em.structure.exchangeability import Group, exchangeable, nearest, permuted
from ppl_em.structure.find_chain import find_lone_chain, terms_by_step
from ppl_em.structure.node_tables import Tables, pair_tables, weighted_sum
from ppl_em.structure.own_units import in_own_units
from ppl_em.structure.placement import Reach, active, prior_reach
from ppl_em.structure.search import find_blocks, find_structure
from ppl_em.structure.step_terms import StepTerms

__all__ = [
    "Arrow",
    "ArrowMatrix",
    "Band",
    "Blocks",
    "Chain",
    "Condensation",
    "Density",
    "Group",
    "NotAdditive",
    "Reach",
    "StepPoints",
    "StepTerms",
    "StepTotals",
    "Structure",
    "Tables",
    "Target",
    "active",
    "by_block",
    "by_component",
    "compressed_hessian",
    "coordinates",
    "dense",
    "exchangeable",
    "find_blocks",
    "find_components",
    "find_lone_chain",
    "find_structure",
    "hessian_product",
    "in_own_units",
    "log_joints",
    "nearest",
    "other_terms",
    "owners",
    "pair_tables",
    "permuted",
    "prior_reach",
    "restrict",
    "site_names",
    "steps_term",
    "summed",
    "targets",
    "terms_by_step",
    "tolerance",
    "totals",
    "weighted_sum",
]
