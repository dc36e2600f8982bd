"""Diagnostics of chains and of means over draws."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.diagnostics import split_gelman_rubin
from scipy.special import ndtri

MAX_RHAT = 1.05
"""Chains whose scores differ more have not seen the same posterior."""


class Health(NamedTuple):
    """Whether draws may be believed.

    Attributes
    ----------
    draws
        Their number.
    rhat
        The largest rank-normalised R-hat of a complete-data score.
    said
        What the sampler says of itself, a number by name, for the history.
    faults
        What is wrong with the sampler, in words; empty if it got along with the posterior.
    remedy
        What to do about it.

    References
    ----------
    Vehtari, Gelman, Simpson, Carpenter & Buerkner (2021), Rank-normalization, folding and
    localization, Bayesian Analysis 16.
    """

    draws: int
    rhat: float
    said: dict[str, float]
    faults: tuple[str, ...]
    remedy: str

    @classmethod
    def of_scores(
        cls,
        scores: np.ndarray,
        said: dict[str, float] | None = None,
        faults: Iterable[str] = (),
        remedy: str = "Allow more draws in each step, or take another E-step.",
    ) -> "Health":
        """From complete-data scores of all draws, (chain, draw, p)."""
        moving = scores[..., np.ptp(scores, axis=(0, 1)) > 0]
        rhat = 1.0  # of scores that are the same for all draws
        if moving.size:
            spread = np.abs(moving - np.median(moving, axis=(0, 1)))
            rhat = max(rank_rhat(moving), rank_rhat(spread))
        count = int(np.prod(scores.shape[:2]))
        return cls(count, rhat, said or {}, tuple(faults), remedy)

    @property
    def mixed(self) -> bool:
        """Whether the chains agree."""
        return not self.rhat > MAX_RHAT

    @property
    def sound(self) -> bool:
        """Whether the sampler got along with the posterior."""
        return not self.faults

    @property
    def row(self) -> dict[str, float]:
        """For the history."""
        return {"draws": self.draws, **self.said, "rhat": self.rhat}

    def complaint(self, sites: Sequence[str]) -> str:
        """What is wrong with the draws of these sites, and what to do; empty if nothing is."""
        found = [*self.faults]
        if not self.mixed:
            found.append(f"the chains disagree (R-hat {self.rhat:.2f})")
        if not found:
            return ""
        some = ", ".join(f"'{name}'" for name in sites[:4]) + (", ..." if len(sites) > 4 else "")
        return f"Site{'s' if len(sites) > 1 else ''} {some}: {', '.join(found)}. {self.remedy}"


def ebfmi(energy: Any) -> Any:
    """Energy's Bayesian fraction of missing information by chain, (chain,), from (chain, draw).

    Takes arrays of JAX or NumPy.

    References
    ----------
    Betancourt (2016), Diagnosing suboptimal cotangent disintegrations, arXiv:1604.00695.
    """
    return ((energy[:, 1:] - energy[:, :-1]) ** 2).mean(axis=1) / energy.var(axis=1)


def relative_error(variances: np.ndarray) -> np.ndarray:
    """Jackknife error of standard errors relative to them, (P,), from their squares (R, P)."""
    errors = np.sqrt(variances)
    spread = np.sqrt((len(errors) - 1) * np.var(errors, axis=0))
    return spread / np.maximum(errors.mean(axis=0), np.finfo(float).tiny)


def rank_rhat(values: np.ndarray) -> float:
    """Largest split R-hat of the ranks of `values` (chain, draw, p) on the normal scale.

    As ArviZ has it, whose import would take a second of every run on the command line.
    """
    if values.shape[-1] == 0 or values.shape[1] < 4:
        return 1.0
    flat = values.reshape(-1, values.shape[-1])
    ranks = 1 + np.argsort(np.argsort(flat, axis=0), axis=0)
    normal = ndtri((ranks - 0.375) / (len(flat) + 0.25))
    return float(np.max(split_gelman_rubin(normal.reshape(values.shape))))


def mean_and_error(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted mean of `values` (chain, draw), standard error by batch means; shape (2,)."""
    chains, draws = values.shape
    batches = min(max(2, min(5, draws // 5)), draws)
    length = draws // batches
    mean = jnp.sum(weights * values)

    def by_batch(terms: jax.Array) -> jax.Array:
        return terms[:, : batches * length].reshape(chains * batches, length).sum(axis=1)

    count = chains * batches
    error = jnp.sqrt(jnp.sum(by_batch(weights * (values - mean)) ** 2) * count / (count - 1))
    return jnp.stack([mean, error])
