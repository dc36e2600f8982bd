"""M-steps: numerical maximisers of Q, one file per method, one flag each."""

from collections.abc import Mapping, Sequence

from ppl_em.m_step.auto import Auto
from ppl_em.m_step.base import NEEDS, HostMStep, MStep, MStepInfo, Region, TracedMStep
from ppl_em.m_step.closed_form import ClosedForm
from ppl_em.m_step.gradient import Gradient
from ppl_em.m_step.lbfgs import LBFGS
from ppl_em.m_step.newton import Newton
from ppl_em.m_step.scipy import Scipy
from ppl_em.m_step.simplex import grow, simplex_sites
from ppl_em.util import ModelError, check_choice, check_configuration

FLAGS: dict[str, type] = {
    "auto": Auto,
    "lbfgs": LBFGS,
    "newton": Newton,
    "gradient": Gradient,
    "scipy": Scipy,
}


def from_flag(m_step: "str | MStep") -> MStep:
    """Return the configuration for a flag; a configuration object passes through.

    Examples
    --------
    >>> from ppl_em.m_step import FLAGS, from_flag
    >>> sorted(FLAGS)
    ['auto', 'gradient', 'lbfgs', 'newton', 'scipy']
    >>> from_flag("newton")
    Newton(max_steps=10, tol=1e-18)
    """
    if isinstance(m_step, str):
        check_choice("m_step", m_step, FLAGS)
        return FLAGS[m_step]()
    check_configuration("m_step", m_step, FLAGS)
    return m_step


def for_problem(m_step: "str | MStep", size: int, needs: Mapping[str, Sequence[str]]) -> MStep:
    """The M-step to run for `size` parameters.

    Parameters
    ----------
    m_step
        A flag or a configuration.
    size
        p.
    needs
        Some of `base.NEEDS`, each with the constraints or parameters that have it.

    Raises
    ------
    ModelError
        If the M-step cannot meet a need.
    """
    chosen = from_flag(m_step).resolve(size, tuple(needs))
    name = getattr(chosen, "method", type(chosen).__name__)
    for need, names in needs.items():
        if need in chosen.honours:
            continue
        takers = [m for m in Scipy.stand_alone if set(needs) <= set(Scipy(m).honours)]
        remedy = f"Use m_step='auto' or ppl_em.m_step.Scipy({takers[0]!r})"
        if need != "rough":
            remedy += ", or Constraint(..., barrier=True)"
        raise ModelError(
            f"Option `m_step`: {name} does not take {NEEDS[need]} ('{names[0]}'). {remedy}."
        )
    return chosen


__all__ = [
    "FLAGS",
    "LBFGS",
    "NEEDS",
    "Auto",
    "ClosedForm",
    "Gradient",
    "HostMStep",
    "MStep",
    "MStepInfo",
    "Newton",
    "Region",
    "Scipy",
    "TracedMStep",
    "for_problem",
    "from_flag",
    "grow",
    "simplex_sites",
]
