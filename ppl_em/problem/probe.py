"""Evaluate the log-joint near its start: is it finite there, and what does it depend on?"""

import dataclasses
import logging
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import ImproperUniform
from numpyro.distributions.distribution import validation_enabled

from ppl_em.discrete import mask_of
from ppl_em.params import Params
from ppl_em.problem.derivatives import WIDE, Look, density_and_gradients, log_joint_at, look
from ppl_em.problem.impossible import impossible
from ppl_em.problem.indices import leaf_names
from ppl_em.problem.jumps import is_misled, possible_steps
from ppl_em.problem.problem import Problem
from ppl_em.problem.repairs import without_gaps
from ppl_em.util import ModelError, Static, compiled, generator, site_error

logger = logging.getLogger("ppl_em")

LARGE = 1_000_000
"""Numbers of data above which a model without continuous latents is probed without gradients:
their memory would be several times that of a whole fit."""

MOST_FLAT = 200
"""Coordinates with improper priors up to which directions that no data see are looked for."""

STRIDES = (-4.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 4.0)
"""Steps on the unconstrained scale after which a parameter without a gradient may show."""


DISTANCES = (0.0, 0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
"""Scales on which points are drawn around the start of the latents."""

_density_at = compiled(log_joint_at)


def probe(rng_key: jax.Array, problem: Problem, values: Params, over: bool = False) -> Problem:
    """Move the problem's start to a point of finite log-joint, and mark idle latents.

    Raises
    ------
    ModelError
        If no point near the start is finite; or if a parameter touches no log-density, unless the
        fit is `over`.
    """
    x, u = problem.unconstrain(values), problem.start
    if not u.size and sum(np.size(leaf) for leaf in problem.leaves) > LARGE:
        if not bool(jnp.isfinite(_density_at(problem, x, u))):
            raise _not_finite(problem, values, u)
        return problem
    rng = generator(rng_key)
    noise = rng.normal(size=(len(DISTANCES), u.size))
    points = (np.asarray(u) + np.array(DISTANCES)[:, None] * noise).astype(u.dtype)
    problem, seen = _first_look(problem, x, points)
    good = np.isfinite(seen.density)
    good &= np.all(np.isfinite(seen.by_param), 1) & np.all(np.isfinite(seen.by_latent), 1)
    if not good.any():
        raise _not_finite(problem, values, points[0])
    by_param, by_latent = seen.by_param[good], seen.by_latent[good]
    unused = np.all(by_param == 0, axis=0)
    if unused.any():  # the start may be a stationary point
        away = 0.1 * rng.normal(size=x.shape)
        elsewhere = jax.device_put((np.asarray(x) + away).astype(x.dtype))
        unused &= np.all(_first_look(problem, elsewhere, points)[1].by_param == 0, axis=0)
        rough = _responds(problem, x, points[int(np.argmax(good))], unused)
        if not over:
            _refuse_unused(problem, unused & ~rough)
        problem = _with_rough(problem, rough)
    start = points[int(np.argmax(good))]
    idle = np.all(by_latent == 0, axis=0)
    if idle.any():  # so they may be at these parameters alone
        away = (np.asarray(x) + 0.3 * rng.normal(size=x.shape)).astype(x.dtype)
        idle &= ~np.any(_first_look(problem, jax.device_put(away), points)[1].by_latent != 0, 0)
    problem, idle = _with_jumps(problem, x, start, idle, rng)
    if idle.any():
        logger.info("%d latent coordinates touch nothing (imputed where observed)", idle.sum())
        problem = problem.with_spec(idle=Static(idle))
    return dataclasses.replace(problem, start=jax.device_put(start))


def _with_jumps(
    problem: Problem, x: jax.Array, u: np.ndarray, idle: np.ndarray, rng: np.random.Generator
) -> tuple[Problem, np.ndarray]:
    """The problem with the sites whose jumps gradients miss, and what is `idle` (D,) all the same.

    A coordinate without a gradient is not idle if values change with it.
    """
    steps = possible_steps(problem, x) if u.size else []
    places = problem.unravel(np.arange(u.size))
    found, idle = [], idle.copy()
    for name in dict.fromkeys(step.source for step in steps):
        mine = np.isin(np.arange(u.size), np.asarray(places[name]))
        if not is_misled(problem, x, u, mine, rng):
            continue
        found.append(next(step for step in steps if step.source == name))
        still = mine & idle
        if still.any() and is_misled(problem, x, u, still, rng):
            idle[still] = False
    if found:
        logger.info("the log-joint jumps where it has no gradient: %s", found)
    return problem.with_spec(jumps=tuple(found)) if found else problem, idle


def _first_look(problem: Problem, x: jax.Array, points: np.ndarray) -> tuple[Problem, Look]:
    """What is at `points` (n, D), by the program that E-steps will use to look at the latents.

    The problem comes back without `term_slopes` if the model has no derivatives of that kind.
    """
    if points.shape[1] > WIDE:
        return problem, look(problem, x, points)
    if points.size:
        try:
            return problem, look(problem, x, points, np.zeros_like(points))
        except Exception as error:
            logger.info("looked at without second derivatives: %s", str(error).split("\n")[0])
    return problem.with_spec(term_slopes=False), look(problem, x, points)


def _responds(problem: Problem, x: jax.Array, u: jax.Array, unused: np.ndarray) -> np.ndarray:
    """Which coordinates of `x` (p,) change the log-joint, but have no gradient anywhere, (p,)."""
    found = np.zeros(len(unused), bool)
    here = float(_density_at(problem, x, u))
    for i in np.flatnonzero(unused):
        places = [x.at[i].add(step) for step in STRIDES]
        found[i] = any(float(_density_at(problem, place, u)) != here for place in places)
        found[i] &= all(float(_slope_at(problem, place, u)[i]) == 0 for place in places)
    return found


@compiled
def _slope_at(problem: Problem, x: jax.Array, u: jax.Array) -> jax.Array:
    return density_and_gradients(problem, x, u)[1][0]


def _with_rough(problem: Problem, rough: np.ndarray) -> Problem:
    """The problem with the names of the parameters that have such coordinates, (p,)."""
    flags = problem.space.unravel(rough)
    names = [n for n, tree in flags.items() if any(np.any(v) for v in jax.tree.leaves(tree))]
    if not names:
        return problem
    logger.info("no gradient in %s, although the log-density responds", ", ".join(names))
    return problem.with_spec(rough=tuple(names))


def _refuse_unused(problem: Problem, unused: np.ndarray) -> None:
    space = problem.space
    flags = space.unravel(unused)
    for name in space.names:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(flags[name])]
        if leaves and all(np.all(leaf == 1) for leaf in leaves):
            raise site_error(
                name,
                "the parameter touches no log-density when the latents are held fixed, so no "
                "M-step can move it",
                "Fix it with `fixed`, remove it, or write the model so that the parameter enters "
                "a density (undo a reparameterisation, say)",
            )


