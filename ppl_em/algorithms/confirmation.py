"""The last phase of Monte Carlo EM: Newton steps with Fisher's score and Louis's information.

Many draws are taken at one value of the parameters. Their mean score is the gradient of the
log-likelihood (Fisher), so one Newton step from there has an error that is known, however slow
EM is. Convergence is only ever declared here, on draws that no M-step has seen.
"""

import time
from dataclasses import dataclass
from enum import Enum
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

from ppl_em.algorithms.ascent import halved
from ppl_em.algorithms.sampler import Sampler
from ppl_em.algorithms.stopping import Stopping
from ppl_em.likelihood import (
    MAX_SE_NOISE,
    Components,
    Information,
    ScoreMoments,
    curvature_of_score,
    find,
    find_motion,
    hold,
    known_blocks,
    louis_information,
    moved,
    sampled_information,
    score_moments,
)
from ppl_em.problem import Problem
from ppl_em.stats import Health

SE_NOISE = 0.04
"""Relative Monte Carlo error that standard errors may have, unless `mcse_fraction` is larger."""

FIRST_LOOK = 5
"""E-steps until the score is looked at."""

RESOLUTION = 1e-4
"""Smallest Monte Carlo error that is reported, in standard errors."""

MAX_KEPT = 20_000_000
"""Numbers in the draws kept for reweighting, at most."""

EVEN = 10.0
"""Largest weight, in units of the mean, up to which reweighted draws are used."""


class Verdict(Enum):
    """What a round found."""

    CONFIRMED = "the score is zero within its error"
    MOVED = "a Newton step was needed"
    NOISY = "the draws are spent"
    SINGULAR = "the information is not positive definite"
    SICK = "the chains are not to be believed"


@dataclass(frozen=True, eq=False)
class Polish:
    """The outcome of one round.

    `x` (p,) are the parameters after the Newton step, which sick chains do not make; `information`
    belongs to where the draws were taken, `mcse_x` (p, p) is the Monte Carlo covariance of `x`,
    `state` the fresh sampler's, `draws_shape` that of one E-step's draws, (chain, draw, D).
    """

    x: jax.Array
    information: Information
    mcse_x: np.ndarray
    verdict: Verdict
    health: Health
    components: Components
    state: Any
    draws_shape: tuple[int, ...]

    def known_blocks(self, problem: Problem, x: jax.Array) -> Any:
        """Blocks of latents and the log-joint at `x` (p,) by block, see `draw_evaluation.py`."""
        return known_blocks(problem, x, self.components, self.draws_shape)


class _Round:
    """Draws at one value of the parameters, and their moments."""

    def __init__(
        self,
        sampler: Sampler,
        problem: Problem,
        x: jax.Array,
        state: Any,
        components: Components | None,
    ) -> None:
        self.sampler, self.problem, self.x = sampler, problem, x
        self.rows: list[ScoreMoments] = []
        self.stats: list[dict[str, np.ndarray]] = []
        self.kept: list[np.ndarray] = []
        # The chains come from other parameters: what they do first does not count.
        posterior, self.state, _ = sampler.draw(problem, x, state)
        self.shape = posterior.draws.shape
        self.components = components or find(problem, x, posterior)
        self.motion = find_motion(problem, x, posterior, self.components)

    def extend(self, target: int, bar: tqdm, deadline: float) -> None:
        """E-steps until there are `target`."""
        while len(self.rows) < target:
            if len(self.rows) >= FIRST_LOOK and time.monotonic() > deadline:
                return
            posterior, self.state, info = self.sampler.draw(self.problem, self.x, self.state)
            self.rows.append(score_moments(self.problem, posterior, self.components, self.motion))
            self.stats.append(jax.device_get(posterior.stats))
            if len(self.kept) < FIRST_LOOK and posterior.draws.size * FIRST_LOOK < MAX_KEPT:
                self.kept.append(np.asarray(posterior.draws))
            self.size = posterior.weights.size
            bar.set_postfix_str(
                f"confirming on {self.draws} draws, {self.sampler.e_step.describe(info)}"
            )
            bar.update(0)

    @property
    def draws(self) -> int:
        """How many there are."""
        return len(self.rows) * self.size

    def information(self) -> Information:
        """Score and information there."""
        return hold(self.problem, self.x, louis_information(self.problem, self.x, self.rows))

    def sampled_information(self) -> Information | None:
        """The same by importance sampling, with proposals like the draws kept; None without any."""
        if not self.kept:
            return None
        draws = np.concatenate(self.kept, axis=1)
        found = sampled_information(self.problem, self.x, draws, self.components, self.motion)
        return hold(self.problem, self.x, found)

    def health(self) -> Health:
        """Whether they may be believed."""
        names = self.stats[0] if self.stats else {}
        stats = {k: np.concatenate([step[k] for step in self.stats], axis=1) for k in names}
        scores = np.concatenate([np.asarray(row.scores) for row in self.rows], axis=1)
        return self.sampler.e_step.diagnose(stats, scores)

    def newton_step(self, information: Information) -> np.ndarray:
        """The step to the maximum, (p,), corrected for curvature that Newton's does not see."""
        step = information.newton_step
        length = np.sqrt(step @ information.matrix @ step)
        if length > 1 or not self.kept:
            return step * min(1.0, 3.0 / max(length, 1e-300))
        for _ in range(2):
            beyond, largest = curvature_of_score(
                self.problem, self.motion, self.components, step, self.kept
            )
            if not (np.all(np.isfinite(beyond)) and largest < EVEN):
                break
            step = information.solve(information.gradient + beyond)
        return step


