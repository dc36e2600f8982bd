"""What a finished fit is asked about model choice and uncertainty, and where the answers are."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import jax
import numpy as np

from ppl_em.e_step import DeterministicEStep, EStep, expectation
from ppl_em.fit.after.bootstrap import Draws, by_groups, parametric
from ppl_em.fit.after.by_group import ByGroup
from ppl_em.fit.after.counts import counts
from ppl_em.fit.after.groups import find_groups
from ppl_em.fit.after.held import Held, Scale
from ppl_em.fit.after.left_out import left_out
from ppl_em.fit.after.profile import Profile, profile_from, profile_from_bound
from ppl_em.fit.after.sandwich import clusters_of, sandwich
from ppl_em.likelihood import Information, flat_and_jacobian
from ppl_em.params import AtBounds, flat_bounds, flat_labels
from ppl_em.posterior import Posterior, WeightedDraws
from ppl_em.problem import Problem, on_request
from ppl_em.result import Counts, LeftOut
from ppl_em.util import ModelError


@dataclass(frozen=True, eq=False)
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
        """Numbers of parameters and observations."""
        return counts(self.problem, self.x, self.information, self.at, self._look)

    @on_request
    def num_groups(self) -> tuple[int, str]:
        """How many groups are independent; or 0, and why that is not known."""
        try:
            return find_groups(self.problem, self.x, self._likely).number, ""
        except ModelError as error:
            return 0, str(error)

    @property
    def _look(self) -> Callable[[jax.Array], float] | None:
        """The log-likelihood at x (p,), where the E-step has one without noise."""
        if self.e_step.stochastic or not self.e_step.is_function:
            return None
        return lambda x: float(expectation(self.e_step, self.problem, x, self.e_state)[2].objective)

    @property
    def _likely(self) -> jax.Array:
        """Likely latents, unconstrained, (D,)."""
        if self.posterior.by_draws:
            draws = cast(WeightedDraws, self.posterior).draws
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

    @on_request
    def profile(self, label: str, what: str) -> Profile:
        """The profile of one scalar parameter, by its label."""
        if self.e_step.stochastic or not self.e_step.is_function:
            raise ModelError(
                f"`{what}`: e_step='{self.e_step.flag}' has no log-likelihood that is a function "
                f"of the parameters, so that none can be profiled. Use method='wald' or "
                f"'bootstrap', or fit with e_step='exact', 'quadrature' or 'laplace'."
            )
        if self.problem.spec.restrictions:
            raise ModelError(
                f"`{what}`: fits under `constraints` on functions of the parameters are not "
                f"profiled. Use method='wald' or 'bootstrap'."
            )
        index = flat_labels(self.problem.constrain(self.x)).index(label)
        own, model = self.at is not None and label in self.at.found, self.problem
        if index in self.without and not own:
            raise ModelError(f"`{what}`: `{label}` has no standard error, and is not profiled.")
        e_step = cast(DeterministicEStep, self.e_step)
        low, high = flat_bounds(model.space, model.constrain(self.x))[index]
        scale = Scale(float(low), float(high))
        held = Held(model, e_step, self.e_state, index, label, scale, None)
        if own:
            return profile_from_bound(held, cast(AtBounds, self.at), self.x)
        held = replace(held, normals=self.information.held)
        return profile_from(held, self.x, self.covariance_x, self.at)

    @on_request
    def bootstrap(self, rng_key: jax.Array, number: int, kind: str, bar: bool) -> Draws:
        """Flattened estimates of refits, and why others failed."""
        if kind == "parametric":
            return parametric(rng_key, self.problem, self.x, self.e_step, number, bar)
        if self.reason:
            raise ModelError(f"There are no standard errors: {self.reason}.")
        return by_groups(rng_key, self.by_group, self.x, self.information, number, bar)

    @on_request
    def influence(self) -> tuple[np.ndarray, np.ndarray]:
        """Changes of all parameters without each group, (G, P), and squared lengths (G,)."""
        steps = -self.scores @ self.covariance_x
        jacobian = np.asarray(flat_and_jacobian(self.problem, self.x)[1])
        changes = steps @ jacobian.T
        changes[:, self.without] = np.nan
        return changes, -np.sum(steps * self.scores, axis=1)

    @property
    def covariance_x(self) -> np.ndarray:
        """Covariance of the unconstrained estimates, (p, p), zero for what is held."""
        if self.reason:
            raise ModelError(f"There are no standard errors: {self.reason}.")
        return self.information.covariance
