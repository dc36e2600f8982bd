"""The loop: one compiled update, called until a rule in `stopping` ends it."""

import time
import warnings
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from ppl_em.e_step import EStep
from ppl_em.home_stretch import NewtonStep, is_due, newton_steps
from ppl_em.m_step import MStep
from ppl_em.params import Params
from ppl_em.polish import Polish, polish
from ppl_em.problem import Problem
from ppl_em.stopping import (
    Status,
    Step,
    Stopping,
    has_converged,
    has_decreased,
    has_settled,
    is_stationary,
    observed_rate,
    rounding,
)
from ppl_em.updates import expectation, maximization
from ppl_em.validation import ModelError

MAX_NEWTON = 10
"""Newton steps at the end of a deterministic run before EM goes on."""

MAX_POLISHES = 8
"""Newton steps of the last phase before the run is called noise-limited."""


@dataclass(frozen=True)
class Limits:
    """Budgets and rules of one run; `begin` is its `time.monotonic()` start."""

    max_steps: int
    stopping: Stopping
    on_decrease: str
    begin: float

    @property
    def deadline(self) -> float:
        """When no further step is started."""
        seconds = self.stopping.max_seconds
        return np.inf if seconds is None else self.begin + seconds


class Outcome(NamedTuple):
    """What the loop hands to the result; everything belongs to `x` (p,), the last good point."""

    x: jax.Array
    e_state: Any
    status: Status
    rows: list[dict[str, Any]]
    polish: Polish | None
    begin: float
    compile_seconds: float


@dataclass
class _Trail:
    """The history so far, and the last good parameters."""

    problem: Problem
    x: jax.Array
    e_state: Any
    steps: list[Step] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    objective: float = 0.0

    def record(self, step: Step, x: jax.Array, phase: str, seconds: float, *infos: Any) -> None:
        row: dict[str, Any] = {"params": jax.device_get(self.problem.constrain(x))}
        row |= {"objective": step.objective, "change": step.change, "change_mcse": step.error}
        rate = observed_rate([*self.steps, step]) if phase == "em" else np.nan
        if phase == "newton" and self.rows:
            rate = self.rows[-1]["em_rate"]
        row |= {"em_rate": rate, "phase": phase, "seconds": seconds}
        for info in infos:
            row |= {name: float(value) for name, value in info._asdict().items()}
        self.steps.append(step)
        self.rows.append(row)
        self.objective = step.objective


def run_loop(
    rng_key: jax.Array,
    problem: Problem,
    e_step: EStep,
    m_step: MStep,
    params: Params,
    limits: Limits,
    bar: tqdm,
) -> Outcome:
    """Run EM from `params` until converged, out of budget, interrupted, or failing."""
    x = problem.unconstrain(params)
    started = time.monotonic()
    e_state = e_step.init(rng_key, problem, params)
    trail = _Trail(problem, x, e_state)
    last_polish: Polish | None = None
    compile_seconds = time.monotonic() - started
    try:
        run = _monte_carlo if e_step.stochastic else _deterministic
        status, last_polish, compiled = run(problem, e_step, m_step, trail, limits, bar)
        compile_seconds += compiled
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    return Outcome(
        trail.x, trail.e_state, status, trail.rows, last_polish, limits.begin, compile_seconds
    )


def _deterministic(
    problem: Problem, e_step: EStep, m_step: MStep, trail: _Trail, limits: Limits, bar: tqdm
) -> tuple[Status, None, float]:
    x, e_state, m_state = trail.x, trail.e_state, m_step.init(trail.x)
    before, m_info, compile_seconds = x, None, 0.0
    gap, next_try = limits.stopping.gap_for(False), 0
    for count in range(limits.max_steps + 1):
        start = time.monotonic()
        posterior, e_state, e_info = expectation(e_step, problem, x, e_state)
        out = maximization(m_step, problem, x, before, posterior, m_state)
        out = jax.block_until_ready(out)
        seconds = time.monotonic() - start
        compile_seconds += seconds if count == 0 else 0.0
        objective = float(e_info.objective)
        if not np.isfinite(objective):
            return Status.NON_FINITE, None, compile_seconds
        if count == 0:
            trail.objective = objective
        else:
            change = objective - trail.objective
            step = Step(objective, change, 0.0, float(jnp.linalg.norm(x - before)))
            if has_decreased(step, x.dtype):
                if limits.on_decrease == "raise":
                    raise ModelError(
                        f"EM step {count} lowered the objective by {-change:.3g}, from "
                        f"{trail.objective:.10g}. {Status.DECREASED.value}"
                    )
                if limits.on_decrease == "revert":
                    return Status.DECREASED, None, compile_seconds
                warnings.warn(
                    f"EM step {count} lowered the objective by {-change:.3g}.", stacklevel=6
                )
            trail.record(step, x, "em", seconds, e_info, m_info)
            bar.update(1)
            bar.set_postfix_str(
                f"{e_step.kind.replace('_', ' ')} {objective:.6f}, change {change:.1e} "
                f"{e_step.describe(e_info)}"
            )
        trail.x, trail.e_state = x, e_state
        if not bool(jnp.all(jnp.isfinite(out.x))):
            return Status.NON_FINITE, None, compile_seconds
        if has_converged(trail.steps, gap, x.dtype):
            return Status.CONVERGED, None, compile_seconds
        if count >= next_try and is_due(trail.steps, e_step, problem, limits.stopping):
            if _home_stretch(problem, e_step, trail, limits, bar):
                return Status.CONVERGED, None, compile_seconds
            next_try = 2 * count
        if bool(jnp.all(out.x == x)):
            fine = is_stationary(objective, float(out.info.m_promised), x.dtype)
            return Status.CONVERGED if fine else Status.STALLED, None, compile_seconds
        if time.monotonic() > limits.deadline:
            return Status.MAX_SECONDS, None, compile_seconds
        before, x, m_state, m_info = x, out.x, out.state, out.info
    return Status.MAX_STEPS, None, compile_seconds


