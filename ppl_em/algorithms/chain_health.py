"""Whether the chains of a Monte Carlo E-step may be believed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ppl_em.problem import Problem
from ppl_em.stats import ebfmi, rank_rhat

MIN_EBFMI = 0.2
"""Energies that change less, relative to their spread, mean that tails are hardly visited."""

MIN_ACCEPT = 0.5
"""Trajectories that end elsewhere than where they should: step sizes do not fit."""

MAX_RHAT = 1.05
"""Chains whose scores differ more have not seen the same posterior."""


class Health(NamedTuple):
    """Of all transitions at one value of the parameters.

    `draws`, their number; `divergences`; the smallest `ebfmi` of a chain; the mean acceptance
    `accept_prob`; `rhat`, the largest rank-normalised R-hat of a score.
    """

    draws: int
    divergences: int
    ebfmi: float
    accept_prob: float
    rhat: float

    @property
    def mixed(self) -> bool:
        """Whether the chains agree."""
        return not self.rhat > MAX_RHAT

    @property
    def sound(self) -> bool:
        """Whether the sampler got along with the posterior."""
        return (
            self.divergences == 0
            and not self.ebfmi < MIN_EBFMI
            and not self.accept_prob < MIN_ACCEPT
        )


def examine(stats: Sequence[dict[str, np.ndarray]], scores: np.ndarray) -> Health:
    """Diagnose transitions.

    Parameters
    ----------
    stats
        What the sampler says of each E-step's draws, arrays (chain, draw) under ArviZ's names.
    scores
        Complete-data scores of all draws, (chain, draw, p).

    References
    ----------
    Vehtari, Gelman, Simpson, Carpenter & Buerkner (2021), Rank-normalization, folding and
    localization, Bayesian Analysis 16; Betancourt (2016), arXiv:1604.00695, for E-BFMI.
    """
    joined = {name: np.concatenate([step[name] for step in stats], axis=1) for name in stats[0]}
    moving = scores[..., np.ptp(scores, axis=(0, 1)) > 0]
    rhat = 1.0  # of scores that are the same for all draws
    if moving.size:
        rhat = max(rank_rhat(moving), rank_rhat(np.abs(moving - np.median(moving, axis=(0, 1)))))
    return Health(
        int(np.size(joined["energy"])),
        int(np.sum(joined["diverging"])),
        float(np.min(ebfmi(joined["energy"]))),
        float(np.mean(joined["acceptance_rate"])),
        rhat,
    )


def complaint(health: Health, problem: Problem) -> str:
    """What is wrong, where, and what to do; empty if nothing is."""
    found = []
    if health.divergences:
        found.append(f"{health.divergences} of {health.draws} transitions diverged")
    if health.ebfmi < MIN_EBFMI:
        found.append(f"E-BFMI is {health.ebfmi:.2f}")
    if health.accept_prob < MIN_ACCEPT:
        found.append(f"the acceptance probability is {health.accept_prob:.2f}")
    if not health.mixed:
        found.append(f"the chains disagree (R-hat {health.rhat:.2f})")
    if not found:
        return ""
    names = [f"'{site.name}'" for site in problem.spec.latents]
    some = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return (
        f"Site{'s' if len(names) > 1 else ''} {some}: {', '.join(found)}. Reparameterise (a "
        f"non-centred form, `numpyro.infer.reparam.LocScaleReparam`), or use "
        f"`ppl_em.e_step.NUTS(target_accept_prob=0.95, num_warmup=1000)`."
    )
