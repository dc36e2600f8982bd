"""Where the Hessian of the log-joint in the latents is zero: proposed patterns, checked."""

from ppl_em.structure.arrow import Arrow
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
from ppl_em.structure.chain import Chain
from ppl_em.structure.components import find_components
from ppl_em.structure.search import find_blocks, find_structure

__all__ = [
    "Arrow",
    "Blocks",
    "Chain",
    "Density",
    "Structure",
    "compressed_hessian",
    "coordinates",
    "dense",
    "find_blocks",
    "find_components",
    "find_structure",
    "hessian_product",
    "restrict",
    "site_names",
    "tolerance",
]
