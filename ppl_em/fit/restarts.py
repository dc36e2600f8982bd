"""EM from several starts: the best proper optimum, and a table of all of them."""

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from tqdm.auto import tqdm

from ppl_em.algorithms import Limits
from ppl_em.e_step import expectation
from ppl_em.fit.clusters import Fit, clusters
from ppl_em.fit.fitted import FittedParts
from ppl_em.params import Params
from ppl_em.posterior import OF_PARAMETERS
from ppl_em.problem import Problem
from ppl_em.result import NO_OPTIMUM, EMResult, Optimum, Restarts, Status
from ppl_em.structure import Group, exchangeable, nearest, permuted
from ppl_em.util import ModelError

logger = logging.getLogger("ppl_em")

FAILED = "FAILED"
"""What stands for a status where a start raised an error."""

MAX_PARAMS = 200
"""Parameters up to which optima are told apart by standard errors, which need a Hessian."""

WITHOUT_WEIGHT = 1e-6
"""Share of rows below which a component has none."""

One = tuple[EMResult | None, str, float]
"""A finished start: its result, or None and the message of its error; and seconds."""


def run_restarts(
    rng_key: jax.Array,
    problem: Problem,
    starts: list[Params],
    fit: Callable[[Sequence[jax.Array], Params, tqdm], EMResult],
    limits: Limits,
    bar: tqdm,
) -> EMResult:
    """Fit from every start in turn, and return the best fit that is not degenerate.

    The starts share their compiled programs. A start that raises a `ModelError` or a numerical
    error is recorded. An interruption, or the deadline, ends the search with what there is.

    Parameters
    ----------
    rng_key
        Split among the starts.
    problem
        The model with its data.
    starts
        Parameters to begin from.
    fit
        Runs EM from one of them, with two keys and a bar for its steps.
    limits
        Budgets of all starts together in seconds, of each one in steps.
    bar
        Advanced by one for every start.

    Raises
    ------
    ModelError
        The first error, if every start failed.
    """
    runs: list[One] = []
    hidden = tqdm(disable=True)
    interrupted, first_error = False, None
    for key, start in zip(jax.random.split(rng_key, len(starts)), starts, strict=True):
        started = time.monotonic()
        if runs and started > limits.deadline:
            break
        result, message = None, ""
        try:
            result = fit(tuple(jax.random.split(key)), start, hidden)
        except KeyboardInterrupt:
            if not any(run[0] for run in runs):
                raise
            interrupted = True
            break
        except (ModelError, ArithmeticError, np.linalg.LinAlgError, RuntimeError) as error:
            first_error, message = first_error or error, " ".join(str(error).split())
        runs.append((result, message, time.monotonic() - started))
        bar.update(1)
        bar.set_postfix_str(_progress(runs))
        if result is not None and result.status is Status.INTERRUPTED:
            interrupted = True
            break
    if first_error is not None and not any(run[0] for run in runs):
        raise first_error
    gap = limits.stopping.gap_for(any(_is_stochastic(r) for r, *_ in runs if r))
    record = _record(problem, runs, gap)
    best: EMResult = next(r for r, *_ in runs[record.best :] if r)
    status = Status.INTERRUPTED if interrupted else best.status
    if not interrupted and len(runs) < len(starts):
        logger.warning(
            "%d of %d starts were run: the time budget is spent.", len(runs), len(starts)
        )
    notes = [one.note for one in record.optima[:1] if one.note and record.best in one.starts]
    if notes:
        logger.warning("The best of %d starts may be spurious: %s.", len(runs), notes[0])
    compiling = sum(r.seconds["compile"] for r, *_ in runs if r)
    seconds = {"total": time.monotonic() - limits.begin, "compile": compiling}
    return replace(best, status=status, seconds=seconds, restarts=record)


def _progress(runs: list[One]) -> str:
    proper = [r.penalised for r, *_ in runs if r and not r.degeneracy]
    return f"best {max(proper):.6f}" if proper else "no proper optimum yet"


