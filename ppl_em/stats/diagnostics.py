"""Diagnostics of chains and of means over draws."""

from typing import Any


def ebfmi(energy: Any) -> Any:
    """Energy's Bayesian fraction of missing information by chain, (chain,), from (chain, draw).

    Takes arrays of JAX or NumPy.

    References
    ----------
    Betancourt (2016), Diagnosing suboptimal cotangent disintegrations, arXiv:1604.00695.
    """
    return ((energy[:, 1:] - energy[:, :-1]) ** 2).mean(axis=1) / energy.var(axis=1)
