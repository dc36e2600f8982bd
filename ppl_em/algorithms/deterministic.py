"""The loop of EM where the E-step has an objective without noise."""

import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.algorithms.acceleration import Accelerator, Proposal, accelerator
from ppl_em.algorithms.boundary import to_boundary
from ppl_em.algorithms.boundary_watch import Watch
from ppl_em.algorithms.direct import Ascent, switch_reason
from ppl_em.algorithms.history import History, Limits, Run
from ppl_em.algorithms.maximization import Maximized, maximization
from ppl_em.algorithms.newton import is_due, take_newton_steps
from ppl_em.algorithms.separation import is_time, to_limit
from ppl_em.algorithms.stopping import (
    Step,
    has_converged,
    has_decreased,
    has_flattened,
    is_stationary,
    rounding,
)
from ppl_em.algorithms.trust_region import Region, is_early, may_leave
from ppl_em.e_step import DeterministicEStep, expectation
from ppl_em.likelihood import is_large
from ppl_em.m_step import MStep
from ppl_em.problem import Problem, nearest_feasible
from ppl_em.result import CONVERGED, Status
from ppl_em.util import ModelError

MAX_HALVINGS = 10
"""How often a step that lowers the objective is halved before it is refused."""

SLACK = 1.0
"""How far extrapolations may lower the objective for a while, as Varadhan and Roland allow it."""

PATIENCE = 3
"""How many extrapolations may do so before the first is taken back."""


@dataclass(eq=False)
class Visit:
    """An E-step at `x` (p,), and the M-step from there."""

    x: jax.Array
    posterior: Any
    state: Any
    info: Any
    out: Maximized

    @property
    def objective(self) -> float:
        """The objective at `x`."""
        return float(self.info.objective)


