"""Everything that moves the parameters."""

from ppl_em.algorithms.acceleration import ACCELERATORS, check_acceleration
from ppl_em.algorithms.ascent import MAX_LENGTH, Model, Point, ascend
from ppl_em.algorithms.certificate import Certified
from ppl_em.algorithms.confirmation import Polish, Verdict, polish
from ppl_em.algorithms.direct import METHODS
from ppl_em.algorithms.history import Limits, Plan
from ppl_em.algorithms.maximization import maximization as maximized
from ppl_em.algorithms.run import Outcome, run_loop
from ppl_em.algorithms.sampler import Sampler
from ppl_em.algorithms.stopping import Stopping, rounding
from ppl_em.algorithms.unbounded import STEEP, why_no_maximum

__all__ = [
    "ACCELERATORS",
    "MAX_LENGTH",
    "METHODS",
    "STEEP",
    "Certified",
    "Limits",
    "Model",
    "Outcome",
    "Plan",
    "Point",
    "Polish",
    "Sampler",
    "Stopping",
    "Verdict",
    "ascend",
    "check_acceleration",
    "maximized",
    "polish",
    "rounding",
    "run_loop",
    "why_no_maximum",
]