def _record(problem: Problem, runs: list[One], gap: float) -> Restarts:
    results = [run[0] for run in runs]
    values = np.array([np.nan if r is None else r.penalised for r in results])
    good = {
        i: r for i, r in enumerate(results) if r and not r.degeneracy and np.isfinite(values[i])
    }
    fallback = next(i for i, r in enumerate(results) if r is not None)
    best = max(good, key=lambda i: values[i], default=fallback)
    groups: tuple[Group, ...] = ()
    orders: dict[int, list[np.ndarray]] = {}
    if good:
        groups = exchangeable(problem, good[best].params)
        orders = {i: nearest(r.params, good[best].params, groups) for i, r in good.items()}

    optima = _optima(problem, good, values[best], groups, orders, gap, len(runs))
    cluster = np.full(len(runs), NO_OPTIMUM)
    for k, one in enumerate(optima):
        cluster[list(one.starts)] = k
    return Restarts(
        log_likelihood=np.array([np.nan if r is None else r.log_likelihood.value for r in results]),
        objective=values,
        status=tuple(FAILED if r is None else r.status.name for r in results),
        cluster=cluster,
        degenerate=np.array([r is not None and i not in good for i, r in enumerate(results)]),
        message=tuple(text or (r.degeneracy if r else "") for r, text, _ in runs),
        num_steps=np.array([0 if r is None else r.num_steps for r in results]),
        seconds=np.array([seconds for *_, seconds in runs]),
        optima=optima,
        best=best,
        exchangeable=_in_words(good[best].params, groups) if good else "",
        histories=tuple({} if r is None else r.history for r in results),
    )


def _optima(
    problem: Problem,
    good: dict[int, EMResult],
    highest: float,
    groups: tuple[Group, ...],
    orders: dict[int, list[np.ndarray]],
    gap: float,
    count: int,
) -> tuple[Optimum, ...]:
    """The distinct optima among proper fits, by number of the start, the best first.

    `orders` are those of the exchangeable components, `highest` is the best objective, `gap` what
    convergence leaves to gain, `count` the number of starts.
    """

    def flat(i: int, tree: Params) -> np.ndarray:
        return np.asarray(ravel_pytree(permuted(tree, groups, orders[i]))[0], float)

    def errors(i: int) -> np.ndarray:
        if len(good[i].labels) > MAX_PARAMS:
            return np.full(len(good[i].labels), np.nan)
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            return flat(i, good[i].standard_errors())

    def dip(i: int, j: int) -> float:
        ends = [permuted(good[k].params, groups, orders[k]) for k in (i, j)]
        return _dip(problem, good[i], *ends)

    fits = {
        i: Fit(
            r.penalised, r.log_likelihood.mcse, r.converged, flat(i, r.params), flat(i, _mcse(r))
        )
        for i, r in good.items()
    }
    found = []
    for members in clusters(fits, errors, dip, gap):
        first = good[members[0]]
        found.append(
            Optimum(
                permuted(first.params, groups, orders[members[0]]),
                first.log_likelihood.value,
                first.penalised,
                float(highest - first.penalised),
                tuple(sorted(members)),
                len(members) / count,
                _note(problem, first, groups),
            )
        )
    return tuple(found)


def _dip(problem: Problem, result: EMResult, one: Params, other: Params) -> float:
    """How far the objective of the E-step of `result` falls on the line between two fits.

    Infinite if it is random, or depends on more than the parameters.
    """
    parts = cast(FittedParts, result.parts)
    e_step, state = parts.e_step, parts.e_state
    if e_step.kind not in OF_PARAMETERS:
        return np.inf
    first, last = problem.unconstrain(one), problem.unconstrain(other)
    values = [
        float(expectation(e_step, problem, first + share * (last - first), state)[2].objective)
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    return min(values[0], values[-1]) - min(values)


def _is_stochastic(result: EMResult) -> bool:
    return cast(FittedParts, result.parts).e_step.stochastic


def _mcse(result: EMResult) -> Params:
    """Monte Carlo errors of the estimates, where the fit is by draws; else zeros."""
    if _is_stochastic(result):
        return result.mcse()
    return jax.tree.map(np.zeros_like, result.params)


def _in_words(params: Params, groups: tuple[Group, ...]) -> str:
    names = [str(path[0].key) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    parts = []
    for group in groups:
        listed = dict.fromkeys(names[i] for i, _ in group.axes)
        parts.append(f"{group.size} components of {', '.join(listed)}")
    return "; ".join(parts)


def _note(problem: Problem, result: EMResult, groups: tuple[Group, ...]) -> str:
    """Values of discrete sites that hardly any row takes."""
    if problem.spec.latents or not problem.spec.discrete:
        return ""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(result.params)]
    notes = []
    for name, probs in result.posterior.probs().items():
        rows = probs.reshape(-1, probs.shape[-1]).sum(axis=0)
        own = [g for g in groups if g.size == len(rows)]
        numbers = sum(leaves[i].size for g in own for i in {i for i, _ in g.axes}) / len(rows)
        for k, count in enumerate(rows):
            if count < WITHOUT_WEIGHT * rows.sum():
                notes.append(f"value {k} of '{name}' has no weight")
            elif count < numbers + 0.5:
                notes.append(f"value {k} of '{name}' holds {count:.1f} rows only")
    return ", ".join(notes)
