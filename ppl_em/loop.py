"""The loop: one compiled update, called until a rule in `stopping` ends it."""

import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from ppl_em.boundary import Watch, jump
from ppl_em.e_step import EStep, noise_of
from ppl_em.home_stretch import NewtonStep, is_due, newton_steps
from ppl_em.m_step import MStep
from ppl_em.monte_carlo import monte_carlo
from ppl_em.params import Params
from ppl_em.polish import Polish
from ppl_em.problem import Problem
from ppl_em.stopping import (
    CONVERGED,
    Status,
    Step,
    has_converged,
    has_decreased,
    has_flattened,
    is_stationary,
    rounding,
)
from ppl_em.trail import Limits, Outcome, Trail
from ppl_em.updates import expectation, maximization
from ppl_em.validation import ModelError

MAX_NEWTON = 10
"""Newton steps at the end of a deterministic run before EM goes on."""

MAX_HALVINGS = 10
"""How often a step that lowers an approximate log-likelihood is halved before it is refused."""


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
    trail = Trail(problem, x, e_state)
    last_polish: Polish | None = None
    compile_seconds = time.monotonic() - started
    try:
        run: Any = monte_carlo if e_step.stochastic else _deterministic
        while True:
            status, last_polish, compiled = run(problem, e_step, m_step, trail, limits, bar)
            compile_seconds += compiled
            finer = _finer(problem, e_step, trail) if status in CONVERGED else None
            if finer is None:
                break
            e_step = finer
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    return Outcome(
        trail.x,
        e_step,
        trail.e_state,
        status,
        trail.rows,
        last_polish,
        limits.begin,
        compile_seconds,
        trail.at,
    )


def _finer(problem: Problem, e_step: Any, trail: Trail) -> EStep | None:
    """An approximation that is good enough at the end of the run, if this one is not."""
    if noise_of(e_step) is None:
        return None
    return e_step.refined(problem, problem.constrain(trail.x), trail.e_state)


def _deterministic(
    problem: Problem, e_step: EStep, m_step: MStep, trail: Trail, limits: Limits, bar: tqdm
) -> tuple[Status, None, float]:
    x, e_state, m_state = trail.x, trail.e_state, m_step.init(trail.x)
    before, m_info, compile_seconds = x, None, 0.0
    gap, next_try, noise = limits.stopping.gap_for(False), 0, noise_of(e_step)
    watch = Watch(problem, e_step, limits.stopping)
    if trail.at is not None:  # with a coarser E-step
        towards, trail.at = trail.at.towards, None
        if _to_boundary(problem, e_step, trail, towards, bar):
            return Status.BOUNDARY, None, 0.0
        x, e_state = trail.x, trail.e_state
    for count in range(limits.max_steps + 1 - len(trail.rows)):
        start = time.monotonic()
        posterior, e_state, e_info = expectation(e_step, problem, x, e_state)
        if noise is not None and count > 0:
            for _ in range(MAX_HALVINGS):
                if float(e_info.objective) >= trail.objective - noise:
                    break
                x = (trail.x + x) / 2
                posterior, e_state, e_info = expectation(e_step, problem, x, trail.e_state)
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
            if has_decreased(step, x.dtype, noise or 0.0):
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
        windowed = hasattr(e_info, "window_rise")  # guides fitted by stochastic gradients
        converged = (
            has_flattened(e_info)
            if windowed
            else has_converged(trail.steps, gap, x.dtype, noise or 0.0)
        )
        towards = watch.towards(x)
        if (
            towards.any()
            and watch.is_due(trail.steps, converged)
            and _to_boundary(problem, e_step, trail, towards, bar)
        ):
            return Status.BOUNDARY, None, compile_seconds
        if converged:
            return Status.CONVERGED, None, compile_seconds
        if count >= next_try and is_due(trail.steps, e_step, problem, limits.stopping):
            if _home_stretch(problem, e_step, trail, limits, bar):
                return Status.CONVERGED, None, compile_seconds
            next_try = 2 * count
            if trail.x is not x:  # Newton steps got somewhere, if not to the end
                before, x = x, trail.x
                posterior, e_state, e_info = expectation(e_step, problem, x, e_state)
                trail.e_state = e_state
                out = maximization(m_step, problem, x, before, posterior, out.state)
        if bool(jnp.all(out.x == x)) and not windowed:
            fine = is_stationary(objective, float(out.info.m_promised), x.dtype)
            return Status.CONVERGED if fine else Status.STALLED, None, compile_seconds
        if time.monotonic() > limits.deadline:
            return Status.MAX_SECONDS, None, compile_seconds
        before, x, m_state, m_info = x, out.x, out.state, out.info
    return Status.MAX_STEPS, None, compile_seconds


def _to_boundary(
    problem: Problem, e_step: Any, trail: Trail, towards: np.ndarray, bar: tqdm
) -> bool:
    """Whether the maximum is at a bound, where the run then ends: if not, EM goes on."""
    start, before = time.monotonic(), trail.x
    found = jump(problem, e_step, before, trail.e_state, towards)
    if found is None:
        return False
    trail.at = found.at
    change, length = found.value - trail.objective, float(jnp.linalg.norm(found.x - before))
    step = Step(found.value, change, 0.0, length)
    trail.record(step, found.x, "boundary", time.monotonic() - start)
    trail.x, trail.e_state = found.x, found.state
    bar.update(1)
    return True


def _home_stretch(problem: Problem, e_step: Any, trail: Trail, limits: Limits, bar: tqdm) -> bool:
    """Newton steps at the end of a slow run. Whether they converged: if not, EM goes on."""
    before, start, converged = trail.x, time.monotonic(), True
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
            converged = False
            break
    else:
        converged = False
    if not converged and noise_of(e_step) is None:  # EM takes as many steps for more
        return False
    for step, seconds in found:
        change = step.value - trail.objective
        length = float(jnp.linalg.norm(step.x - before))
        trail.record(Step(step.value, change, 0.0, length), step.x, "newton", seconds)
        trail.x = before = step.x
        bar.update(1)
    return converged