def polish(
    sampler: Sampler,
    problem: Problem,
    x: jax.Array,
    state: Any,
    components: Components | None,
    stopping: Stopping,
    deadline: float,
    bar: tqdm,
) -> Polish:
    """Draw at `x` until the Newton step is precise, take it, and test whether it was needed.

    A step that is clearly needed is taken at once. Else the number of draws doubles until every
    parameter's Monte Carlo error is below `stopping.mcse_fraction` of its standard error, standard
    errors are within `SE_NOISE`, and the chains agree; or the sampler is in trouble, or the draws
    are spent. Where Louis's information is not good enough even then, that of an importance-sampled
    log-likelihood takes its place, if it is.
    """
    here = _Round(sampler, problem, x, state, components)
    target = FIRST_LOOK
    while True:
        here.extend(target, bar, deadline)
        information = here.information()
        health = here.health()
        verdict = _judge(here, information, health, stopping)
        if not health.sound:
            verdict = Verdict.SICK
        spent = here.draws >= stopping.max_draws or time.monotonic() > deadline
        if verdict is not None or spent or (not information.usable and target >= 8 * FIRST_LOOK):
            break
        target *= 2
    if verdict is None and health.mixed and not information.precise:
        sampled = here.sampled_information()
        if sampled is not None and sampled.precise:
            information, verdict = sampled, _judge(here, sampled, health, stopping)
    if not information.usable:
        error, new_x, verdict = np.full_like(information.matrix, np.nan), x, Verdict.SINGULAR
    else:
        # What is left of higher order is not measured; nothing is claimed to be without error.
        error = information.newton_error + RESOLUTION**2 * information.covariance
        verdict = verdict or (Verdict.NOISY if health.mixed else Verdict.SICK)
        if verdict is Verdict.SICK:
            error, new_x = np.full_like(error, np.nan), x
        else:
            new_x = _moved(problem, x, here.newton_step(information), information)
    return Polish(
        new_x, information, error, verdict, health, here.components, here.state, here.shape
    )


def _moved(problem: Problem, x: jax.Array, step: np.ndarray, information: Information) -> jax.Array:
    """`x` (p,) after a step, as far as constraints let it go."""
    found = halved(lambda step: moved(problem, x, step, information), step)
    return x if found is None else found


def _judge(
    here: _Round, information: Information, health: Health, stopping: Stopping
) -> Verdict | None:
    """What the draws so far say; None if more are needed.

    Noise alone makes a promised gain of `gap_noise` on average. At the first look a step that
    promises twice that is cheap to take; later it must be four times.
    """
    if not information.usable:
        return None
    noise = 2 if len(here.rows) == FIRST_LOOK else 4
    if information.gap > stopping.gap_for(True) + noise * information.gap_noise:
        return Verdict.MOVED
    if max(_excess(information, stopping)) > 1:
        return None
    return Verdict.CONFIRMED if health.mixed else None


def _excess(information: Information, stopping: Stopping) -> tuple[float, float]:
    """Monte Carlo errors of estimates and of standard errors in units of what is allowed."""
    error = np.sqrt(np.diag(information.newton_error))
    se = np.sqrt(np.diag(information.covariance))
    allowed = float(np.clip(stopping.mcse_fraction, SE_NOISE, MAX_SE_NOISE))
    free = se > 1e-10 * np.max(se)  # the others are held by constraints
    of_estimates = float(np.max(error[free] / se[free])) / stopping.mcse_fraction
    return of_estimates, information.se_noise / allowed


def draws_needed(found: Polish, stopping: Stopping) -> float:
    """About how many draws would have been enough: errors fall with the root of their number."""
    return found.health.draws * max(1.0, *_excess(found.information, stopping)) ** 2
