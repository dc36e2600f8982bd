"""Everything that moves the parameters."""

from ppl_em.algorithms.acceleration import ACCELERATORS, check_acceleration
from ppl_em.algorithms.confirmation import Polish, Verdict, polish
from ppl_em.algorithms.direct import METHODS
from ppl_em.algorithms.history import Limits, Plan
from ppl_em.algorithms.run import Outcome, run_loop
from ppl_em.algorithms.sampler import Sampler
from ppl_em.algorithms.stopping import Stopping, rounding

__all__ = [
    "ACCELERATORS",
    "METHODS",
    "Limits",
    "Outcome",
    "Plan",
    "Polish",
    "Sampler",
    "Stopping",
    "Verdict",
    "check_acceleration",
    "polish",
    "rounding",
    "run_loop",
]
