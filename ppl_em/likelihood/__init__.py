"""Value, score and information of the log-likelihood."""

from ppl_em.likelihood.active_constraints import hold, moved
from ppl_em.likelihood.delta_method import constrained_covariance, flat_and_jacobian
from ppl_em.likelihood.draw_evaluation import (
    curvature_of_score,
    find_motion,
    known_blocks,
    score_moments,
)
from ppl_em.likelihood.identifiability import flat_directions, set_aside
from ppl_em.likelihood.importance_information import sampled_information
from ppl_em.likelihood.information import (
    AT_AN_END,
    MAX_SE_NOISE,
    Information,
    complement,
    frame,
    holding,
    named,
)
from ppl_em.likelihood.last_digits import change_by_last_digits, meaningless, rounding_noise
from ppl_em.likelihood.louis import Components, ScoreMoments, find, louis_information
from ppl_em.likelihood.observed import (
    held_value_and_score,
    is_large,
    marginal_information,
    value_and_score,
)
from ppl_em.likelihood.products import Spectrum, spectrum

__all__ = [
    "AT_AN_END",
    "MAX_SE_NOISE",
    "Components",
    "Information",
    "ScoreMoments",
    "Spectrum",
    "change_by_last_digits",
    "complement",
    "constrained_covariance",
    "curvature_of_score",
    "find",
    "find_motion",
    "flat_and_jacobian",
    "flat_directions",
    "frame",
    "held_value_and_score",
    "hold",
    "holding",
    "is_large",
    "known_blocks",
    "louis_information",
    "marginal_information",
    "meaningless",
    "moved",
    "named",
    "rounding_noise",
    "sampled_information",
    "score_moments",
    "set_aside",
    "spectrum",
    "value_and_score",
]
