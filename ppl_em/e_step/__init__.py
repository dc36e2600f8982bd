"""E-steps: one file per method, one flag each. `EM(model, e_step=...)` takes either."""

from ppl_em.e_step.auto import Auto
from ppl_em.e_step.base import (
    Approximation,
    DeterministicEStep,
    EStep,
    StochasticEStep,
    expectation,
    noise_of,
)
from ppl_em.e_step.exact.enumeration import Enumeration
from ppl_em.e_step.exact.exact import Exact
from ppl_em.e_step.laplace import Laplace
from ppl_em.e_step.nuts import NUTS
from ppl_em.e_step.quadrature import Quadrature
from ppl_em.e_step.variational.mean_field import MeanField
from ppl_em.e_step.variational.svi import StochasticGuide
from ppl_em.util import check_choice, check_configuration

FLAGS: dict[str, type] = {
    "auto": Auto,
    "exact": Exact,
    "laplace": Laplace,
    "mean_field": MeanField,
    "nuts": NUTS,
    "quadrature": Quadrature,
}


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
    "FLAGS",
    "NUTS",
    "Approximation",
    "Auto",
    "DeterministicEStep",
    "EStep",
    "Enumeration",
    "Exact",
    "Laplace",
    "MeanField",
    "Quadrature",
    "StochasticEStep",
    "StochasticGuide",
    "expectation",
    "from_flag",
    "noise_of",
]
