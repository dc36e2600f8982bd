"""The loop of Monte Carlo EM: moving, then Newton steps on fresh draws until one is confirmed."""

import logging
import time
from typing import Any

import jax
import numpy as np

from ppl_em.algorithms.confirmation import Polish, Verdict, draws_needed, polish
from ppl_em.algorithms.history import History, Run
from ppl_em.algorithms.sampler import Sampler
from ppl_em.algorithms.stopping import Step, has_settled
from ppl_em.likelihood import Components
from ppl_em.result import Status

logger = logging.getLogger("ppl_em")

MAX_POLISHES = 12
"""Rounds of the last phase before the run is called noise-limited."""

MAX_CALMED = 3
"""Rounds after which a sampler that diverges is not given smaller steps any more."""


def monte_carlo(run: Run, sampler: Sampler) -> tuple[Status, Polish | None, float]:
    """EM steps until noise hides their gains, then rounds of `polish`; and again if need be.

    Returns the status, the round that ended the run (None if none did), and the seconds of the
    first step.
    """
    problem, history, limits, bar = run.problem, run.history, run.limits, run.bar
    e_step = sampler.e_step
    x, e_state, m_state = history.x, history.e_state, sampler.m_state(history.x)
    before, forward, m_info, compile_seconds = x, np.zeros(2), None, 0.0
    components: Components | None = None
    moving = 0
    for count in range(limits.max_steps + 1):
        start = time.monotonic()
        e_state, e_info, out = sampler.em_step(problem, x, before, e_state, m_state)
        out = jax.block_until_ready(out)
        seconds = time.monotonic() - start
        compile_seconds += seconds if count == 0 else 0.0
        if not np.all(np.isfinite(out.backward)):
            return Status.NON_FINITE, None, compile_seconds
        if m_info is not None:
            change, error = _path_gain(forward, np.asarray(out.backward))
            length = float(np.linalg.norm(np.asarray(x) - np.asarray(before)))
            step = Step(history.objective + change, change, error, length)
            history.record(step, x, "moving", seconds, e_info, m_info)
            moving += 1
            bar.update(1)
            bar.set_postfix_str(f"gain {change:.1e} ± {error:.0e}, {e_step.describe(e_info)}")
        history.x, history.e_state = x, e_state
        if not np.all(np.isfinite(out.x)):
            return Status.NON_FINITE, None, compile_seconds
        if time.monotonic() > limits.deadline:
            return Status.MAX_SECONDS, None, compile_seconds
        direct = limits.plan.direct and not history.newton_failed
        before, x, m_state = x, x if direct else out.x, out.state
        forward, m_info = np.asarray(out.forward), out.info
        if direct or has_settled(
            history.steps[len(history.steps) - moving :], history.newton_failed
        ):
            last, ended = _confirm(run, sampler, x, e_state, components)
            if ended is not None:
                return ended, last, compile_seconds
            x, e_state, components = history.x, e_step.resume(last.state), last.components
            moving, m_info = 0, None
    return Status.MAX_STEPS, None, compile_seconds


def _confirm(
    run: Run, sampler: Sampler, x: jax.Array, e_state: Any, components: Components | None
) -> tuple[Polish, Status | None]:
    """Newton steps on fresh draws until one is confirmed.

    No status if they fail: EM goes on from where they began, until noise hides its gains.
    """
    problem, history, limits, bar = run.problem, run.history, run.limits, run.bar
    e_step = sampler.e_step
    fresh, state = sampler.fresh(e_state)
    history.x, history.e_state = x, e_state
    before, objective, promised = x, history.objective, np.inf
    for count in range(MAX_POLISHES):
        start = time.monotonic()
        found = polish(fresh, problem, x, state, components, limits.stopping, limits.deadline, bar)
        x, state, components = found.x, found.state, found.components
        history.rounds += 1
        gap, noise = found.information.gap, found.information.gap_noise
        if found.verdict is Verdict.SINGULAR or (
            found.verdict is Verdict.MOVED and gap > promised + 4 * noise
        ):
            history.newton_failed, history.x, history.objective = True, before, objective
            return found, Status.SINGULAR if history.rounds >= MAX_POLISHES else None
        history.record(
            _polish_step(history, found), x, "polish", time.monotonic() - start, found.health.row
        )
        history.x, history.e_state = x, e_step.resume(state)
        if found.verdict is Verdict.MOVED:
            promised = gap
        bar.update(1)
        if found.verdict is Verdict.CONFIRMED:
            return found, Status.CONVERGED
        if time.monotonic() > limits.deadline:
            return found, Status.MAX_SECONDS
        if found.verdict is Verdict.NOISY:
            logger.warning(
                "About %.2g draws would be needed, of which %.2g were allowed.",
                draws_needed(found, limits.stopping),
                limits.stopping.max_draws,
            )
            return found, Status.NOISE_LIMITED
        if found.verdict is Verdict.SICK:
            if count >= MAX_CALMED:
                logger.warning("%s", found.health.complaint(problem.latent_names))
                return found, Status.UNHEALTHY
            state = fresh.e_step.calm(state)
    return found, Status.NOISE_LIMITED


def _path_gain(forward: np.ndarray, backward: np.ndarray) -> tuple[float, float]:
    """Gain in log-likelihood from one point to the next, and its Monte Carlo error.

    The mean difference of log-joints is a lower bound on the gain under the draws at the old
    point and an upper bound under those at the new one; their average errs in the third order.
    """
    value = 0.5 * (forward[0] + backward[0])
    return float(value), float(0.5 * np.hypot(forward[1], backward[1]))


def _polish_step(history: History, last: Polish) -> Step:
    gain, noise = last.information.gap, last.information.gap_noise
    if last.verdict is Verdict.SICK:  # no step was made
        return Step(history.objective, 0.0, noise, 0.0)
    length = float(np.linalg.norm(np.asarray(last.x) - np.asarray(history.x)))
    return Step(history.objective + gain - noise, gain - noise, noise, length)
