"""Models of the kinds in NumPyro's examples, notebooks and tests, with what is to come out.

They are written anew: structure and shapes of the data are those of the source, which each names.
"""

from . import chains, effects, mixtures, plates, regressions, series
from .case import CASES, Case

__all__ = ["CASES", "Case", "chains", "effects", "mixtures", "plates", "regressions", "series"]
