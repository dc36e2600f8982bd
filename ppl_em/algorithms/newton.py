"""The end of a slow deterministic run: Newton steps on the log-likelihood itself.

Near its maximum EM gains a constant fraction per step, which may need hundreds of steps for the
last digits. The log-likelihood and its information are at hand, the standard errors need them
anyway, and Newton's method converges there in a few steps.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.algorithms.ascent import Model, Point, ascend
from ppl_em.algorithms.history import Run
from ppl_em.algorithms.stopping import Step, Stopping, remaining_gap, remaining_steps, rounding
from ppl_em.e_step import DeterministicEStep, Strength, expectation
from ppl_em.likelihood import (
    Information,
    held_value_and_score,
    hold,
    is_large,
    marginal_information,
    moved,
)
from ppl_em.optimize import secant
from ppl_em.problem import Problem

NEAR = 0.01
"""Remaining gain below which Newton steps are tried: about a seventh of a standard error."""

CONTRADICTED = 1.0
"""Gain promised by a Newton step, from which it is not what EM sees: next to singular points."""

SOON = 2
"""EM steps before them where Newton steps are the rule."""

MAX_NEWTON = 10
"""Newton steps before EM goes on."""

FINE = 1e-3
"""Share of an approximation's noise below which gains are not asked for."""

LEFT = 0.3
"""Share of the promised gain that a step may leave before the information is computed anew."""

WORTH = 15
"""EM steps still to come from which they are worth their compilation; and twice the parameters."""


class NewtonStep(NamedTuple):
    """Parameters (p,) after one step, the log-likelihood there, and the gain still promised.

    `evaluations` counts E-steps, and a Hessian as one for each parameter. `inverse` (p, p) is that
    of the information of an approximation without constraints, as far as it is known; `information`
    that at `x` with nothing held, if it was computed.
    """

    x: jax.Array
    value: float
    promised: float
    evaluations: int
    inverse: np.ndarray | None = None
    information: Information | None = None


def is_due(steps: list[Step], e_step: Any, problem: Problem, stopping: Stopping) -> bool:
    """Whether Newton steps should be tried now."""
    if stopping.gap_for(False) <= 0 or problem.spec.rough:  # every step was asked for
        return False
    if not steps:
        return False
    if e_step.noise is not None:  # EM would end in noise, and the Hessian is needed anyway
        return len(steps) >= SOON
    if e_step.strength < Strength.EXACT or remaining_gap(steps) > NEAR or is_large(problem):
        return False
    worth = max(WORTH, 2 * problem.space.size)  # a Hessian costs an E-step per parameter
    return remaining_steps(steps, stopping.gap_for(False)) > worth


def newton_steps(
    e_step: DeterministicEStep,
    problem: Problem,
    x: jax.Array,
    state: Any,
    value: float,
    gap: float,
    inverse: np.ndarray | None = None,
) -> Iterator[NewtonStep]:
    """Newton steps from `x` (p,), where the log-likelihood is `value`, as long as each one gains.

    Ends at once where the information is not positive definite, or promises what EM does not see;
    stays at `x` if the gain promised there is below `gap`. The information of an approximation,
    which takes 2p + 1 gradients, is kept up to date by secants as long as each step leaves no more
    than `LEFT` of what it promised to gain. With the `inverse` (p, p) of a coarser approximation it
    starts from that, and stays at `x` once, to tell the log-likelihood there.
    """
    terrain = _End(problem, e_step)
    if inverse is None:
        model = terrain.by_hessian(x, state)
        if model is None or (e_step.noise is None and model.promised > CONTRADICTED):
            return
    else:
        value, terrain.gradient = held_value_and_score(e_step, problem, x, state)
        terrain.inverse, terrain.evaluations = inverse, 0
        model = terrain.by_inverse()
        yield NewtonStep(x, value, model.promised, 1, inverse)
    first = terrain.information
    terrain.by_secants = e_step.noise is not None and (first is None or first.held is None)
    if model.promised < gap:
        yield NewtonStep(
            x, value, model.promised, terrain.evaluations, terrain.kept, terrain.known(x)
        )
        return
    for here in ascend(terrain, Point(x, state, value, model)):
        if here.model is None:
            return
        promised, evaluations = here.model.promised, terrain.evaluations
        known = terrain.known(here.x)
        yield NewtonStep(here.x, here.value, promised, evaluations, terrain.kept, known)
        terrain.evaluations = 0


