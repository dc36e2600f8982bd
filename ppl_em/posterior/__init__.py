"""What an E-step returns: the latents given the data at one value of the parameters."""

from ppl_em.posterior.base import Posterior, constrain_draws
from ppl_em.posterior.block_draws import BlockDraws, Proposal, TermLayout, draw_mixing
from ppl_em.posterior.chain_nodes import ChainNodes, PathSums, on_nodes, path_sums
from ppl_em.posterior.conjugate import LogGamma, LogitBeta
from ppl_em.posterior.draws import WeightedDraws
from ppl_em.posterior.enumerated import Enumerated
from ppl_em.posterior.expectation import Expectation
from ppl_em.posterior.factorized import Factorized
from ppl_em.posterior.full_rank import FullRank
from ppl_em.posterior.gaussian_arrow import GaussianArrow
from ppl_em.posterior.gaussian_blocks import Gaussian
from ppl_em.posterior.gaussian_chain import GaussianChain, mul, transpose
from ppl_em.posterior.gaussian_filter import (
    Sightings,
    Transitions,
    filtered,
    semi_cholesky,
    semi_solve,
)
from ppl_em.posterior.laplace import GaussianLaw, LaplaceApproximation, half_trace
from ppl_em.posterior.linalg import roots
from ppl_em.posterior.log_likelihood import OF_PARAMETERS, UNBIASED, LogLikelihood
from ppl_em.posterior.mixture import BlockLayout, GaussianMixture
from ppl_em.posterior.numpyro_guide import AutoLaw, Guided, Law, UserLaw
from ppl_em.posterior.product import PartPosterior, Product
from ppl_em.posterior.quadrature import Nodes, block_sums, constant_part
from ppl_em.posterior.quadrature_rules import Placed, Span, find_span, gauss_hermite, sinh_trapezoid
from ppl_em.posterior.variational import MAX_HESSIAN, GaussianGuide, flat_blocks, guide_hessian

__all__ = [
    "MAX_HESSIAN",
    "OF_PARAMETERS",
    "UNBIASED",
    "AutoLaw",
    "BlockDraws",
    "BlockLayout",
    "ChainNodes",
    "Enumerated",
    "Expectation",
    "Factorized",
    "FullRank",
    "Gaussian",
    "GaussianArrow",
    "GaussianChain",
    "GaussianGuide",
    "GaussianLaw",
    "GaussianMixture",
    "Guided",
    "LaplaceApproximation",
    "Law",
    "LogGamma",
    "LogLikelihood",
    "LogitBeta",
    "Nodes",
    "PartPosterior",
    "PathSums",
    "Placed",
    "Posterior",
    "Product",
    "Proposal",
    "Sightings",
    "Span",
    "TermLayout",
    "Transitions",
    "UserLaw",
    "WeightedDraws",
    "block_sums",
    "constant_part",
    "constrain_draws",
    "draw_mixing",
    "filtered",
    "find_span",
    "flat_blocks",
    "gauss_hermite",
    "guide_hessian",
    "half_trace",
    "mul",
    "on_nodes",
    "path_sums",
    "roots",
    "semi_cholesky",
    "semi_solve",
    "sinh_trapezoid",
    "transpose",
]
