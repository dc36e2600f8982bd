"""Data drawn from a fitted model, and the model of such data."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.primitives import Messenger

from ppl_em.params import Params
from ppl_em.problem import Observed, Problem, build_problem, observations
from ppl_em.util import ModelError, compiled

Data = dict[str, np.ndarray]
"""Observed site to its values."""

SAME = 1e-6
"""Relative difference of log-joints that is rounding."""


class Unobserved(Messenger):
    """Run a program with some of its observed sites drawn instead, those within a `scan` too."""

    def __init__(self, fn: Callable, names: tuple[str, ...]):
        super().__init__(fn)
        self.names = names

    def process_message(self, msg: dict[str, Any]) -> None:
        """Take the value away."""
        if msg["type"] == "control_flow" and callable(msg["args"][0]):
            body, *rest = msg["args"]
            msg["args"] = (Unobserved(body, self.names), *rest)
        if msg["type"] == "sample" and msg["name"] in self.names:
            msg["is_observed"], msg["value"] = False, None


class Replaced(Messenger):
    """Run a program with other values of observed sites; `scanned` are those within a `scan`."""

    def __init__(self, fn: Callable | None, data: dict[str, Any], scanned: tuple[str, ...] = ()):
        super().__init__(fn)
        self.data, self.scanned = data, scanned

    def process_message(self, msg: dict[str, Any]) -> None:
        """Put the value in; send those of a scan along with its steps."""
        if msg["type"] == "control_flow" and callable(msg["args"][0]):
            body, init, xs, length, *rest = msg["args"]
            steps = length if length is not None else len(jax.tree.leaves(xs)[0])
            mine = {k: self.data[k] for k in self.scanned if len(self.data[k]) == steps}

            def step(carry: Any, both: tuple) -> Any:
                with Replaced(None, both[1]):
                    return body(carry, both[0])

            if mine:
                msg["args"] = (step, init, (xs, mine), length, *rest)
        elif msg["type"] == "sample" and msg["is_observed"] and msg["name"] in self.data:
            msg["value"] = self.data[msg["name"]]


@dataclass(frozen=True)
class Given:
    """A model that observes its first argument, a dictionary of sites, instead of its own data."""

    model: Callable
    scanned: tuple[str, ...]

    def __call__(self, data: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return Replaced(self.model, data, self.scanned)(*args, **kwargs)

    @property
    def __name__(self) -> str:
        return getattr(self.model, "__name__", type(self.model).__name__)


@dataclass(frozen=True, eq=False)
class Resampler:
    """Draws data from a fitted model, and makes problems of them that share compiled programs.

    `fitted` is the problem of the fit, `given` the same with its data as the first leaves.
    """

    fitted: Problem
    params: Params
    given: Problem
    data: Data
    seen: dict[str, Observed]

    @classmethod
    def of(cls, problem: Problem, x: jax.Array) -> "Resampler":
        """For the model at the unconstrained parameters `x` (p,).

        Raises
        ------
        ModelError
            If the model has `numpyro.factor` statements, from which nothing can be drawn, or uses
            its data elsewhere than where they are observed, as lags of an outcome.
        """
        if problem.spec.factors:
            raise ModelError(
                f"Site '{problem.spec.factors[0]}': no data can be drawn from a model with a "
                f"`numpyro.factor`. Use kind='groups', which draws groups of the data again."
            )
        params = problem.constrain(x)
        seen = observations(problem, params)
        data = {name: np.array(one.values) for name, one in sorted(seen.items())}
        scanned = tuple(k for k, v in seen.items() if v.dims and v.dims[0].startswith("time_"))
        args, kwargs = problem.arguments
        given, _ = build_problem(
            jax.random.key(0),
            Given(problem.spec.model, scanned),
            (data, *args),
            kwargs,
            map_sites=[site.name for site in problem.space.sites if site.is_sample],
            fixed=problem.fixed,
            init_params={name: params[name] for name in problem.space.names},
        )
        given = given.with_spec(space=problem.space, restrictions=problem.spec.restrictions)
        given = replace(given, start=problem.start)
        own = cls(problem, params, given, data, seen)
        own._check(x)
        return own

    def _check(self, x: jax.Array) -> None:
        """Raise if the model with its data given is another, or its own copy of them matters."""
        constants = self.given.spec.arguments.constants[: len(self.data)]
        if any(constant is not None for constant in constants):
            raise ModelError(
                "The model computes with the concrete values of its data, so that no others can "
                "be put in their place. Use kind='groups'."
            )
        before = float(_log_joint(self.fitted, x))
        for leaves in (self.given.leaves, self._without_copies()):
            found = float(_log_joint(replace(self.given, leaves=leaves), x))
            if not abs(found - before) < SAME * (1 + abs(before)):
                raise ModelError(
                    f"Site '{next(iter(self.data))}': the model uses its data elsewhere than in "
                    f"`obs=`, as lags of an outcome, so that drawn data would not be its own. Use "
                    f"kind='groups'."
                )

    def _without_copies(self) -> tuple[Any, ...]:
        """The leaves, with arguments that are the data of a site moved."""
        count, changed = len(self.data), []
        for leaf in self.given.leaves[count:]:
            same = any(
                leaf.size == values.size
                and values.size > 1
                and np.array_equal(np.ravel(leaf), np.ravel(values), equal_nan=True)
                for values in self.data.values()
            )
            changed.append(leaf[::-1] if same else leaf)
        return (*self.given.leaves[:count], *changed)

    def draw(self, rng_key: jax.Array, number: int) -> list[Data]:
        """Data sets; cells that are masked keep their values."""
        names = tuple(self.data)
        keys = jax.random.split(rng_key, number)
        found = jax.device_get(_drawn(names, self.fitted, self.params, keys))

        def one(i: int) -> Data:
            return {
                name: np.where(
                    self.seen[name].weights != 0,
                    np.broadcast_to(found[name][i], values.shape),
                    values,
                ).astype(values.dtype)
                for name, values in self.data.items()
            }

        return [one(i) for i in range(number)]

    def problem(self, data: Data) -> Problem:
        """The problem with other data."""
        leaves = tuple(jnp.asarray(data[name]) for name in self.data)
        return replace(self.given, leaves=(*leaves, *self.given.leaves[len(leaves) :]))


@compiled
def _log_joint(problem: Problem, x: jax.Array) -> jax.Array:
    return problem.log_joint_unconstrained(problem.constrain(x), problem.start)


@compiled(static_argnums=0)
def _drawn(
    names: tuple[str, ...], problem: Problem, params: Params, keys: jax.Array
) -> dict[str, jax.Array]:
    args, kwargs = problem.arguments

    def one(key: jax.Array) -> dict[str, jax.Array]:
        program = handlers.seed(Unobserved(problem.at(params), names), key)
        trace = handlers.trace(program).get_trace(*args, **kwargs)
        return {name: trace[name]["value"] for name in names}

    return jax.lax.map(one, keys)