def _not_finite(problem: Problem, values: Params, u: jax.Array) -> ModelError:
    params = {**values, **problem.fixed}
    latents = problem.constrain_latents(params, u)
    gaps = _gaps(problem, problem.unconstrain(values), u)
    if gaps is not None:
        return gaps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPyro's own words for the error below
        try:
            found = impossible(problem, params, latents)
        except ValueError:  # a law whose own parameters are not valid
            with validation_enabled(False):
                found = impossible(problem, params, latents)
    if found:
        remedy = "Check that the data lie in its support, or start elsewhere with `init_params`"
        return site_error(found[0], found[1], remedy)
    name = problem.space.names[0]
    return site_error(
        name,
        "the gradient of the log-joint is not finite at the initial values",
        "Start elsewhere with `init_params`, away from the edges of the supports",
    )


def _gaps(problem: Problem, x: jax.Array, u: jax.Array) -> ModelError | None:
    """What to say of NaN or infinite values in an argument, if the log-joint is finite without."""
    first, leaves = "", list(problem.leaves)
    for i, (name, leaf) in enumerate(zip(leaf_names(problem), leaves, strict=True)):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not bool(jnp.all(jnp.isfinite(leaf))):
            fact, remedy, leaves[i], _ = without_gaps(np.asarray(leaf))
            first = first or f"Argument '{name}': {fact}, so the log-joint is not finite. {remedy}."
    whole = dataclasses.replace(problem, leaves=tuple(leaves))
    if first and bool(jnp.isfinite(_density_at(whole, x, u))):
        return ModelError(first)
    return None


def check_proper(problem: Problem, values: Params, trace: dict[str, Any]) -> None:
    """Raise if the integral over latents is infinite, as improper priors may leave it."""
    names = [site.name for site in problem.spec.latents]
    flat = [name for name in names if _is_improper(trace[name]["fn"])]
    if problem.spec.idle is not None:
        idle = problem.unravel(jnp.asarray(problem.spec.idle.value))
        for name in names:
            if _is_improper(trace[name]["fn"], masked=False) and bool(jnp.any(idle[name])):
                raise site_error(
                    name,
                    "no data depend on it and its prior is improper, so that its integral is "
                    "infinite",
                    "Remove the site, or give it a proper prior",
                )
    if flat and problem.spec.gradients is None and (found := _together(problem, values, flat)):
        name, *others = found
        raise site_error(
            name,
            f"its prior is improper, and the data see it only together with "
            f"{' and '.join(repr(other) for other in others) or 'elements of its own'}, so that "
            f"its integral is infinite",
            "Give it a proper prior",
        )


def _is_improper(law: Any, masked: bool = True) -> bool:
    """Whether this law of a latent has no integral; with `masked`, whether it is masked away."""
    while not isinstance(law, ImproperUniform) and hasattr(law, "base_dist"):
        if masked and mask_of(law) is not True and not np.any(mask_of(law)):
            return True
        law = law.base_dist
    return isinstance(law, ImproperUniform)


def _together(problem: Problem, values: Params, names: list[str]) -> list[str]:
    """Those of the latents `names` that the log-joint sees in combination only; else none.

    Along such a direction it has neither slope nor curvature, at two points.
    """
    numbers = problem.unravel(jnp.arange(problem.start.size))
    index = np.concatenate([np.ravel(numbers[name]) for name in names]).astype(int)
    if index.size > MOST_FLAT:
        return []
    draws = generator(jax.random.key(0)).normal(size=(2, index.size))
    density = lambda v, u: problem.log_joint_unconstrained(values, u.at[index].set(v))  # noqa: E731
    rows = []
    for v in problem.start[index] + draws:
        rows.append(jax.jit(jax.grad(density))(v, problem.start)[None])
        rows.append(jax.jit(jax.hessian(density))(v, problem.start))
    table = np.concatenate(jax.device_get(rows))
    if not np.all(np.isfinite(table)):
        return []
    _, sizes, ways = np.linalg.svd(table)
    if sizes[-1] > 1e3 * np.finfo(table.dtype).eps * sizes[0]:
        return []
    moving = np.abs(ways[-1]) > 1e-3
    owners = np.repeat(names, [np.size(numbers[name]) for name in names])
    return [*dict.fromkeys(owners[moving].tolist())]
