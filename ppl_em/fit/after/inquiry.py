"""What a finished fit is asked about model choice and uncertainty, and where the answers are."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from ppl_em.e_step import EStep
from ppl_em.fit.after.by_group import ByGroup
from ppl_em.fit.after.counts import counts
from ppl_em.fit.after.left_out import left_out
from ppl_em.fit.after.sandwich import clusters_of, sandwich
from ppl_em.likelihood import Information
from ppl_em.params import AtBounds
from ppl_em.posterior import Posterior
from ppl_em.problem import Problem, on_request
from ppl_em.result import Counts, LeftOut
from ppl_em.util import ModelError


@dataclass(frozen=True)
class Inquiry:
    """The end of a run, with the information there.

    Attributes
    ----------
    problem, e_step, x, e_state, posterior, at
        As in `FittedParts`.
    information
        Observed information with what is held.
    reason
        Why there are no standard errors; empty if there are.
    without
        Flattened parameters without standard errors, ascending positions.
    """

    problem: Problem
    e_step: EStep
    x: jax.Array
    e_state: Any
    posterior: Posterior
    at: AtBounds | None
    information: Information
    reason: str
    without: np.ndarray

    @on_request
    def counts(self) -> Counts:
        """Numbers of parameters, observations and groups."""
        return counts(self.problem, self.x, self.likely, self.information, self.at)

    @property
    def likely(self) -> jax.Array:
        """Likely latents, unconstrained, (D,)."""
        if self.posterior.by_draws:
            draws = getattr(self.posterior, "draws")
            return jax.numpy.mean(draws.reshape(-1, draws.shape[-1]), axis=0)
        found = self.posterior.by_coordinate(self.problem, self.problem.constrain(self.x))
        return self.problem.start if found is None else found[0]

    @cached_property
    def by_group(self) -> ByGroup:
        """The marginal log-likelihood by independent group."""
        return ByGroup.of(self.problem, self.x, self.e_step, self.e_state, self.posterior)

    @cached_property
    def scores(self) -> np.ndarray:
        """Of independent groups, (G, p)."""
        if self.reason:
            raise ModelError(f"There are no standard errors: {self.reason}.")
        return self.by_group.scores(self.x, self.information.matrix)

    @on_request
    def sandwich(self, clusters: Any) -> tuple[np.ndarray, str]:
        """Robust covariance of all parameters, (P, P), and where it is from."""
        groups = None if clusters is None else clusters_of(self.by_group.groups, clusters)
        count = self.by_group.groups.number if groups is None else int(groups.max()) + 1
        what = "independent groups" if groups is None else "clusters"
        found = sandwich(self.problem, self.x, self.information, self.scores, groups)
        found[self.without], found[:, self.without] = np.nan, np.nan
        return found, f"sandwich of the scores of {count} {what} and the {self.information.method}"

    @on_request
    def left_out(self, rng_key: jax.Array) -> LeftOut:
        """Groups at draws of the parameters."""
        return left_out(self.by_group, self.x, self.covariance_x, rng_key)

    @property
    def covariance_x(self) -> np.ndarray:
        """Covariance of the unconstrained estimates, (p, p), zero for what is held."""
        if self.reason:
            raise ModelError(f"There are no standard errors: {self.reason}.")
        return self.information.covariance
