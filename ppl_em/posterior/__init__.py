"""What an E-step returns: the latents given the data at one value of the parameters."""

from ppl_em.posterior.arrow import GaussianArrow
from ppl_em.posterior.base import Posterior
from ppl_em.posterior.block_draws import BlockDraws, TermLayout
from ppl_em.posterior.chain import GaussianChain
from ppl_em.posterior.conjugate import LogGamma, LogitBeta
from ppl_em.posterior.draws import WeightedDraws
from ppl_em.posterior.enumerated import Enumerated
from ppl_em.posterior.factorized import Factorized
from ppl_em.posterior.full_rank import FullRank
from ppl_em.posterior.gaussian import Gaussian
from ppl_em.posterior.guide import GaussianGuide, guide_hessian
from ppl_em.posterior.guided import Guided
from ppl_em.posterior.laplace import GaussianLaw, LaplaceApproximation, half_trace
from ppl_em.posterior.mixture import BlockLayout, GaussianMixture
from ppl_em.posterior.product import PartPosterior, Product
from ppl_em.posterior.quadrature import Nodes

__all__ = [
    "BlockDraws",
    "BlockLayout",
    "Enumerated",
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
    "LogGamma",
    "LogitBeta",
    "Nodes",
    "PartPosterior",
    "Posterior",
    "Product",
    "TermLayout",
    "WeightedDraws",
    "guide_hessian",
    "half_trace",
]
