"""One EM step by draws, compiled as one program that can also do its E-step alone."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.algorithms.maximization import Maximized, checked, maximization, traced_maximization
from ppl_em.e_step import StochasticEStep, expectation
from ppl_em.m_step import HostMStep, MStep, TracedMStep
from ppl_em.posterior import WeightedDraws
from ppl_em.problem import Problem
from ppl_em.util import compiled

Drawn = tuple[WeightedDraws, Any, Any]
"""Draws, the E-step's next state, and its info."""


@dataclass(frozen=True)
class Sampler:
    """E-steps, each alone or with an M-step after it.

    Both are one program if `m_step` is a traced one. Without an `m_step`, or with one on the host,
    E-steps are a program of their own.
    """

    e_step: StochasticEStep
    m_step: MStep | None = None

    def begin(self, rng_key: jax.Array, problem: Problem, x: jax.Array) -> Any:
        """The first state, at parameters `x` (p,), warmed up."""
        params = problem.constrain(x)
        if self._traced is None:
            return self.e_step.init(rng_key, problem, params)
        state = self.e_step.cold(rng_key, problem, params)
        for _ in range(self.e_step.num_warmup_steps):
            state = self.draw(problem, x, state)[1]
        return state

    def m_state(self, x: jax.Array) -> Any:
        """The M-step's first state, at `x` (p,)."""
        return cast(MStep, self.m_step).init(x)

    def draw(self, problem: Problem, x: jax.Array, state: Any) -> Drawn:
        """An E-step at `x` (p,)."""
        if self._traced is None:
            return expectation(self.e_step, problem, x, state)
        traced = self._traced
        m_state = _unused(traced, x.size, x.dtype)  # type: ignore[arg-type]
        return _em_step(self.e_step, traced, problem, x, x, state, m_state, np.False_)[:3]

    def em_step(
        self, problem: Problem, x: jax.Array, x_before: jax.Array, state: Any, m_state: Any
    ) -> tuple[Any, Any, Maximized]:
        """The E-step's next state and info, and the outcome of the M-step; all x are (p,)."""
        if self._traced is None:
            m_step = cast(MStep, self.m_step)
            posterior, state, info = expectation(self.e_step, problem, x, state)
            return state, info, maximization(m_step, problem, x, x_before, posterior, m_state)
        traced = self._traced
        found = _em_step(self.e_step, traced, problem, x, x_before, state, m_state, np.True_)
        return found[1], found[2], checked(traced, found[3])

    def draws(
        self, problem: Problem, x: jax.Array, state: Any, num_steps: int
    ) -> tuple[WeightedDraws, Any]:
        """Equally weighted draws of `num_steps` E-steps at `x` (p,), and the state after them."""
        parts: list[WeightedDraws] = []
        for _ in range(num_steps):
            posterior, state, _ = self.draw(problem, x, state)
            parts.append(posterior)
        each = [jax.device_get((part.draws, part.stats)) for part in parts]
        joined = jax.tree.map(lambda *some: np.concatenate(some, axis=1), *each)
        return WeightedDraws.equal(*jax.device_put(joined)), state

    def fresh(self, state: Any) -> tuple["Sampler", Any]:
        """For equally weighted draws at one value of the parameters; the same program if it can."""
        e_step, state = self.e_step.fresh(state)
        return Sampler(e_step, self.m_step if e_step == self.e_step else None), state

    @property
    def _traced(self) -> TracedMStep | None:
        if self.m_step is None or isinstance(self.m_step, HostMStep):
            return None
        return cast(TracedMStep, self.m_step)


@lru_cache(maxsize=16)
def _unused(m_step: TracedMStep, size: int, dtype: np.dtype) -> Any:
    """An M-step's state where none is made."""
    return m_step.init(cast(jax.Array, np.zeros(size, dtype)))


@compiled(static_argnums=(0, 1), runs_long=True)
def _em_step(
    e_step: StochasticEStep,
    m_step: TracedMStep,
    problem: Problem,
    x: jax.Array,
    x_before: jax.Array,
    state: Any,
    m_state: Any,
    maximise: jax.Array,
) -> tuple:
    """E-step at `x` (p,), and the M-step if it is asked for; else the last part is zeros."""
    posterior, state, info = e_step.step(problem, problem.constrain(x), state)

    def maximised() -> Maximized:
        return traced_maximization(m_step, problem, x, x_before, posterior, m_state)

    def nothing() -> Maximized:
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(maximised))

    return posterior, state, info, jax.lax.cond(maximise, maximised, nothing)