@dataclass(eq=False)
class _End:
    """The log-likelihood near its maximum, with the information's inverse as far as it is known.

    ::

        inverse I^-1 ──► step I^-1 g ──► does it gain? ──no──► half of it
           ▲                               │ yes
           │ secant: the gradient's fall   ▼
           └─ left no more than LEFT of what it promised, and was whole
              else: I anew, by 2p + 1 gradients; not positive definite: the end

    Log-likelihoods that are exact have a Hessian by automatic differentiation, anew at every step.
    `gradient` (p,) is that at the latest point, `score` where a step was tried last, `information`
    the latest by a Hessian; `whole` is it with nothing held, and where that was.
    """

    problem: Problem
    e_step: DeterministicEStep
    gradient: np.ndarray = field(init=False)
    inverse: np.ndarray = field(init=False)
    score: np.ndarray = field(init=False)
    information: Information | None = None
    whole: tuple[jax.Array, Information] | None = None
    evaluations: int = 0
    by_secants: bool = False

    @property
    def kept(self) -> np.ndarray | None:
        """The inverse (p, p) for a finer approximation."""
        return self.inverse if self.by_secants and not self.problem.spec.restrictions else None

    def known(self, x: jax.Array) -> Information | None:
        """The information at `x` (p,) with nothing held, if it was computed there."""
        return self.whole[1] if self.whole is not None and self.whole[0] is x else None

    def by_inverse(self) -> Model:
        """The model by what is known of the information."""
        step = self.inverse @ self.gradient
        return Model(step, float(0.5 * self.gradient @ step))

    def by_hessian(self, x: jax.Array, state: Any) -> Model | None:
        """The model with the information computed anew; None if it is not positive definite."""
        self.evaluations += x.size
        found = marginal_information(self.e_step, self.problem, x, state)
        self.whole = x, found
        self.information = here = hold(self.problem, x, found)
        if not here.usable:
            return None
        self.gradient, self.inverse = here.gradient, here.covariance
        return self.by_inverse()

    def at(self, x: jax.Array, state: Any) -> tuple[float, Any]:
        """By secants with the gradient, which `model` then finds."""
        self.evaluations += 1
        if self.by_secants:
            value, self.score = held_value_and_score(self.e_step, self.problem, x, state)
            return value, state
        _, state, info = expectation(self.e_step, self.problem, x, state)
        return float(info.objective), state

    def model(self, x: jax.Array, state: Any, before: Point, taken: np.ndarray) -> Model | None:
        """By secants where that is enough."""
        if not self.by_secants:
            return self.by_hessian(x, state)
        fall, known = jnp.asarray(self.gradient - self.score), jnp.asarray(self.inverse)
        self.inverse = np.asarray(secant(known, jnp.asarray(taken), fall))
        self.gradient, last = self.score, cast(Model, before.model)
        found, whole = self.by_inverse(), taken is last.step
        if whole and found.promised <= LEFT * last.promised:
            return found
        return self.by_hessian(x, state)

    def move(self, here: Point, step: np.ndarray) -> jax.Array | None:
        """Along the constraints that are held."""
        if self.information is None:
            return here.x + jnp.asarray(step, here.x.dtype)
        return moved(self.problem, here.x, step, self.information)

    def floor(self, value: float) -> float:
        """Rounding, or what an approximation leaves open."""
        return max(self.e_step.noise or 0.0, rounding(value, self.problem.start.dtype))


def take_newton_steps(run: Run) -> bool:
    """Newton steps at the end of a run. Whether they converged: if not, it goes on.

    The history keeps the information for a finer approximation, if one follows.
    """
    problem, e_step, history, limits = run.problem, run.e_step, run.history, run.limits
    before, start, converged = history.x, time.monotonic(), True
    found: list[tuple[NewtonStep, float, int]] = []
    gap = max(limits.stopping.gap_for(False), rounding(history.objective, history.x.dtype))
    gap = max(gap, FINE * (e_step.noise or 0.0))
    start_at, inverse, history.inverse = history.objective, history.inverse, None
    for step in newton_steps(e_step, problem, history.x, history.e_state, start_at, gap, inverse):
        history.evaluations += step.evaluations
        seconds, start = time.monotonic() - start, time.monotonic()
        found.append((step, seconds, history.evaluations))
        run.bar.set_postfix_str(f"Newton step to {step.value:.6f}")
        run.bar.update(0)
        if step.promised < gap:
            break
        if (
            len(found) + len(history.rows) >= limits.max_steps
            or len(found) >= MAX_NEWTON
            or time.monotonic() > limits.deadline
        ):
            converged = False
            break
    else:
        converged = False
    if not converged and e_step.noise is None:  # EM takes as many steps for more
        return False
    for step, seconds, evaluations in found:
        if step.x is before:
            history.objective = step.value
            continue
        change = step.value - history.objective
        length = float(np.linalg.norm(np.asarray(step.x) - np.asarray(before)))
        history.record(Step(step.value, change, 0.0, length), step.x, "newton", seconds)
        history.rows[-1]["evaluations"] = evaluations
        history.x = before = step.x
        run.bar.update(1)
    history.inverse = found[-1][0].inverse if converged else None
    last = found[-1][0].information if found else None
    history.information = None if last is None else (history.x, last)
    return converged
