"""A look at the log-joint near a point, and which component of the latents its terms depend on.

One compiled program serves the checks of a model, the search for zeros in its Hessian, and that for
independent terms; compiling one is cheaper than compiling three that differ little.

The log-joint of a model is a sum of terms: the log-density of every element of every site, discrete
sites summed out as far as their plates go, and the log-Jacobian of every latent. A term mostly
depends on the latents of one component only. Which one is found by derivatives along directions
that move half of the components: with number k of a component in binary, the term moves with the
components that have a certain bit, or with those that have not. A term that moves with both depends
on two components.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.util import compute_log_probs

from ppl_em.discrete import marginalization
from ppl_em.params import Params
from ppl_em.problem.problem import Problem

AT_ONCE = 4
"""Points that are looked at side by side; more would be idle when one or two are asked for."""

WIDE = 10_000
"""Number of latents above which points are looked at one by one, and for no more than is asked:
another small program costs less there."""


class Look(NamedTuple):
    """The log-joint at n points, each with a direction.

    `density` (n,) is the log-joint without the Jacobian of the latents, `by_param` (n, p) and
    `by_latent` (n, D) are its gradients. `products` (n, D) are those of the Hessian of
    `log_joint_unconstrained` with the directions, `slopes` (n, E) the derivatives of `terms` along
    them; both (n, 0) where they were not asked for.
    """

    density: jax.Array
    by_param: jax.Array
    by_latent: jax.Array
    products: jax.Array
    slopes: jax.Array


def density_and_gradients(problem: Problem, x: jax.Array, u: jax.Array) -> tuple:
    """The log-joint at `x` (p,) and `u` (D,), without Jacobian, and its gradients in both."""
    return jax.value_and_grad(density, argnums=(1, 2))(problem, x, u)


def density(problem: Problem, x: jax.Array, u: jax.Array) -> jax.Array:
    """The log-joint at `x` (p,) and `u` (D,), without Jacobian; a scalar."""
    params = problem.constrain(x)
    return problem.log_joint(params, problem.constrain_latents(params, u))


def look(
    problem: Problem, x: jax.Array, points: np.ndarray, directions: np.ndarray | None = None
) -> Look:
    """The log-joint and its derivatives at `x` (p,) and at `points` (n, D), along `directions`.

    Parameters
    ----------
    problem, x
        The problem and its unconstrained parameters, shape (p,).
    points
        Unconstrained latents, shape (n, D).
    directions
        One for each point, shape (n, D). Without them there are neither products nor slopes;
        slopes also need the problem's flag `by_term`, and supports that do not move.
    """
    # Idle coordinates are treated here, so that finding them compiles nothing again.
    idle = np.zeros(points.shape[1], bool) if problem.spec.idle is None else problem.spec.idle.value
    plain = replace(problem, spec=replace(problem.spec, idle=None, rough=(), restrictions=()))
    active = [np.where(idle, 0, a) for a in (points, directions) if a is not None]
    size, side = len(points), AT_ONCE if points.shape[1] <= WIDE else 1
    rows = np.minimum(np.arange(-(-size // side) * side), size - 1).reshape(-1, side)
    chunks = [jax.device_get(_look(plain, x, *(a[some] for a in active))) for some in rows]
    found: Look = jax.tree.map(lambda *parts: np.concatenate(parts)[:size], *chunks)
    if directions is not None and idle.any():
        found.products[:, idle] = -directions[:, idle]
        if found.slopes.size:  # those of the idle coordinates come first
            found.slopes[:, np.flatnonzero(idle)] = (-points * directions)[:, idle]
    return found


@jax.jit
def _look(
    problem: Problem, x: jax.Array, points: jax.Array, directions: jax.Array | None = None
) -> Look:
    """At a few points of a problem that does not know its idle coordinates."""
    if directions is None:
        value, (by_param, by_latent) = jax.vmap(partial(density_and_gradients, problem, x))(points)
        none = jnp.zeros((len(points), 0))
        return Look(value, by_param, by_latent, none, none)
    return jax.vmap(partial(_look_along, problem, x))(points, directions)


def _look_along(problem: Problem, x: jax.Array, u: jax.Array, direction: jax.Array) -> Look:
    def along(function: Callable) -> tuple:
        return jax.jvp(function, (u,), (direction,))

    params, slopes = problem.constrain(x), jnp.zeros(0)
    if _is_moving(problem):
        value, (by_param, by_latent) = density_and_gradients(problem, x, u)
        whole = partial(problem.log_joint_unconstrained, params)
        return Look(value, by_param, by_latent, along(jax.grad(whole))[1], slopes)
    first, second = along(partial(density_and_gradients, problem, x))
    (value, (by_param, by_latent)), (_, (_, product)) = first, second
    product += along(jax.grad(lambda u: sum(map(jnp.sum, _transformed(problem, u)[1]))))[1]
    if problem.spec.by_term:
        slopes = along(partial(terms, problem, params))[1]
    return Look(value, by_param, by_latent, product, slopes)


def _is_moving(problem: Problem) -> bool:
    """Whether a support changes with other latents."""
    return any(site.support is None for site in problem.spec.latents)


def _transformed(problem: Problem, u: jax.Array) -> tuple[Params, list[jax.Array]]:
    """Latents by site from their unconstrained values (D,), and the log-Jacobian of each."""
    values = problem.unravel(u)
    latents, jacobians = {}, []
    for site in problem.spec.latents:
        latents[site.name] = value = site.transform(values[site.name])
        jacobians.append(site.transform.log_abs_det_jacobian(values[site.name], value))
    return latents, jacobians


def terms(problem: Problem, params: Params, u: jax.Array) -> jax.Array:
    """Terms whose sum is the log-joint at the unconstrained latents `u` (D,); no support moves.

    Shape (E,): as many as the plates of the model tell apart.
    """
    u, idle = problem.without_idle(u)
    latents, jacobians = _transformed(problem, u)
    parts = [idle, *jacobians]
    if problem.spec.discrete:
        parts.append(marginalization.log_terms(problem.log_factors(params, latents)))
    else:
        args, kwargs = problem.arguments
        log_probs, _ = compute_log_probs(
            problem.spec.model, args, kwargs, {**params, **latents}, sum_log_prob=False
        )
        parts += log_probs.values()
    return jnp.concatenate([jnp.ravel(jnp.asarray(part, u.dtype)) for part in parts])


def owners(
    problem: Problem, x: jax.Array, center: np.ndarray, labels: np.ndarray
) -> np.ndarray | None:
    """The component of every term, G for constants, (E,); None where terms depend on two."""
    if _is_moving(problem):
        return None
    count = int(labels.max()) + 1
    rng = np.random.default_rng(0)
    bits = np.arange(int(count - 1).bit_length())
    has = (labels >> bits[:, None]) & 1 == 1
    moved = np.concatenate([has, ~has]) * rng.uniform(1.0, 2.0, len(labels))
    point = center + 0.1 * rng.uniform(1.0, 2.0, len(labels))
    slopes = _slopes(problem, x, point.astype(center.dtype), moved.astype(center.dtype))
    with_bit, without = np.split(slopes != 0, 2)
    constant = ~np.any(with_bit | without, axis=0)
    if not np.all(np.isfinite(slopes)) or not np.all((with_bit ^ without) | constant):
        return None
    return np.where(constant, count, np.sum(with_bit << bits[:, None], axis=0))


def _slopes(
    problem: Problem, x: jax.Array, point: np.ndarray, directions: np.ndarray
) -> np.ndarray:
    """Derivatives of the terms at `point` (D,) along `directions` (n, D), shape (n, E)."""
    if problem.spec.by_term:
        points = np.broadcast_to(point, directions.shape)
        return np.asarray(look(problem, x, points, directions).slopes)
    return np.asarray(_slopes_alone(problem, x, point, directions))


@jax.jit
def _slopes_alone(problem: Problem, x: jax.Array, u: jax.Array, directions: jax.Array) -> jax.Array:
    """The same where nothing else is looked at."""

    def slope(direction: jax.Array) -> jax.Array:
        return jax.jvp(lambda u: terms(problem, problem.constrain(x), u), (u,), (direction,))[1]

    return jax.lax.map(slope, directions)
