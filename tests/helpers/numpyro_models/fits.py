"""A case fitted, and its verdict compared with what came out."""

import re
import warnings

import jax
import numpy as np
from conftest import SEED

import ppl_em
from ppl_em import EM, EMResult, ModelError

from .case import Case, at_maximum

ROUNDING = 1e-7
"""Of a log-likelihood of some tens, by another route of summation or quadrature."""

NODES = 1e-4
"""The same by quadrature with as many nodes as it finds enough, or by Laplace's method."""


def fitted(case: Case) -> EMResult:
    """The fit; Monte Carlo E-steps to a coarse tolerance."""
    e_step, stopping = case.e_step, None
    if e_step == "nuts" or case.verdict in ("estimate", "UNHEALTHY"):
        e_step = ppl_em.e_step.NUTS(num_warmup=150)
        stopping = ppl_em.Stopping(mcse_fraction=0.1)
    em = EM(case.model, e_step, map_sites=case.at_mode, stopping=stopping, **case.options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # NumPyro's own, of plates and scans
        key = jax.random.key(SEED)
        return em.run(key, *case.data, init_params=case.start, progress_bar=False)


def check(case: Case) -> str:
    """Raise if the verdict is wrong; in words, what came out."""
    if case.refused:
        try:
            result = fitted(case)
        except ModelError as error:
            text = str(error)
            assert re.search(case.verdict, text), text
            assert "\n" not in text and len(text) < 700
            return text
        raise AssertionError(f"not refused: {result.status}")
    result = fitted(case)
    if case.verdict == "UNHEALTHY":
        assert result.status.name == case.verdict, result.status
    else:
        assert result.converged, result.status
        assert result.log_likelihood.kind == case.verdict, result.log_likelihood
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        value, noise, steps = at_maximum(case, result.params)
    off = float(result.penalised) - value
    noise = float(np.hypot(noise, result.log_likelihood.mcse or 0.0))
    assert noise < 0.15, noise
    rounding = ROUNDING if case.verdict == "exact" else NODES
    error = 5 * noise + rounding * (1 + abs(value))
    assert abs(off) < error, (float(result.penalised), value, error)
    assert steps < (0.5 if noise else 1e-3), steps
    return f"{result.status} {result.log_likelihood}, off by {off:.1e}, {steps:.1e} errors to go"
