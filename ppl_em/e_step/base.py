"""The contract of an E-step. A new one is a file, an import line and a row of `FLAGS`.

An E-step inherits from `DeterministicEStep`, `Approximation` or `StochasticEStep` and says what
is its own; the rest has defaults. Nothing outside of this folder asks which one it is: what others
need to know is said here.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, cast

import jax
import numpy as np

from ppl_em.params import Params
from ppl_em.posterior import Posterior, WeightedDraws
from ppl_em.problem import Problem
from ppl_em.stats import Health
from ppl_em.util import compiled


class Strength(IntEnum):
    """How far the maximum of an E-step's objective may be believed, from the most biased up.

    An audit asks a stronger E-step than that of the fit.
    """

    BOUND = 0
    """A lower bound, biased however long it runs, or that with some of the bias weighted away."""
    EXPANSION = 1
    """An expansion about the mode: biased, the less so the more data a latent has."""
    DRAWS = 2
    """Right but for a Monte Carlo error that is known."""
    NODES = 3
    """Right to many digits, which are checked."""
    EXACT = 4
    """Proved."""


class EStep(Protocol):
    """A frozen, hashable configuration that turns parameters into a posterior.

    *State* is what the next step needs (chain positions, guide parameters, random key). *Info* is
    a `NamedTuple` of scalars for the reader; it goes to the history under its field names.

    Attributes
    ----------
    flag
        The word that users choose it by.
    strength
        How far its answer may be believed.
    stochastic
        Whether Q is a Monte Carlo estimate. If False, info has a field `objective`: the
        log-likelihood or bound at the parameters, which EM never lowers.
    kind
        What that objective is, one of `log_likelihood.KINDS`.
    is_function
        Whether the objective is a function of the parameters, so that it can be accelerated and
        maximised directly. If not, info has fields `window_rise` and `window_error`: the run ends
        when the one is within the other.
    noise
        Size of changes of the objective that mean nothing, for an `Approximation`; else None.
    """

    flag: ClassVar[str]
    strength: ClassVar[Strength]
    stochastic: ClassVar[bool]
    kind: ClassVar[str]
    is_function: ClassVar[bool]

    @property
    def noise(self) -> float | None:
        """See above."""
        return None

    def resolve(self, rng_key: jax.Array, problem: Problem, params: Params) -> "EStep":
        """Check on the host, once, that the method applies; return what to run.

        Raises
        ------
        ModelError
            If it does not apply: why, and which flags would do.
        """
        return self

    def choose(self, rng_key: jax.Array, problem: Problem, params: Params) -> "tuple[EStep, str]":
        """As `resolve`, and why that one was taken; empty where the user asked for it."""
        return self.resolve(rng_key, problem, params), ""

    def init(self, rng_key: jax.Array, problem: Problem, params: Params) -> Any:
        """The first state."""
        ...

    def step(self, problem: Problem, params: Params, state: Any) -> tuple[Any, Any, Any]:
        """Pure and traceable: the posterior at `params`, the next state, and info."""
        ...

    def at_random(
        self, rng_key: jax.Array, problem: Problem, params: Params, state: Any, per_state: int
    ) -> Any:
        """A posterior of discrete latents that is drawn at random, for starts; None if it has none.

        Traceable. It looks at `per_state` rows of the data for each state, 1 or 2, or at all: 0.
        """
        return None

    def describe(self, info: Any) -> str:
        """A few words for the progress bar."""
        return ""


@compiled(static_argnums=0)
def _expectation(e_step: EStep, problem: Problem, x: jax.Array, state: Any) -> tuple:
    return e_step.step(problem, problem.constrain(x), state)


def expectation(e_step: EStep, problem: Problem, x: jax.Array, state: Any) -> tuple:
    """E-step: posterior, state and info at `x`; compiled once per problem and configuration."""

    def found(state: Any) -> tuple:
        return _expectation(e_step, problem, x, state)

    if e_step.stochastic:
        return found(state)
    own = cast(DeterministicEStep, e_step)
    return evaluated(own, problem, x, state, found, lambda found: found[2].objective)


T = TypeVar("T")


def evaluated(
    e_step: "DeterministicEStep",
    problem: Problem,
    x: jax.Array,
    state: Any,
    program: Callable[[Any], T],
    value: Callable[[T], Any],
) -> T:
    """What a program finds from `state` around `x` (p,), or from a firmer one.

    `value` is that part of what it finds which is NaN where the state will not do.
    """
    found = program(state)
    while not np.all(np.isfinite(value(found))):
        firmer = e_step.firmer(problem, x, state)
        if firmer is None:
            break
        state, found = firmer, program(firmer)
    return found


def firm(e_step: "DeterministicEStep", problem: Problem, x: jax.Array, state: Any) -> Any:
    """The state, or the firmer one that is needed at `x` (p,)."""

    def tried(state: Any) -> tuple:
        return state, _expectation(e_step, problem, x, state)[2].objective

    return evaluated(e_step, problem, x, state, tried, lambda tried: tried[1])[0]


class Choice(EStep, Protocol):
    """A configuration that only chooses: `resolve` returns the E-step to run."""

    stochastic: ClassVar[bool] = False
    is_function: ClassVar[bool] = True

    def init(self, rng_key: jax.Array, problem: Problem, params: Params) -> Any:
        """The first state of what it resolves to."""
        return self.resolve(rng_key, problem, params).init(rng_key, problem, params)

    def step(self, problem: Problem, params: Params, state: Any) -> tuple[Any, Any, Any]:
        """There is none: `resolve` comes first."""
        raise ValueError("call `resolve` first: it returns the E-step to run")


class DeterministicEStep(EStep, Protocol):
    """An E-step whose objective has no noise."""

    stochastic: ClassVar[bool] = False
    is_function: ClassVar[bool] = True
    holds: ClassVar[bool] = False
    """Whether searches evaluate it on what the state holds, and move that once for each step."""

    def step(self, problem: Problem, params: Params, state: Any) -> tuple[Posterior, Any, Any]:
        """Pure and traceable: the posterior at `params`, the next state, and info."""
        ...

    def log_likelihood(self, problem: Problem, params: Params, state: Any) -> jax.Array:
        """The objective as a function of the parameters, differentiable; a scalar."""
        ...

    def in_full(self, problem: Problem, params: Params, state: Any) -> jax.Array | None:
        """The objective without the shortcuts that `state` holds, to compare with, a scalar.

        None if it holds none.
        """
        return None

    def firmer(self, problem: Problem, x: jax.Array, state: Any) -> Any | None:
        """A state for where this one made NaN, around `x` (p,); None if there is none.

        Found on the host, and kept from there on: most runs never need one.
        """
        return None

    def by_fisher(self, state: Any) -> bool:
        """Whether the gradient of Q is that of the objective to all digits, for a static `state`.

        If not, the objective is differentiated.
        """
        return True

    def uncondensed(self) -> "DeterministicEStep":
        """The same E-step on every row of the data; itself if it condenses none."""
        return self


class Approximation(DeterministicEStep, Protocol):
    """One whose objective may fall in an EM step, because Q is not a lower bound of it.

    Steps that lower it are halved. Its second derivatives are differences of first ones.
    """

    def refined(self, problem: Problem, params: Params, state: Any) -> "Approximation | None":
        """A better one, if this one is too coarse at `params`; None if it is not."""
        return None

    def for_evaluation(self) -> "Approximation":
        """The one for a single look at fixed parameters, better than EM steps need."""
        return self

    def for_curvature(self) -> "Approximation":
        """The one of which second derivatives are taken; cheaper, perhaps, but about as good."""
        return self


class StochasticEStep(EStep, Protocol):
    """An E-step by draws, of which each chain makes `num_samples` in a step."""

    stochastic: ClassVar[bool] = True
    is_function: ClassVar[bool] = False
    kind: ClassVar[str] = "estimate"
    num_samples: int

    @property
    def num_warmup_steps(self) -> int:
        """Steps at the first parameters that make a state of `cold` a first state."""
        return 0

    def cold(self, rng_key: jax.Array, problem: Problem, params: Params) -> Any:
        """The state before these steps."""
        ...

    def init(self, rng_key: jax.Array, problem: Problem, params: Params) -> Any:
        """The first state, warmed up at `params`."""
        state, x = self.cold(rng_key, problem, params), problem.unconstrain(params)
        for _ in range(self.num_warmup_steps):
            state = expectation(self, problem, x, state)[1]
        return state

    def step(self, problem: Problem, params: Params, state: Any) -> tuple[WeightedDraws, Any, Any]:
        """Pure and traceable: draws at `params`, the next state, and info."""
        ...

    def fresh(self, state: Any) -> tuple["StochasticEStep", Any]:
        """A sampler of equally weighted draws at one value of the parameters, tuning held."""
        return self, state

    def resume(self, state: Any) -> Any:
        """The state of this E-step from that of its fresh sampler, when the parameters move on."""
        return state

    def calm(self, state: Any) -> Any:
        """The state of a fresh sampler, tuned to take smaller steps: for unsound draws."""
        return state

    def diagnose(self, stats: dict[str, Any], scores: Any) -> Health:
        """Whether the draws at one value of the parameters may be believed.

        Parameters
        ----------
        stats
            `WeightedDraws.stats` of all of them, arrays (chain, draw).
        scores
            Their complete-data scores, (chain, draw, p).
        """
        return Health.of_scores(scores)


class ExactInfo(NamedTuple):
    """What an exact E-step reports: `objective`, the log-likelihood."""

    objective: jax.Array
