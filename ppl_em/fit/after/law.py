"""The law of parameters and latents together, as the DataTree of a fit shows it.

Parameters are normal on the unconstrained scale, with the covariance of the estimates; latents are
drawn from the E-step's posterior given each draw of them. Whatever is at a boundary, fixed, or
without a standard error, is held at its estimate.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import jax
import numpy as np

from ppl_em.algorithms import Sampler
from ppl_em.e_step import DeterministicEStep, EStep
from ppl_em.fit.after.draws import Drawn, draw_by_chains, draw_latents, draw_params, inside
from ppl_em.fit.after.groups import Groups, find_groups
from ppl_em.params import AtBounds, Params
from ppl_em.posterior import Posterior
from ppl_em.problem import Problem
from ppl_em.result import BUDGET, CHAINS, DRAWS, EMResult, JointDraws, draws_at_estimate, held
from ppl_em.util import ModelError, compiled, split

WORK = 1_000_000_000
"""Data and latents, times looks at them (nodes, say), of the E-steps at all draws, about."""

FEWEST = 100
"""Draws that any model gets."""

BY_CHAINS = 400
"""Draws, at most, where each takes a run of chains."""

ROUNDS = 4
"""Times that draws are made anew where the log-likelihood is not finite."""


@dataclass(frozen=True, eq=False)
class Law:
    """The end of a fit, as far as draws need it: `x` (p,) are the estimates.

    `sampler` is that of an E-step by draws; the rest as in `FittedParts`.
    """

    problem: Problem
    e_step: EStep
    state: Any
    posterior: Posterior
    sampler: Sampler | None
    x: jax.Array
    at: AtBounds | None

    @property
    def follows(self) -> bool:
        """Whether the latents can be drawn at other parameters."""
        return self.e_step.stochastic or self.e_step.is_function

    @property
    def size(self) -> int:
        """How many draws are made, a multiple of the number of chains."""
        spec = self.problem.spec
        shapes = [s.shape for s in spec.latents] + [s.shape for s in spec.discrete]
        width = sum(int(np.prod(shape)) for shape in shapes)
        data = sum(np.size(leaf) for leaf in self.problem.leaves)
        looks = sum(np.size(leaf) for leaf in jax.tree.leaves(self.posterior)) // max(width, 1)
        work = WORK // (max(looks, 1) * (width + data) + 1)
        most = BY_CHAINS if self.e_step.stochastic else CHAINS * DRAWS
        count = min(max(work, FEWEST), most, max(BUDGET // max(width, 1), 1))
        return CHAINS * max(count // CHAINS, 1)

    def draw(self, rng_key: jax.Array, xs: jax.Array, groups: Groups | None) -> Drawn:
        """Latents given parameters `xs` (n, p)."""
        if self.e_step.stochastic:
            sampler = cast(Sampler, self.sampler)
            return draw_by_chains(rng_key, self.problem, sampler, self.state, xs)
        own = cast(DeterministicEStep, self.e_step)
        return draw_latents(rng_key, self.problem, own, self.state, xs, groups)

    def held(self, covariance: np.ndarray) -> np.ndarray:
        """The covariance (p, p) of x with what is at a bound where it is."""
        if self.at is None:
            return covariance
        free = ~self.at.held
        return np.where(free & free[:, None], covariance, 0.0)

    @cached_property
    def groups(self) -> Groups | None:
        """Independent groups of the data whose log-likelihoods are known, or None."""
        if self.e_step.stochastic:
            return None
        found = self.posterior.by_coordinate(self.problem, self.problem.constrain(self.x))
        if found is None:
            return None
        try:
            return find_groups(self.problem, self.x, found[0])
        except ModelError:  # terms that cannot be told apart: there are no groups then
            return None


def at_the_estimate(result: EMResult, law: Law) -> JointDraws:
    """Draws of the latents with all parameters at their estimates.

    By the program that draws them given other parameters, if there is one.
    """
    if law.follows and not law.e_step.stochastic:
        key = jax.random.fold_in(result.posterior.rng_key, 3)
        count = CHAINS * max(law.size // (2 * CHAINS), 1)
        xs = jax.device_put(np.broadcast_to(np.asarray(law.x), (count, law.x.size)))
        drawn = law.draw(key, xs, None)
        if np.all(np.isfinite(drawn.objective)):
            return held(result, drawn.latents, CHAINS, count)
    return draws_at_estimate(result, law.problem)


def joint_draws(result: EMResult, law: Law, alone: JointDraws) -> JointDraws:
    """Draws of all parameters, and latents given them; `alone` are those at the estimates."""
    known, problem = result.uncertainty, law.problem
    covariance = law.held(np.asarray(known.free.covariance if known.free else np.nan))
    if not np.all(np.isfinite(covariance)):
        why = known.reason or "their covariance is not finite"
        words = {"parameters": f"held at their estimates: {why}", "latents": "given the estimates"}
        return replace(alone, words=words)
    key_params, key_latents = split(jax.random.fold_in(result.posterior.rng_key, 2))
    count, marginal, groups = law.size, None, ""
    if law.follows:
        xs, drawn, redrawn = _sound(key_params, law, covariance, known.active)
        if law.groups is not None:
            marginal, groups = _named(problem, drawn.groups, law.groups)
        latents, stats = drawn.latents, {**drawn.stats, "lp": drawn.objective}
    else:
        xs, redrawn, stats = draw_params(key_params, law.x, covariance, count), 0, {}
        given = result.posterior.sample(key_latents, count)
        latents = {name: np.asarray(values) for name, values in given.items()}
    params = _constrained(problem, xs)
    told = _reported(result, problem, law.x, params)
    pointwise = law.follows and not problem.spec.discrete
    words = _words(result, law, told, redrawn)
    return JointDraws(params, told, latents, CHAINS, stats, marginal, groups, pointwise, words)


def _sound(
    rng_key: jax.Array,
    law: Law,
    covariance: np.ndarray,
    active: tuple,
) -> tuple[jax.Array, Drawn, int]:
    """Parameters, and latents given them, where there is a log-likelihood; and how many had none.

    Constraints of the fit hold as well, unless some are active: on a bound that bends, none would.
    """
    count = law.size
    xs, drawn, redrawn, good = None, None, 0, np.zeros(count, bool)
    for key in split(rng_key, ROUNDS):
        key_params, key_latents = split(key)
        some = draw_params(key_params, law.x, covariance, count)
        found = law.draw(key_latents, some, law.groups)
        fine = np.isfinite(found.objective)
        if not active:
            fine &= inside(law.problem, some)
        if drawn is None:
            xs, drawn, good = np.asarray(some), found, fine
        else:
            there = np.flatnonzero(~good)
            here = np.flatnonzero(fine)[: len(there)]
            there = there[: len(here)]
            xs, drawn = _replaced((xs, drawn), there, (np.asarray(some), found), here)
            good[there] = True
        if good.all():
            break
        redrawn += int(np.sum(~good))
    if not good.any():
        raise ValueError("no draw has a finite log-likelihood")
    chosen = np.where(good, np.arange(count), np.resize(np.flatnonzero(good), count))
    xs, drawn = jax.tree.map(lambda a: np.asarray(a)[chosen], (xs, drawn))
    return jax.device_put(xs), drawn, redrawn


def _replaced(old: Any, there: np.ndarray, new: Any, here: np.ndarray) -> Any:
    def put(a: Any, b: Any) -> np.ndarray:
        a = np.array(a)
        a[there] = np.asarray(b)[here]
        return a

    return jax.tree.map(put, old, new)


@compiled
def _constrained(problem: Problem, xs: jax.Array) -> Params:
    return jax.vmap(problem.constrain)(xs)


def _reported(result: EMResult, problem: Problem, x: jax.Array, params: Params) -> Params:
    """Draws of the parameters, (n, ...); what is held at a bound is on it, as in the result.

    The draws are as near to a bound as computations can be.
    """
    near = problem.constrain(x)

    def exact(values: Any, there: Any, told: Any) -> np.ndarray:
        values, there, told = np.asarray(values), np.asarray(there), np.asarray(told)
        at_bound = (told != there) & (_still(values) | (told == 0))
        return np.where(at_bound, told.astype(values.dtype), values)

    return jax.tree.map(exact, params, near, dict(result.params))


def _still(values: np.ndarray) -> np.ndarray:
    """Where draws (n, ...) are all the same, at infinity too."""
    return np.all(values == values[0], axis=0)


def _named(problem: Problem, found: np.ndarray, groups: Groups) -> tuple[np.ndarray | None, str]:
    """The log-likelihood by group, (n, G), and the name of the groups' dimension.

    Groups are in the order of the plate that they are, if they are one.
    """
    penalised = any(site.is_sample for site in problem.space.sites) or problem.spec.factors
    if groups.number < 2 or penalised or not np.all(np.isfinite(found)):
        return None, ""
    name, order = _plate(problem, groups)
    return found[:, order], name


def _plate(problem: Problem, groups: Groups) -> tuple[str, np.ndarray]:
    """The plate that the groups are, and where in it each has its place."""
    count = groups.number
    if not len(groups.labels):
        sites = [site for site in problem.spec.discrete if np.prod(site.shape) == count]
        plain = next((s for s in sites if len(s.shape) == 1 and not s.in_scan), None)
        return (plain.dims[0] if plain else "group"), np.arange(count)
    by_site = problem.unravel(groups.labels)
    for site in problem.spec.latents:
        for plate, axis in site.plates:
            if site.shape_u[axis] != count:
                continue
            rows = np.moveaxis(np.asarray(by_site[site.name]), axis, 0).reshape(count, -1)
            if np.all(rows == rows[:, :1]) and np.all(np.sort(rows[:, 0]) == np.arange(count)):
                return plate, rows[:, 0]
    return "group", np.arange(count)


def _words(result: EMResult, law: Law, told: Params, redrawn: int) -> dict[str, str]:
    """How the draws were made, for their attributes."""
    flag, known = law.e_step.flag, result.uncertainty
    words = {
        "parameters": f"drawn from N(estimate, covariance) on the unconstrained scale; covariance: "
        f"{known.method}",
        "latents": f"given the parameters of each draw, by e_step='{flag}'",
    }
    if not law.follows:
        words["latents"] = f"given the estimates, as this e_step='{flag}' follows no parameters"
    still = np.concatenate([np.ravel(_still(leaf)) for leaf in jax.tree.leaves(told)])
    if still.any():
        words["held"] = ", ".join(np.array(result.labels)[still])
    if redrawn:
        words["redrawn"] = f"{redrawn} draws, where the log-likelihood was not finite"
    return words
