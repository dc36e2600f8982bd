"""E-steps: one file per method, one flag each. `EM(model, e_step=...)` takes either."""

from ppl_em.e_step.auto import Auto
from ppl_em.e_step.base import (
    Approximation,
    DeterministicEStep,
    EStep,
    StochasticEStep,
    Strength,
    evaluated,
    expectation,
)
from ppl_em.e_step.exact.exact import Exact
from ppl_em.e_step.laplace import Laplace
from ppl_em.e_step.nuts import NUTS
from ppl_em.e_step.quadrature import Quadrature
from ppl_em.e_step.variational.mean_field import MeanField
from ppl_em.util import check_choice, check_configuration

FLAGS: dict[str, type[EStep]] = {
    kind.flag: kind for kind in (Auto, Exact, Laplace, MeanField, NUTS, Quadrature)
}

DEFAULT = Auto.flag
"""The flag that chooses."""


def from_flag(e_step: "str | EStep") -> EStep:
    """Return the configuration for a flag; a configuration object passes through.

    Examples
    --------
    >>> from ppl_em.e_step import FLAGS, from_flag
    >>> sorted(FLAGS)
    ['auto', 'exact', 'laplace', 'mean_field', 'nuts', 'quadrature']
    >>> from_flag("nuts").num_chains
    4
    """
    if isinstance(e_step, str):
        check_choice("e_step", e_step, FLAGS)
        return FLAGS[e_step]()
    check_configuration("e_step", e_step, FLAGS)
    return e_step


__all__ = [
    "DEFAULT",
    "FLAGS",
    "NUTS",
    "Approximation",
    "Auto",
    "DeterministicEStep",
    "EStep",
    "Exact",
    "Laplace",
    "MeanField",
    "Quadrature",
    "StochasticEStep",
    "Strength",
    "evaluated",
    "expectation",
    "from_flag",
]
