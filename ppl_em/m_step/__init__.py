"""M-steps: numerical maximisers of Q, one file per method, one flag each."""

from ppl_em.m_step.auto import Auto
from ppl_em.m_step.base import MStep
from ppl_em.m_step.lbfgs import LBFGS
from ppl_em.m_step.newton import Newton
from ppl_em.validation import check_choice, check_configuration

FLAGS: dict[str, type] = {"auto": Auto, "lbfgs": LBFGS, "newton": Newton}


def from_flag(m_step: "str | MStep") -> MStep:
    """Return the configuration for a flag; a configuration object passes through."""
    if isinstance(m_step, str):
        check_choice("m_step", m_step, FLAGS)
        return FLAGS[m_step]()
    check_configuration("m_step", m_step, FLAGS)
    return m_step


__all__ = ["FLAGS", "LBFGS", "Auto", "MStep", "Newton", "from_flag"]