def _home_stretch(problem: Problem, e_step: Any, trail: _Trail, limits: Limits, bar: tqdm) -> bool:
    """Newton steps at the end of a slow run. Whether they converged: if not, EM goes on."""
    before, start = trail.x, time.monotonic()
    found: list[tuple[NewtonStep, float]] = []
    for step in newton_steps(e_step, problem, trail.x, trail.e_state, trail.objective):
        seconds, start = time.monotonic() - start, time.monotonic()
        found.append((step, seconds))
        bar.set_postfix_str(f"Newton step to {step.value:.6f}")
        bar.update(0)
        floor = rounding(step.value, trail.x.dtype)
        if step.promised < max(limits.stopping.gap_for(False), floor):
            break
        if (
            len(found) + len(trail.rows) >= limits.max_steps
            or len(found) >= MAX_NEWTON
            or time.monotonic() > limits.deadline
        ):
            return False
    else:
        return False
    for step, seconds in found:
        change = step.value - trail.objective
        length = float(jnp.linalg.norm(step.x - before))
        trail.record(Step(step.value, change, 0.0, length), step.x, "newton", seconds)
        trail.x = before = step.x
        bar.update(1)
    return True


def _monte_carlo(
    problem: Problem, e_step: EStep, m_step: MStep, trail: _Trail, limits: Limits, bar: tqdm
) -> tuple[Status, Polish | None, float]:
    x, e_state, m_state = trail.x, trail.e_state, m_step.init(trail.x)
    before, forward, m_info, compile_seconds = x, np.zeros(2), None, 0.0
    last: Polish | None = None
    polishes, moving = 0, 0
    for count in range(limits.max_steps + 1):
        start = time.monotonic()
        posterior, e_state, e_info = expectation(e_step, problem, x, e_state)
        out = maximization(m_step, problem, x, before, posterior, m_state)
        out = jax.block_until_ready(out)
        seconds = time.monotonic() - start
        compile_seconds += seconds if count == 0 else 0.0
        if not np.all(np.isfinite(out.backward)):
            return Status.NON_FINITE, last, compile_seconds
        if m_info is not None:
            change, error = _path_gain(forward, out.backward)
            length = float(jnp.linalg.norm(x - before))
            step = Step(trail.objective + change, change, error, length)
            trail.record(step, x, "moving", seconds, e_info, m_info)
            moving += 1
            bar.update(1)
            bar.set_postfix_str(f"gain {change:.1e} ± {error:.0e}, {e_step.describe(e_info)}")
        trail.x, trail.e_state = x, e_state
        if not bool(jnp.all(jnp.isfinite(out.x))):
            return Status.NON_FINITE, last, compile_seconds
        if time.monotonic() > limits.deadline:
            return Status.MAX_SECONDS, last, compile_seconds
        before, x, m_state = x, out.x, out.state
        forward, m_info = np.asarray(out.forward), out.info
        if has_settled(trail.steps[len(trail.steps) - moving :]):
            while polishes < MAX_POLISHES:
                polishes += 1
                last = polish(e_step, problem, x, e_state, limits.stopping, limits.deadline, bar)
                before, x, e_state = x, last.x, last.state
                if not last.information.usable:
                    break
                trail.record(_polish_step(trail, last), x, "polish", time.monotonic() - start)
                trail.x, trail.e_state = x, e_state
                if last.confirmed:
                    return Status.CONVERGED, last, compile_seconds
                if not last.precise:
                    return Status.NOISE_LIMITED, last, compile_seconds
            if polishes >= MAX_POLISHES:
                usable = last is not None and last.information.usable
                status = Status.NOISE_LIMITED if usable else Status.SINGULAR
                return status, last, compile_seconds
            moving, m_info = 0, None
    return Status.MAX_STEPS, last, compile_seconds


def _path_gain(forward: np.ndarray, backward: jax.Array) -> tuple[float, float]:
    """Gain in log-likelihood from one point to the next, and its Monte Carlo error.

    The mean difference of log-joints is a lower bound on the gain under the draws at the old
    point and an upper bound under those at the new one; their average errs in the third order.
    """
    value = 0.5 * (forward[0] + float(backward[0]))
    return float(value), float(0.5 * np.hypot(forward[1], float(backward[1])))


def _polish_step(trail: _Trail, last: Polish) -> Step:
    gain, noise = last.information.gap, last.information.gap_noise
    length = float(np.linalg.norm(np.asarray(last.x) - np.asarray(trail.x)))
    return Step(trail.objective + gain - noise, gain - noise, noise, length)
