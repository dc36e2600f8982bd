"""How many parameters and observations a fit has, and a digest of its data."""

import hashlib
from collections.abc import Callable

import jax
import numpy as np

from ppl_em.likelihood import Information, flat_directions
from ppl_em.params import AtBounds
from ppl_em.problem import Observed, Problem, observations
from ppl_em.result import Counts


def counts(
    problem: Problem,
    x: jax.Array,
    information: Information,
    at: AtBounds | None,
    look: Callable[[jax.Array], float] | None,
) -> Counts:
    """Count what is free and what is seen.

    Parameters
    ----------
    problem, x
        The problem and its fitted parameters, unconstrained, (p,).
    information
        With what is flat, and coordinates without influence.
    at
        Parameters at a bound: there others may have no influence and are free all the same.
    look
        The log-likelihood at x (p,), if it has no noise.
    """
    equal = sum(
        int(np.sum(one.lower.value == one.upper.value)) for one in problem.spec.restrictions
    )
    idle = int(np.sum((np.diag(information.matrix) == 0) & (information.gradient == 0)))
    directions = information.flat if information.usable else flat_directions(information, x, look)
    flat = 0 if directions is None else directions.shape[1]
    free = problem.space.size - equal - (flat + idle if at is None else 0)
    seen = observations(problem, problem.constrain(x))
    total = float(sum(np.sum(one.weights) for one in seen.values()))
    number = round(total) if abs(total - round(total)) < 1e-9 * (1 + total) else total
    return Counts(free, number, _digest(seen))


def _digest(seen: dict[str, Observed]) -> str:
    """Of the observed values that count, and their weights, site by site, whatever their names."""
    digests = []
    for one in seen.values():
        kept = one.weights != 0
        values = np.asarray(one.values, float)[kept] + 0.0  # one zero
        found = hashlib.sha256(values.tobytes())
        found.update(one.weights[kept].tobytes())
        digests.append(found.hexdigest())
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:32]
