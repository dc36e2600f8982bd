"""What is said of a parameter that is at a bound, or goes to infinity."""

from typing import NamedTuple

import numpy as np


class Boundary(NamedTuple):
    """A parameter that is at a bound of its support, because the likelihood falls from there.

    Attributes
    ----------
    bound
        The bound, which is the estimate; infinite for a limit at infinity.
    score
        Change of the log-likelihood per unit of (distance from the bound) ** power at the bound:
        negative, with the other parameters at their best. The distance from infinity is 1 over the
        value.
    power
        1 if the log-likelihood has a slope at the bound, as in a probability or a variance; 2 if
        it has none, as in a standard deviation, on whose square it depends. 0 for parameters that
        go to infinity together, or without a scale of their own, as where outcomes are separated:
        `score` is then the change on the way back from infinity.
    limit
        What the model is there, if its law is known: "the Poisson limit of `y`".
    """

    bound: float
    score: float
    power: int
    limit: str = ""

    def sentence(self, label: str) -> str:
        """In words, with the parameter's name."""
        away = f"`{label}` goes to {'' if self.bound > 0 else 'minus '}infinity"
        law = f": {self.limit}" if self.limit else ""
        if self.power == 0:
            why = law or ": it separates outcomes, as where all of a group are successes"
            return (
                f"{away}, where the log-likelihood has its limit{why} (its value here is as good "
                f"as infinite)"
            )
        if np.isinf(self.bound):
            unit = f"1 / |{label}|" + ("" if self.power == 1 else f"**{self.power}")
            return (
                f"{away}{law or ', and the model to its limit there'} (the log-likelihood changes "
                f"by {self.score:.4g} per unit of {unit} from it)"
            )
        distance = label if self.bound == 0 else f"({label} - {self.bound:.6g})"
        unit = f"|{distance}|" if self.power == 1 else f"{distance}**{self.power}"
        return (
            f"`{label}` is at its boundary {self.bound:.6g}{law} (the log-likelihood changes by "
            f"{self.score:.4g} per unit of {unit} from there)"
        )
