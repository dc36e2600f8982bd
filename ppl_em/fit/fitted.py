"""What a result computes from on request: the problem and the end of a run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np

from ppl_em.algorithms import Certified, Polish, Sampler, Verdict
from ppl_em.e_step import DeterministicEStep, EStep, expectation
from ppl_em.fit.after.evaluation import FINAL_STEPS
from ppl_em.fit.audit import audit
from ppl_em.likelihood import (
    AT_AN_END,
    Information,
    constrained_covariance,
    find,
    find_motion,
    flat_and_jacobian,
    louis_information,
    marginal_information,
    sampled_information,
    score_moments,
    set_aside,
)
from ppl_em.likelihood.active_constraints import active_constraints
from ppl_em.params import AtBounds, flat_bounds, flat_labels, repeated_entries, within_reach
from ppl_em.posterior import Posterior, WeightedDraws
from ppl_em.problem import Problem, on_request
from ppl_em.result import (
    Audit,
    Counts,
    EMResult,
    Evaluated,
    Model,
    Options,
    Status,
    Uncertainty,
    Unconstrained,
    to_datatree,
)
from ppl_em.stats import relative_error

if TYPE_CHECKING:
    import xarray

    from ppl_em.fit.after.inquiry import Inquiry


MAX_FINAL_NOISE = 0.05
"""Relative Monte Carlo error of standard errors up to which the last draws alone give them."""

UNFINISHED = (
    Status.MAX_STEPS,
    Status.MAX_SECONDS,
    Status.DECREASED,
    Status.NON_FINITE,
    Status.STALLED,
    Status.INTERRUPTED,
)
"""Ends of a run short of a maximum."""

NEARBY = 0.01
"""Gain by the last step, per parameter, up to which the information before it is that after it."""


@dataclass(frozen=True, eq=False)
class FittedParts:
    """What a result computes from on request: the problem and the end of the run.

    `asked` is the E-step as the user asked for it, before it was fitted to the problem.
    """

    problem: Problem
    e_step: EStep
    x: jax.Array
    e_state: Any
    posterior: Posterior
    polish: Polish | None
    at: AtBounds | None = None
    penalised: bool = False
    certified: Certified | None = None
    status: Status | None = None
    asked: EStep | None = None
    sampler: Sampler | None = None

    @on_request
    def datatree(self, result: EMResult, at_estimate: bool = False) -> "xarray.DataTree":
        """Build the result's DataTree; parameters are drawn, unless latents are `at_estimate`."""
        from ppl_em.fit.after.law import Law, at_the_estimate, joint_draws

        end = self.e_step, self.e_state, self.posterior, self.sampler, self.x, self.at
        law = Law(self.problem, *end)
        alone = at_the_estimate(result, law)
        drawn = None if at_estimate else joint_draws(result, law, alone)
        return to_datatree(result, self.problem, alone, drawn)

    @on_request
    def audit(self, result: EMResult, rng_key: jax.Array, e_step: str | EStep) -> Audit:
        """Look at the returned parameters with a stronger E-step."""
        return audit(rng_key, self.problem, self.x, result, e_step)

    def counts(self) -> Counts:
        """Numbers of parameters and observations."""
        return self._inquiry.counts()

    def num_groups(self) -> tuple[int, str]:
        """How many groups are independent; or 0, and why that is not known."""
        return self._inquiry.num_groups()

    @on_request
    def model(self) -> Model:
        """The problem, and the log-likelihood where that has no noise."""
        return Model(self.problem, self._look)

    def inquiry(self, what: str) -> "Inquiry":
        """What answers other questions, with the information at hand."""
        return self._inquiry

    @cached_property
    def _inquiry(self) -> "Inquiry":
        from ppl_em.fit.after.inquiry import Inquiry

        _, (information, left_out, _), reason = self._settled
        run = self.problem, self.e_step, self.x, self.e_state, self.posterior, self.at
        return Inquiry(*run, information, _on_the_way(reason, self.status), left_out)

    @cached_property
    def _settled(self) -> tuple[Information, tuple[Information, np.ndarray, str], str]:
        return self._information()

    @on_request
    def evaluated(
        self,
        result: EMResult,
        rng_key: jax.Array | None,
        args: tuple,
        kwargs: dict[str, Any],
        e_step: str | EStep | None,
    ) -> Evaluated:
        """The model at the parameters of the fit, on other data."""
        from ppl_em.fit.after.at import at

        return at(self, result, rng_key, args, kwargs, e_step)

    @on_request
    def predict(
        self,
        result: EMResult,
        rng_key: jax.Array,
        args: tuple,
        kwargs: dict[str, Any],
        options: Options,
    ) -> "xarray.DataTree":
        """Draws of the observed sites, at other arguments."""
        from ppl_em.fit.after.predict import predict

        return predict(self, result, rng_key, args, kwargs, options)

    @on_request
    def covariance_x(self) -> tuple[np.ndarray, str]:
        """Covariance of the parameters on the unconstrained scale, (p, p), and what is wrong."""
        _, (information, *_), reason = self._settled
        return information.covariance, reason

    @on_request
    def uncertainty(self) -> Uncertainty:
        """Invert the observed information; carry it to the model's own scale."""
        found, (information, left_out, note), reason = self._settled
        active = active_constraints(self.problem, self.x, found)
        covariance_x = (
            np.full_like(information.matrix, np.nan) if reason else information.covariance
        )
        covariance = constrained_covariance(self.problem, self.x, covariance_x)
        covariance[left_out], covariance[:, left_out] = np.nan, np.nan
        if self.e_step.stochastic and not (reason or note):
            note = self._unexcluded(np.sqrt(np.diag(covariance)))
        if self.polish is not None:
            mcse_x = self.polish.mcse_x
        else:
            mcse_x = np.full_like(covariance_x, np.nan if self.e_step.stochastic else 0.0)
        mcse = constrained_covariance(self.problem, self.x, mcse_x)
        mcse = np.sqrt(np.maximum(np.diag(mcse), 0.0))  # NaN stays
        if self.e_step.stochastic:
            mcse[left_out] = np.nan
        se_mcse = self._se_mcse(information) * np.sqrt(np.diag(covariance))
        method = information.method + (", penalised" if self.penalised else "")
        space, params, x = self.problem.space, self.problem.constrain(self.x), np.asarray(self.x)
        reason = _on_the_way(reason, self.status)
        names = tuple(flat_labels(space.unravel(x)))
        free = Unconstrained(names, x, covariance_x, information.matrix, information.gradient)
        shape = flat_bounds(space, params), free, repeated_entries(space, params)
        return Uncertainty(covariance, mcse, se_mcse, method, reason, note, active, *shape)

    @property
    def _look(self) -> Callable[[jax.Array], float] | None:
        """The log-likelihood at x (p,), where the E-step has one without noise."""
        if self.e_step.stochastic or not self.e_step.is_function:
            return None
        own = cast(DeterministicEStep, self.e_step)
        return lambda x: float(expectation(own, self.problem, x, self.e_state)[2].objective)

    def _unexcluded(self, errors: np.ndarray) -> str:
        """Which bounds the draws do not exclude, from standard errors (P,); empty if none."""
        params = self.problem.constrain(self.x)
        near = within_reach(self.problem.space, params, errors)
        if not near:
            return ""
        where = ", ".join(f"`{label}` from {bound:.6g}" for label, bound in near.items())
        return (
            f"{where}: less than a standard error from the boundary, which a Monte Carlo E-step "
            f"neither reaches nor excludes, so the standard error is not to be relied on; "
            f"e_step='exact', 'quadrature' or 'laplace' would tell"
        )

    def _se_mcse(self, information: Information) -> np.ndarray:
        """Relative Monte Carlo errors of the standard errors, (P,)."""
        jacobian = np.asarray(flat_and_jacobian(self.problem, self.x)[1])
        if information.replicates is None:
            return np.full(len(jacobian), np.nan if self.e_step.stochastic else 0.0)
        variances = np.einsum("pi,rij,pj->rp", jacobian, information.replicates, jacobian)
        return relative_error(np.maximum(variances, 0.0))

    def _information(self) -> tuple[Information, tuple[Information, np.ndarray, str], str]:
        """The first that is good enough, what is left with some set aside, and an empty reason.

        If none is, the first of all and why.
        """
        found: list[tuple[Information, tuple[Information, np.ndarray, str]]] = []
        for information in self._candidates():
            aside = information, np.zeros(0, int), ""
            if not self.e_step.stochastic or np.any(np.isfinite(information.matrix)):
                aside = set_aside(self.problem, self.x, information, self.at, self._look)
            if aside[0].precise:
                return information, aside, ""
            found.append((information, aside))
        if not self.e_step.stochastic:
            return *found[0], _complaint(found[0][1][0])
        why = {aside[0].method: _complaint(aside[0]) for _, aside in reversed(found)}
        reason = "; ".join(f"by {way}, {text}" for way, text in reversed(why.items()))
        return *found[0], (
            f"{reason}; let the run converge, allow more draws with `Stopping(max_draws=...)`, or "
            f"reparameterise the latents"
        )

    def _candidates(self) -> Iterator[Information]:
        """At the returned parameters: from the objective, or from the draws there.

        The confirming phase had more draws, but before its last step: if that was short, it is the
        second choice. The last is the Hessian of an importance-sampled log-likelihood.
        """
        if not self.e_step.stochastic:
            e_step, known = cast(DeterministicEStep, self.e_step), self.certified
            if known is not None and known.x is self.x and known.information is not None:
                yield known.information
                return
            yield marginal_information(e_step, self.problem, self.x, self.e_state)
            return
        draws = np.asarray(cast(WeightedDraws, self.posterior).draws)
        first, *rest = (
            WeightedDraws.equal(jax.device_put(piece))
            for piece in np.split(draws, FINAL_STEPS, axis=1)
        )
        last = self.polish
        components = last.components if last else find(self.problem, self.x, first)
        motion = find_motion(self.problem, self.x, first, components)
        moments = [score_moments(self.problem, piece, components, motion) for piece in rest]
        found = louis_information(self.problem, self.x, moments)
        alone = found.usable and found.se_noise < MAX_FINAL_NOISE
        before = last.information if last and not alone else None
        if before and before.usable and before.gap < NEARBY * self.x.size:
            yield before
        yield found
        if last is None or last.verdict is not Verdict.SICK:  # proposals are fitted to the chains
            yield sampled_information(self.problem, self.x, draws, components, motion)


def _on_the_way(reason: str, status: Status | None) -> str:
    """The `reason` for no standard errors, where the run has not arrived at a maximum."""
    if not reason.endswith(AT_AN_END) or status not in (Status.SADDLE, *UNFINISHED):
        return reason
    if status is Status.SADDLE:
        why = ": it is a saddle point, where the log-likelihood rises; start elsewhere"
    else:
        why = ", as the run has not arrived at a maximum; go on from `init_params=result.params`"
    return reason.removesuffix(AT_AN_END) + why


def _complaint(information: Information) -> str:
    """Why standard errors are withheld."""
    if information.reason:
        return information.reason
    return f"their Monte Carlo error is {100 * information.se_noise:.0f} %"
