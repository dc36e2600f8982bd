"""Where what is maximised has no bound: as a scale goes to 0, or in the corner of a prior.

A component of a mixture that sits on one value gains as many nats per e-fold of its scale as it has
rows. By the time that this is lost in rounding, a run may look as if it had converged.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

from ppl_em.e_step import expectation
from ppl_em.likelihood import flat_and_jacobian, rounding_noise
from ppl_em.params import flat_labels, has_end
from ppl_em.posterior import Posterior
from ppl_em.problem import Problem
from ppl_em.problem.penalties import penalties
from ppl_em.util import compiled, moved_by

STEEP = 0.1
"""Slope of Q, in nats per unit, from which a coordinate is suspected: Q ought to be at its top."""

FAR = 4.0
"""Distance from the start, unconstrained, from which a bounded parameter is: a factor of e^4."""

ON_THE_LINE = (constraints.real, constraints.real_vector)
"""Supports without an edge."""

REACH = (2.0, 4.0)
"""Distances further out at which Q is evaluated."""

OUT = 10.0
"""Unconstrained value from which a bounded parameter is looked at, whatever its start."""

WAY = (-6.0, -4.0, -2.0, 0.0)
"""Places before the end, unconstrained, between which rises are compared."""

FURTHER = (2.0, 4.0, 8.0, 16.0, 32.0)
"""Places beyond it."""

FACTOR = 0.1
"""Relative change of a parameter, per unit of a coordinate, from which that is a logarithm."""

EVENLY = 0.02
"""Least rise, in nats, between two of these places."""

EVEN = 1.25
"""Largest ratio of rises that are even. Next to a maximum in a scale it is 4 / 3 or more."""


def why_no_maximum(
    problem: Problem,
    e_step: Any,
    x: jax.Array,
    state: Any,
    posterior: Posterior,
    away: np.ndarray,
    steep: bool = False,
    noise: float = 0.0,
) -> str:
    """Why what is maximised has no maximum near where a run has ended; empty if it may have one.

    Parameters
    ----------
    problem, e_step
        What was fitted.
    x, state, posterior
        Where it ended, (p,), the state of the E-step and the latents there.
    away
        How far that is from where the run began, (p,).
    steep
        Whether Q has a slope although the run found nothing more to gain.
    noise
        Of the log-likelihood there, as of `rounding_noise`; 0 if not known.
    """
    far = gone_far(problem, away)
    reason = ""
    if far.any() or steep:
        reason = unbounded(problem, x, posterior, far | steep)
    if not reason and e_step.is_function:
        suspected = has_end(problem.space) & (far | bool(noise) | (np.abs(np.asarray(x)) > OUT))
        if suspected.any():
            suspected &= _like_logarithms(problem, x)
        towards = np.where(suspected, np.where(far, away, np.asarray(x)), 0.0)
        reason = _rises_evenly(problem, e_step, x, state, towards, noise)
    if not reason and noise:
        reason = (
            f"the log-likelihood is lost in rounding there: the last digits of data and "
            f"parameters change it by {noise:.2g}; center the data, or put them in other units"
        )
    return reason


def unbounded(problem: Problem, x: jax.Array, posterior: Posterior, suspected: np.ndarray) -> str:
    """In which direction the likelihood has no bound at `x` (p,), in words; empty if in none.

    Where Q still has a slope, it is followed further out. Under the posterior at `x`, Q gains no
    more than the log-likelihood does, so if it keeps rising as fast, the likelihood has no bound
    there. At a boundary where the likelihood is finite, Q falls or stays.

    Parameters
    ----------
    problem
        The model with its data.
    x, posterior
        Where a run ended, and the latents there.
    suspected
        Coordinates to look at, (p,).
    """
    slope = np.asarray(_slope(problem, posterior, x))
    for i in np.flatnonzero(suspected & (np.abs(slope) > STEEP)):
        direction = np.zeros_like(slope)
        direction[i] = np.sign(slope[i])
        first, second = np.diff(_q_along(problem, posterior, x, jnp.asarray(direction)))
        if np.isfinite(first + second) and first > REACH[0] * STEEP and second > 0.8 * first:
            points = [x, x + REACH[0] * jnp.asarray(direction, x.dtype)]
            return _without_bound(problem, x, points, np.array([i]), first)
    return ""


def gone_far(problem: Problem, away: np.ndarray) -> np.ndarray:
    """Coordinates of bounded parameters that are far from their start, (p,)."""
    parts = problem.space.unravel(away)
    far = {
        site.name: jax.tree.map(
            lambda v, site=site: (np.abs(v) > FAR) & (site.constraint not in ON_THE_LINE),
            parts[site.name],
        )
        for site in problem.space.sites
    }
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(far)])


def _like_logarithms(problem: Problem, x: jax.Array) -> np.ndarray:
    """Coordinates of `x` (p,) of which a unit changes some parameter by a factor, (p,).

    Far out `softplus` and the like are parameters themselves, in whatever unit.
    """
    flat, jacobian = (np.asarray(found, float) for found in flat_and_jacobian(problem, x))
    size = np.maximum(np.abs(flat), np.finfo(float).tiny)
    return np.max(np.abs(jacobian) / size[:, None], axis=0, initial=0.0) > FACTOR


def _rises_evenly(
    problem: Problem, e_step: Any, x: jax.Array, state: Any, towards: np.ndarray, noise: float
) -> str:
    """The same, by the log-likelihood itself, which has risen evenly up to where rounding begins.

    Where effects follow the outcome in everything, Q is at its top for whatever scale it was
    computed at. `towards` (p,) is not 0 where a coordinate is suspected; they are followed one by
    one to either side, and all together the way that they went.
    """
    last_digit = -np.log(np.finfo(x.dtype).eps) - FURTHER[0]
    alone = np.eye(len(towards))[towards != 0]
    ways = [*alone, *-alone] + ([np.sign(towards)] if len(alone) > 1 else [])
    for way, most in itertools.product(ways, (np.inf, last_digit)):
        end = np.where(way != 0, np.clip(x, -most, most), x)
        points = [moved_by(end, reach * way) for reach in WAY]
        found = [expectation(e_step, problem, point, state)[2].objective for point in points]
        if not np.all(np.isfinite(found)):
            continue
        rises = np.diff(np.array(found, float))
        even = min(rises) > EVENLY and max(rises) < EVEN * min(rises)
        if even and (noise or _goes_on(problem, e_step, points[-1], state, way, rises[0])):
            return _without_bound(problem, x, points, np.flatnonzero(way), rises[0])
    return ""


def _goes_on(
    problem: Problem, e_step: Any, x: jax.Array, state: Any, way: np.ndarray, rise: float
) -> bool:
    """Whether the log-likelihood rises evenly from `x` (p,) on until its digits are lost.

    `rise` is what it gains in two units of `way` (p,).
    """
    at, value = 0.0, float(expectation(e_step, problem, x, state)[2].objective)
    for reach in FURTHER:
        point = moved_by(x, reach * way)
        found = float(expectation(e_step, problem, point, state)[2].objective)
        if not np.isfinite(found):
            return True
        if found - value < rise / 2 * (reach - at) / EVEN:
            saturated = found == value
            return saturated or rounding_noise(e_step, problem, point, state, found) > 0
        at, value = reach, found
    return True


def _without_bound(
    problem: Problem, x: jax.Array, points: list, places: np.ndarray, rise: float
) -> str:
    """That there is no maximum in the direction of some coordinates, by a `rise` of what."""
    labels = flat_labels(problem.space.unravel(np.asarray(x)))
    found = [(labels[i], *(f"({v:.2g})" for v in _value(problem, x, labels[i]))) for i in places]
    names, per = ", ".join(" ".join(words) for words in found), rise / REACH[0]
    before, after = (penalties(problem, problem.constrain(point)) for point in points[:2])
    if sum(after.values()) - sum(before.values()) > rise / 2:
        return (
            f"the prior of {names} has no bound there, nor has what is maximized: "
            f"{per:.2g} nats for each factor e. Give it a concentration or a shape of at least 1, "
            f"or keep it away from there with `constraints`"
        )
    return (
        f"the likelihood has no bound in the direction of {names}: {per:.2g} nats for each factor e"
    )


@compiled
def _slope(problem: Problem, posterior: Posterior, x: jax.Array) -> jax.Array:
    return jax.grad(lambda x: posterior.expected_log_joint(problem, problem.constrain(x)))(x)


@compiled
def _q_along(
    problem: Problem, posterior: Posterior, x: jax.Array, direction: jax.Array
) -> jax.Array:
    """Q at `x` and further out, (3,)."""
    points = jnp.stack([x + reach * direction for reach in (0.0, *REACH)])
    return jax.lax.map(
        lambda point: posterior.expected_log_joint(problem, problem.constrain(point)), points
    )


def _value(problem: Problem, x: jax.Array, label: str) -> list[float]:
    """The value of a parameter by its label on the unconstrained scale, if it has the same."""
    params = problem.constrain(x)
    labels = flat_labels(params)
    if label not in labels:
        return []
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    return [float(flat[labels.index(label)])]
