"""How many nodes a quadrature needs: rules are refined until the log-likelihood stays the same."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from ppl_em.params import Params
from ppl_em.posterior import Gaussian, Placed, block_sums, constant_part
from ppl_em.problem import Problem
from ppl_em.structure import Blocks
from ppl_em.util import ModelError, compiled

HERMITE = {1: (7, 11, 15, 19, 23), 2: (5, 9, 13, 15, 17, 21, 27, 35, 45, 63, 91)}
"""Nodes of Gauss-Hermite rules that are tried, in one dimension and in each of more."""

SINH = (15, 21, 27, 33, 39, 47, 63, 91, 127, 181, 255)
"""Nodes on a line that are tried where Gauss-Hermite rules do not settle."""

AT_FIRST = 0.1
"""Share of the change allowed that the first rule may be off: parameters are still to move."""

DOUBT = 10.0
"""How many times the change allowed the other rule may be away."""


COARSE = 1e-5
"""Error of the log-likelihood by block that second derivatives may have: a like share of them."""

CHUNK = 16
"""Nodes per call while their number is chosen: programs are compiled for this number alone."""


class Rule(NamedTuple):
    """`size` nodes in each dimension: Gauss-Hermite, or by the trapezoidal rule in sinh."""

    size: int
    sinh: bool = False


WITNESS = Rule(33, sinh=True)
"""Sees what a Gauss-Hermite rule may miss: another peak, a long tail."""


def ladder(block_size: int, max_points: int) -> list[Rule]:
    """Rules for blocks of `block_size` latents in the order in which they are tried."""
    limit = max_points ** (1 / block_size) + 1e-9
    rules = [Rule(size) for size in HERMITE[min(block_size, 2)]]
    if block_size == 1:
        rules += [Rule(size, sinh=True) for size in SINH]
    return [rule for rule in rules if rule.size <= limit] or rules[:1]


def following(rule: Rule | None, blocks: Blocks, max_points: int) -> Rule | None:
    """The rule after `rule` on the ladder; None where the user gave the nodes."""
    rules = ladder(blocks.block_size, max_points)
    return rules[min(rules.index(rule) + 1, len(rules) - 1)] if rule else None


def choose(
    log_likelihood: Callable[[Rule], float],
    allowed: Callable[[float], float],
    rules: list[Rule],
    current: Rule | None,
    margin: float = AT_FIRST,
) -> tuple[Rule, float]:
    """The first of `rules`, from the current one on, whose log-likelihood the next one confirms.

    Parameters
    ----------
    log_likelihood
        By a rule.
    allowed
        The change that is small enough, from a log-likelihood.
    rules
        From `ladder`.
    current
        The one in use, returned if it is still good enough. None if there is none yet.
    margin
        Share of the change allowed that the first rule may be off.

    Returns
    -------
    Rule and float
        The last one if none will do; and the change of the log-likelihood from it to the next, or
        to it from the one before. NaN if there is only one.
    """
    start = rules.index(current) if current else 0
    last, change, seen = np.nan, np.nan, None
    before: Rule | None = None
    for rule in rules[min(start, max(len(rules) - 2, 0)) :]:
        value = log_likelihood(rule)
        if before is not None and before.sinh == rule.sinh:
            change = abs(value - last)
            if change <= allowed(value) * (margin if current is None else 1.0):
                if rule.sinh or WITNESS not in rules:
                    return before, change
                seen = log_likelihood(WITNESS) if seen is None else seen
                if abs(value - seen) <= DOUBT * allowed(value):
                    return before, change
        before, last = rule, value
    return rules[-1], change


def value_on(
    problem: Problem, params: Params, law: Gaussian, owner: jax.Array, placed: Placed
) -> float:
    """The log-likelihood on these nodes; one program for any number of them."""
    offsets, logs = np.asarray(placed.offsets), np.asarray(placed.log_weights)
    count = len(offsets)
    places = np.minimum(np.arange(-(-count // CHUNK) * CHUNK), count - 1).reshape(-1, CHUNK)
    parts = [_sums(problem, params, law, owner, jnp.asarray(offsets[part])) for part in places]
    sums = np.concatenate([np.asarray(part) for part in parts])[:count]
    base = float(constant_part(sums[:, -1]))
    if np.isnan(base) and np.all(np.isfinite(sums[:, -1])):
        raise ModelError(
            f"Site '{problem.spec.latents[0].name}': terms of the log-joint that have no slope in "
            f"the latents change with them all the same, so e_step='quadrature' would leave them "
            f"out. Use e_step='nuts', or write the model without steps in its latents."
        )
    return float(np.sum(logsumexp(sums[:, :-1] + logs, axis=0)) + base)


_sums = compiled(block_sums)
