"""One run: the loop that the E-step and the plan ask for, and what it leaves behind."""

import time
from dataclasses import replace
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from tqdm.auto import tqdm

from ppl_em.algorithms.boundary import to_boundary
from ppl_em.algorithms.boundary_watch import move_inside, near_ends
from ppl_em.algorithms.certificate import Certified, certify
from ppl_em.algorithms.confirmation import Polish
from ppl_em.algorithms.deterministic import Deterministic
from ppl_em.algorithms.direct import climb_directly
from ppl_em.algorithms.history import History, Limits, Plan, Run
from ppl_em.algorithms.limit_laws import with_laws
from ppl_em.algorithms.monte_carlo import monte_carlo
from ppl_em.algorithms.sampler import Sampler
from ppl_em.algorithms.separation import to_limit
from ppl_em.algorithms.trust_region import may_leave
from ppl_em.e_step import EStep, StochasticEStep
from ppl_em.m_step import MStep, for_problem
from ppl_em.params import AtBounds, Params
from ppl_em.problem import Problem, firm, needs
from ppl_em.result import CONVERGED, Status

MAYBE_AT_ENDS = (*CONVERGED, Status.STALLED, Status.DECREASED, Status.MAX_STEPS)
"""Ends of a run that may be next to a bound of the parameters."""


MAX_RETURNS = 3
"""How often a run goes on from inside, where it has ended next to a bound that is too low."""


class Outcome(NamedTuple):
    """What the loop hands to the result; everything belongs to `x` (p,), the last good point.

    `e_step` is the one that it ended with, which may be finer than the first; `at` says which
    parameters are at a bound, if some are; `m_step` is the last M-step's configuration;
    `certified` what was found around `x`, where the E-step has no noise.
    """

    x: jax.Array
    e_step: EStep
    e_state: Any
    status: Status
    rows: list[dict[str, Any]]
    polish: Polish | None
    begin: float
    compile_seconds: float
    at: AtBounds | None = None
    m_step: MStep | None = None
    certified: Certified | None = None


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
    if e_step.stochastic:
        e_state = Sampler(cast(StochasticEStep, e_step), m_step).begin(rng_key, problem, x)
    else:
        e_state = e_step.init(rng_key, problem, params)
    history = History(problem, x, e_state)
    last_polish: Polish | None = None
    compile_seconds = time.monotonic() - started
    try:
        while True:
            if e_step.stochastic:
                status, last_polish, compiled = monte_carlo(
                    Run(problem, e_step, history, limits, bar),
                    Sampler(cast(StochasticEStep, e_step), m_step),
                )
            else:
                status, compiled = _without_noise(
                    Run(problem, e_step, history, limits, bar), m_step
                )
            compile_seconds += compiled
            finer, firmer = None, None
            if status in CONVERGED:
                finer, firmer = _finer(problem, e_step, history), firm(problem, history.x)
            if finer is None and firmer is None:
                if e_step.stochastic:
                    break
                ended = certify(Run(problem, e_step, history, limits, bar), status)
                if ended is not None:
                    status = ended
                    break
            e_step = finer or e_step
            if firmer is not None:
                problem = firmer
                m_step = for_problem("auto", history.x.size, needs(problem))
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    return Outcome(
        history.x,
        e_step,
        history.e_state,
        status,
        history.rows,
        last_polish,
        limits.begin,
        compile_seconds,
        with_laws(problem, history.at),
        m_step,
        history.certified,
    )


def _without_noise(run: Run, m_step: MStep) -> tuple[Status, float]:
    seconds = 0.0
    for _ in range(MAX_RETURNS):
        status, more = _climb(run, m_step)
        seconds += more
        if status not in MAYBE_AT_ENDS:
            break
        towards = _towards_ends(run, status)
        if towards.any() and to_boundary(run, towards):
            status = Status.BOUNDARY
        if status is Status.BOUNDARY or not move_inside(run, towards):
            break
    if status in MAYBE_AT_ENDS and _at_limit(run):
        status = Status.BOUNDARY
    return status, seconds


def _towards_ends(run: Run, status: Status) -> np.ndarray:
    """The ends that the run may have come near to without going there, as of `near_ends`, (p,)."""
    found, towards = run.history.at, near_ends(run)
    if found is None or status is not Status.BOUNDARY:
        return towards
    if not np.any(towards[~found.held]):
        return np.zeros_like(towards)
    return np.where(found.held, found.towards, towards)


def _at_limit(run: Run) -> bool:
    """Whether free parameters go to infinity, and no other stands still next to an end."""
    known = run.history.at
    if not to_limit(run):
        return False
    found = run.history.at
    if found is not None and np.any(near_ends(run)[~found.held]):
        run.history.at = known
        return False
    return True


def _climb(run: Run, m_step: MStep) -> tuple[Status, float]:
    early = run.e_step.holds and run.limits.plan == Plan() and may_leave(run)
    if early:
        run.history.decide("EM would creep along a chain: the direct method from the start")
    if run.limits.plan.direct or early:
        status, seconds = climb_directly(run)
        if status is not Status.STALLED:
            return status, seconds
        towards = near_ends(run)
        if towards.any() and to_boundary(run, towards):
            return Status.BOUNDARY, seconds
        move_inside(run, towards)
        if _at_limit(run):
            return Status.BOUNDARY, seconds
        run.history.decide("the information does not confirm a maximum: EM steps tell")
        finish = "auto" if run.e_step.holds else None
        run = replace(run, limits=replace(run.limits, plan=Plan(finish=finish)))
    return Deterministic(run, m_step).run()


def _finer(problem: Problem, e_step: Any, history: History) -> EStep | None:
    """An approximation that is good enough at the end of the run, if this one is not."""
    if e_step.noise is None:
        return None
    return e_step.refined(problem, problem.constrain(history.x), history.e_state)
