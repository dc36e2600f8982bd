"""Refits: of data drawn from the model, and of groups of the data drawn again."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from ppl_em.algorithms import Limits, Stopping, run_loop
from ppl_em.e_step import EStep
from ppl_em.fit.after.by_group import ByGroup
from ppl_em.fit.after.resample import Resampler
from ppl_em.likelihood import Information
from ppl_em.m_step import for_problem
from ppl_em.params import Params
from ppl_em.problem import Problem, needs
from ppl_em.result import CONVERGED
from ppl_em.util import ModelError, generator, split

MAX_EM_STEPS = 500
"""EM steps of a refit."""

MAX_CLIMB = 50
"""Quasi-Newton steps of a refit to groups."""

DIGITS = 10.0
"""Rounding units by which such a refit may fall."""

FLAT = 1e-9
"""Gain, in nats, below which such a refit has arrived."""

Draws = tuple[list[np.ndarray], list[str]]
"""Flattened estimates, (P,) each, and why refits failed."""


def parametric(
    rng_key: jax.Array, problem: Problem, x: jax.Array, e_step: EStep, number: int, bar: bool
) -> Draws:
    """Fit data sets drawn from the model, each from the fitted parameters `x` (p,)."""
    key_data, key_runs = split(rng_key)
    resampler = Resampler.of(problem, x)
    sets = resampler.draw(key_data, number)
    m_step = for_problem("auto", x.size, needs(problem))
    params = problem.constrain(x)

    def refit(i: int) -> np.ndarray:
        limits = Limits(MAX_EM_STEPS, Stopping(), "revert", time.monotonic())
        with tqdm(disable=True) as quiet:
            outcome = run_loop(
                jax.random.fold_in(key_runs, i),
                resampler.problem(sets[i]),
                e_step,
                m_step,
                params,
                limits,
                quiet,
            )
        if outcome.status not in CONVERGED:
            raise ModelError(f"{outcome.status.name}: {outcome.status.value}")
        found = problem.constrain(outcome.x)
        return flat(found if outcome.at is None else outcome.at.exactly(found))

    return _all(refit, number, bar)


def by_groups(
    rng_key: jax.Array,
    by_group: ByGroup,
    x: jax.Array,
    information: Information,
    number: int,
    bar: bool,
) -> Draws:
    """Fit as many groups, drawn again with replacement, each from the fitted parameters `x` (p,).

    A group that is drawn twice counts twice: the log-likelihood is a weighted sum over groups.
    """
    count = by_group.groups.number
    if count < 2:
        raise ModelError("The data are one group, which cannot be drawn again. Use 'parametric'.")
    rng = generator(rng_key)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=number)

    def refit(i: int) -> np.ndarray:
        found = _climbed(by_group, np.asarray(x, float), information, weights[i])
        return flat(by_group.problem.constrain(jnp.asarray(found, x.dtype)))

    return _all(refit, number, bar)


def _climbed(
    by_group: ByGroup, x: np.ndarray, information: Information, weights: np.ndarray
) -> np.ndarray:
    """The maximum of the weighted sum over groups, from `x` (p,), by BFGS along what is free."""
    basis = information.frame
    inverse = np.linalg.inv(basis.T @ information.matrix @ basis)

    def slope(x: np.ndarray) -> np.ndarray:
        scores = by_group.scores(jnp.asarray(x), information.matrix)
        found: np.ndarray = basis.T @ (weights @ scores)
        return found

    def value(x: np.ndarray) -> float:
        return float(by_group(x[None])[0] @ weights)

    here, gradient = value(x), slope(x)
    noise = DIGITS * float(np.finfo(by_group.problem.start.dtype).eps) * (1 + abs(here))
    for _ in range(MAX_CLIMB):
        step = inverse @ gradient
        promised = 0.5 * float(gradient @ step)
        if promised < max(FLAT, noise):
            return x
        share, there = 1.0, value(x + basis @ step)
        while not there > here - noise and share > 1e-4:
            share /= 3
            there = value(x + share * basis @ step)
        if share <= 1e-4:
            break
        x, here, before = x + share * basis @ step, there, gradient
        gradient = slope(x)
        moved, change = share * step, before - gradient
        if moved @ change > 1e-12:
            rho = 1 / float(moved @ change)
            left = np.eye(len(moved)) - rho * np.outer(moved, change)
            inverse = left @ inverse @ left.T + rho * np.outer(moved, moved)
    raise ModelError("the refit did not arrive at a maximum")


def _all(refit: Callable[[int], np.ndarray], number: int, bar: bool) -> Draws:
    """Every refit that does not fail, and what the others say."""
    found, failures = [], []
    with _quiet(), tqdm(total=number, disable=not bar, desc="refits") as progress:
        for i in range(number):
            try:
                one = refit(i)
                if not np.all(np.isfinite(one)):
                    raise ModelError("estimates are not finite")
                found.append(one)
            except (ModelError, ArithmeticError, np.linalg.LinAlgError) as error:
                failures.append(str(error))
                progress.set_postfix_str(f"{len(failures)} failed")
            progress.update(1)
    return found, failures


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what each refit would say."""
    logger = logging.getLogger("ppl_em")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def flat(params: Params) -> np.ndarray:
    """All parameters, (P,)."""
    leaves: list[Any] = [np.ravel(leaf) for leaf in jax.tree.leaves(params)]
    return np.concatenate([*leaves, np.zeros(0)])
