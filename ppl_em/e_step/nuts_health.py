"""Whether the chains of NUTS may be believed, from what it says of its transitions."""

from typing import Any

import numpy as np

from ppl_em.stats import Health, ebfmi

MIN_EBFMI = 0.2
"""Energies that change less, relative to their spread, mean that tails are hardly visited."""

MIN_ACCEPT = 0.5
"""Trajectories that end elsewhere than where they should: step sizes do not fit."""

REMEDY = (
    "Reparameterise (a non-centred form, `numpyro.infer.reparam.LocScaleReparam`), or use "
    "`ppl_em.e_step.NUTS(target_accept_prob=0.95, num_warmup=1000)`."
)


def examine(stats: dict[str, Any], scores: np.ndarray) -> Health:
    """Diagnose transitions.

    Parameters
    ----------
    stats
        What NUTS says of them, arrays (chain, draw) under ArviZ's names.
    scores
        Complete-data scores of all draws, (chain, draw, p).

    References
    ----------
    Betancourt (2016), arXiv:1604.00695, for E-BFMI.
    """
    count, diverged = int(np.size(stats["energy"])), int(np.sum(stats["diverging"]))
    lowest = float(np.min(ebfmi(np.asarray(stats["energy"]))))
    accept = float(np.mean(stats["acceptance_rate"]))
    faults = []
    if diverged:
        faults.append(f"{diverged} of {count} transitions diverged")
    if lowest < MIN_EBFMI:
        faults.append(f"E-BFMI is {lowest:.2f}")
    if accept < MIN_ACCEPT:
        faults.append(f"the acceptance probability is {accept:.2f}")
    said = {"divergences": diverged, "ebfmi": lowest, "accept_prob": accept}
    return Health.of_scores(scores, said, faults, REMEDY)
