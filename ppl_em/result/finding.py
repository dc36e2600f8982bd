"""What a diagnosis consists of."""

from typing import NamedTuple

from ppl_em.util import printable


class Finding(NamedTuple):
    """One thing that speaks against a fit.

    Attributes
    ----------
    topic
        A word or two.
    evidence
        What was seen, with its number.
    next_step
        What to do about it.
    serious
        Whether the estimates are not to be used before that is cleared.

    Examples
    --------
    >>> from ppl_em import Finding
    >>> print(Finding("float32", "Estimates may be off.", "Call `numpyro.enable_x64()` first."))
    float32: Estimates may be off. Call `numpyro.enable_x64()` first.
    """

    topic: str
    evidence: str
    next_step: str
    serious: bool = False

    def __str__(self) -> str:
        return printable(f"{self.topic}: {self.evidence} {self.next_step}".strip())


class Diagnosis(tuple[Finding, ...]):
    """The findings, the most serious first; empty if nothing speaks against the fit.

    Examples
    --------
    >>> from ppl_em import Diagnosis, Finding
    >>> Diagnosis([Finding("chains", "They disagree.", "Draw more.")])
    1. chains: They disagree. Draw more.
    """

    __slots__ = ()

    def __str__(self) -> str:
        if not self:
            return "Nothing speaks against this fit."
        return "\n".join(f"{i}. {finding}" for i, finding in enumerate(self, 1))

    __repr__ = __str__