@dataclass(eq=False)
class Deterministic:
    """One run: `run` says how it ended, the history has the rest.

    `first` is where in the history the latest unbroken row of EM steps begins.
    """

    of: Run
    m_step: MStep
    problem: Problem = field(init=False)
    e_step: DeterministicEStep = field(init=False)
    history: History = field(init=False)
    limits: Limits = field(init=False)
    accelerator: Accelerator | None = field(init=False)
    rates: list[float] = field(default_factory=list, init=False)
    first: int = field(init=False)
    m_state: Any = field(init=False)

    def __post_init__(self) -> None:
        of = self.of
        self.problem, self.e_step, self.history = of.problem, of.e_step, of.history
        self.limits = of.limits
        self.accelerator = accelerator(self.limits.plan.acceleration)
        self.m_state = self.m_step.init(self.history.x)
        self.first = len(self.history.steps)

    def run(self) -> tuple[Status, float]:
        """EM steps until a rule ends them; the status, and the seconds of the first one."""
        history, limits = self.history, self.limits
        watch = Watch(self.problem, self.e_step, limits.stopping)
        if history.at is not None:  # with a coarser E-step
            towards, history.at = history.at.towards, None
            if to_boundary(self.of, towards):
                return Status.BOUNDARY, 0.0
        if history.inverse is not None and self._stays_converged(watch):
            return Status.CONVERGED, 0.0
        before, m_info, proposal, next_try, compile_seconds = history.x, None, None, 0, 0.0
        here, start = None, time.monotonic()
        count = -1
        while True:
            count += 1
            here = self._visit(here, proposal)
            seconds, start = time.monotonic() - start, time.monotonic()
            compile_seconds += seconds if count == 0 else 0.0
            if not np.isfinite(here.objective):
                return Status.NON_FINITE, compile_seconds
            if count == 0:
                history.objective = here.objective
            elif not self._record(here, before, seconds, m_info):
                return Status.DECREASED, compile_seconds
            history.x, history.e_state = here.x, here.state
            if not np.all(np.isfinite(here.out.x)):
                return Status.NON_FINITE, compile_seconds
            done, towards = self._has_converged(here), watch.towards(here.x)
            if (
                towards.any()
                and watch.is_due(history.steps, done)
                and to_boundary(self.of, towards)
            ):
                return Status.BOUNDARY, compile_seconds
            if done:
                return Status.CONVERGED, compile_seconds
            if is_time(history.steps) and not towards.any() and to_limit(self.of):
                return Status.BOUNDARY, compile_seconds
            ended = self._finish() if count >= next_try else None
            if ended in (*CONVERGED, Status.MAX_STEPS, Status.MAX_SECONDS):
                return ended, compile_seconds
            if ended is not None:
                next_try = 2 * count
                if history.x is not here.x:  # the finish got somewhere, if not to the end
                    here = self._both(history.x, history.e_state)
                    history.e_state = here.state
            if np.array_equal(here.out.x, here.x) and self.e_step.is_function:
                promised = float(here.out.info.m_promised)
                fine = is_stationary(here.objective, promised, here.x.dtype)
                return Status.CONVERGED if fine else Status.STALLED, compile_seconds
            if len(history.rows) >= limits.max_steps:
                return Status.MAX_STEPS, compile_seconds
            if time.monotonic() > limits.deadline:
                return Status.MAX_SECONDS, compile_seconds
            before, m_info = here.x, here.out.info
            if self.accelerator is not None:
                proposal = self._proposed(self.accelerator, here)

    def _both(self, x: jax.Array, state: Any) -> Visit:
        """The two halves of an EM step at `x` (p,)."""
        posterior, state, info = expectation(self.e_step, self.problem, x, state)
        return self._maximized(x, posterior, state, info)

    def _maximized(self, x: jax.Array, posterior: Any, state: Any, info: Any) -> Visit:
        self.history.evaluations += 1
        out = maximization(self.m_step, self.problem, x, x, posterior, self.m_state)
        self.m_state = out.state
        return Visit(x, posterior, state, info, jax.block_until_ready(out))

    def _visit(self, last: Visit | None, proposal: Proposal | None) -> Visit:
        """Go where the last step leads, or less far if the objective is lower there."""
        history = self.history
        if last is None:
            return self._both(history.x, history.e_state)
        x = last.out.x
        if self.accelerator is not None and proposal is not None:
            found = self._extrapolated(self.accelerator, proposal)
            if found is not None:
                return found
            x = jnp.asarray(proposal.fallback, history.x.dtype)
        there = expectation(self.e_step, self.problem, x, history.e_state)
        for _ in range(MAX_HALVINGS):
            if not self._falls(float(there[2].objective)):
                break
            history.evaluations += 1
            x = self._halfway(x)
            there = expectation(self.e_step, self.problem, x, history.e_state)
        return self._maximized(x, *there)

    def _falls(self, value: float) -> bool:
        """Whether a step loses more than the noise of an approximation, or than rounding."""
        noise, before = self.e_step.noise, self.history.objective
        if noise is not None:
            return not value >= before - noise
        step = Step(value, value - before, 0.0, 0.0)
        return not np.isfinite(value) or has_decreased(step, self.history.x.dtype)

    def _halfway(self, end: jax.Array) -> jax.Array:
        """Half of a step to `end` (p,), or the largest feasible fraction of that."""
        start = self.history.x
        for fraction in 2.0 ** -np.arange(1, MAX_HALVINGS):
            found = nearest_feasible(self.problem, start + fraction * (end - start))
            if found is not None:
                return found
        return start

    def _extrapolated(self, method: Accelerator, proposal: Proposal) -> Visit | None:
        """The proposal, or what becomes of it within a few more; None without a gain."""
        history, state = self.history, self.history.e_state
        for _ in range(PATIENCE):
            here = self._both(jnp.asarray(proposal.x, history.x.dtype), state)
            if here.objective >= history.objective:
                return here
            if not here.objective >= history.objective - SLACK:
                break
            proposal, state = self._proposed(method, here), here.state
        history.decide("extrapolations that lower the objective are refused")
        method.refuse()
        return None

    def _record(self, here: Visit, before: jax.Array, seconds: float, m_info: Any) -> bool:
        """Add a step to the history. False if it lowered the objective and is to be taken back."""
        change = here.objective - self.history.objective
        step = Step(here.objective, change, 0.0, _distance(here.x, before))
        count = len(self.history.rows) + 1
        if has_decreased(step, here.x.dtype, self.e_step.noise or 0.0):
            text = f"EM step {count} lowered the objective by {-change:.3g}"
            if self.limits.on_decrease == "raise":
                raise ModelError(
                    f"{text}, from {self.history.objective:.10g}. {Status.DECREASED.value}"
                )
            if self.limits.on_decrease == "revert":
                return False
            warnings.warn(f"{text}.", stacklevel=6)
        self.history.record(step, here.x, "em", seconds, here.info, m_info)
        self.of.bar.update(1)
        self.of.bar.set_postfix_str(
            f"{self.e_step.kind.replace('_', ' ')} {here.objective:.6f}, change {change:.1e} "
            f"{self.e_step.describe(here.info)}"
        )
        return True

    def _has_converged(self, here: Visit) -> bool:
        if not self.e_step.is_function:
            return has_flattened(here.info)
        gap, noise = self.limits.stopping.gap_for(False), self.e_step.noise or 0.0
        left = None
        if self.accelerator is not None:
            # In the slowest direction an EM step gains this fraction of what is left.
            rate = max(self.rates[-3:], default=1.0)
            info = here.out.info
            left = float(info.q_end - info.q_start) / max(1 - rate, 1e-6)
        return has_converged(self.history.steps[self.first :], gap, here.x.dtype, noise, left)

    def _stays_converged(self, watch: Watch) -> bool:
        """Whether Newton steps alone lead from where a coarser E-step converged to the maximum."""
        plan = self.limits.plan
        if plan.finish != "auto" or plan.acceleration is not None:
            return False
        return take_newton_steps(self.of) and not watch.towards(self.history.x).any()

    def _finish(self) -> Status | None:
        """Leave EM for the log-likelihood itself, if it is time; how that ended."""
        plan, history = self.limits.plan, self.history
        auto = plan.finish == "auto"
        if plan.finish is None or (auto and (plan.acceleration or not may_leave(self.of))):
            return None
        near = is_due(history.steps, self.e_step, self.problem, self.limits.stopping)
        near &= auto
        if near and take_newton_steps(self.of):
            return Status.CONVERGED
        gap = max(self.limits.stopping.gap_for(False), rounding(history.objective, history.x.dtype))
        steps = history.steps[self.first :]
        reason = switch_reason(plan.finish, steps, self.problem.space.size, gap)
        if near and self.e_step.noise is not None:
            reason = reason or "the maximum is not near"
        if not reason or (auto and is_early(self.of)):
            return Status.STALLED if near else None
        if auto and not is_large(self.problem) and not self.e_step.holds:
            history.decide(f"{reason}: on by Newton steps")
            status = Region(self.of).climb()
        else:
            history.decide(f"{reason}: on to the direct method")
            status = Ascent(self.of, getattr(self.m_state, "inverse", None)).climb()
        if status not in CONVERGED:
            history.decide("nothing more is gained, or no maximum confirmed: back to EM")
            self.first = len(history.steps)
        return status

    def _proposed(self, method: Accelerator, here: Visit) -> Proposal:
        def em_map(x: np.ndarray) -> np.ndarray:
            start = nearest_feasible(self.problem, jnp.asarray(x, here.x.dtype))
            if start is None:
                return np.full_like(x, np.nan)
            return np.asarray(self._both(start, here.state).out.x, float)

        x, mapped = (np.asarray(a, float) for a in (here.x, here.out.x))
        inverse = getattr(self.m_state, "inverse", None)  # of the complete-data information
        scale = np.ones_like(x) if inverse is None else np.sqrt(np.diag(np.asarray(inverse)))
        scale = np.where(scale > 0, scale, np.inf)
        proposal = method.propose(em_map, x, mapped, scale)
        if np.isfinite(proposal.rate):
            self.rates.append(min(proposal.rate, 1 - 1e-6))
        end = nearest_feasible(self.problem, jnp.asarray(proposal.x, here.x.dtype))
        return proposal._replace(x=proposal.fallback if end is None else np.asarray(end, float))


def _distance(x: jax.Array, before: jax.Array) -> float:
    """On the host: outside of compiled code each operation is a program."""
    return float(np.linalg.norm(np.asarray(x) - np.asarray(before)))
