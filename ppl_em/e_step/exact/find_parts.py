"""Find the parts of an exact posterior: propose them from curvature and supports, then prove them.

The proof is one comparison: at random parameters and latents, the gradient of the fitted posterior
must be that of the log-joint, in every coordinate. It covers independence between parts as well as
the law of each one.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions.transforms import ExpTransform

from ppl_em.e_step.exact.conjugate_part import NAMES, BetaPart, GammaPart, family, stick_shift
from ppl_em.e_step.exact.continuous import Continuous, Part
from ppl_em.e_step.exact.gaussian_part import GaussianPart
from ppl_em.e_step.exact.not_exact import REMEDY, ImproperError, NotExactError
from ppl_em.problem import Problem
from ppl_em.structure import (
    Blocks,
    coordinates,
    find_structure,
    hessian_product,
    site_names,
    tolerance,
)
from ppl_em.util import Static, compiled


def find_parts(
    rng_key: jax.Array, problem: Problem, x: jax.Array, max_dense: int
) -> tuple[Part, ...]:
    """Partition the continuous latents into Gaussian, gamma and beta parts.

    Parameters
    ----------
    rng_key
        Draws the points at which the log-joint is looked at.
    problem, x
        A problem without discrete latents and its unconstrained parameters, shape (p,).
    max_dense
        Largest block of jointly Gaussian coordinates.

    Raises
    ------
    NotExactError
        If the posterior is not proved to be such a product: the site and the reason.
    """
    families = _families(rng_key, problem, x)
    quadratic = tuple(s.name for s in problem.spec.latents if s.name not in families)
    gaussian = _gaussian_parts(rng_key, problem, x, quadratic, max_dense)
    if not families:
        return gaussian
    owner, limit = site_names(problem), tolerance(problem.start.dtype)
    parts = (*gaussian, *_conjugate_parts(problem, families))
    errors, proper = _check(rng_key, problem, x, parts)
    positive = np.array([families.get(name) is ExpTransform for name in owner])
    inverse = positive & ~(errors < limit)
    if np.any(inverse):
        parts = (*gaussian, *_conjugate_parts(problem, families, inverse))
        errors_now, proper = _check(rng_key, problem, x, parts)
        errors = np.where(inverse, np.fmin(errors, errors_now), errors_now)
    if not np.all(errors < limit):
        worst = max(families, key=lambda name: errors[owner == name].max(initial=0))
        raise _not_conjugate(worst, families[worst], errors[owner == worst].max())
    if not np.all(proper):
        raise ImproperError(
            f"Site '{owner[np.argmin(proper)]}': at the initial parameters its posterior is not "
            f"proper, or reaches closer to the edge of its support than numbers do. Start "
            f"elsewhere with `init_params`. {REMEDY}"
        )
    return parts


def _families(rng_key: jax.Array, problem: Problem, x: jax.Array) -> dict[str, type]:
    """The sites in which the log-joint is not quadratic, and the transforms to their supports."""
    changes = np.asarray(_curvature_changes(problem, x, problem.start, rng_key))
    owner, limit = site_names(problem), tolerance(changes.dtype)
    change = {s.name: changes[owner == s.name].max(initial=0) for s in problem.spec.latents}
    found = {s.name: family(s) for s in problem.spec.latents if not change[s.name] < limit}
    strange = [name for name, transform in found.items() if transform is None]
    if strange:
        worst = max(strange, key=lambda name: change[name])
        raise NotExactError(
            f"Site '{worst}': the log-joint is not quadratic in it (its curvature changes by "
            f"{100 * change[worst]:.2g} % between points), so its posterior is not Gaussian. "
            f"{REMEDY}"
        )
    return {name: transform for name, transform in found.items() if transform is not None}


def _not_conjugate(name: str, transform: type, error: float) -> NotExactError:
    fact = f"is off by {100 * error:.2g} %" if np.isfinite(error) else "is not finite"
    return NotExactError(
        f"Site '{name}': the log-joint is not quadratic in it, and it is not a {NAMES[transform]} "
        f"variable that is independent of the other latents given the data (the gradient of the "
        f"log-joint under the best such law {fact}). {REMEDY}"
    )


def _gaussian_parts(
    rng_key: jax.Array, problem: Problem, x: jax.Array, names: tuple[str, ...], max_dense: int
) -> tuple[GaussianPart, ...]:
    """The sites `names` in the cheapest structure; idle coordinates of other sites one by one."""
    parts = []
    index = coordinates(problem, names)
    if index.size:
        structure = find_structure(problem, x, problem.start, rng_key, names)
        if structure.largest > max_dense:
            raise NotExactError(
                f"Site '{names[0]}': the latents are Gaussian, but a block of "
                f"{structure.largest} coordinates is coupled; at most {max_dense} are done "
                f"exactly (`Exact(max_dense=...)`). {REMEDY}"
            )
        parts.append(GaussianPart(Static(index), structure))
    idle = problem.spec.idle
    rest = np.setdiff1d([] if idle is None else np.flatnonzero(idle.value), index)
    if rest.size:
        parts.append(GaussianPart(Static(rest), Blocks(Static(np.arange(rest.size)[:, None]))))
    return tuple(parts)


def _conjugate_parts(
    problem: Problem, families: dict[str, type], inverse: np.ndarray | None = None
) -> Iterator[GammaPart | BetaPart]:
    """The active coordinates of sites in `families`; `inverse` (D,) marks inverse-gamma ones."""
    owner, idle = site_names(problem), problem.spec.idle
    kinds = np.array([families.get(name) for name in owner], object)
    active = np.ones(len(owner), bool) if idle is None else ~idle.value
    positive = np.flatnonzero(active & (kinds == ExpTransform))
    if positive.size:
        sign = np.ones(len(owner)) if inverse is None else np.where(inverse, -1.0, 1.0)
        yield GammaPart(Static(positive), Static(sign[positive]))
    bounded = np.flatnonzero(active & (kinds != ExpTransform) & (kinds != None))  # noqa: E711
    if bounded.size:
        shift = np.concatenate([stick_shift(site) for site in problem.spec.latents])
        yield BetaPart(Static(bounded), Static(shift[bounded]))


def _check(
    rng_key: jax.Array, problem: Problem, x: jax.Array, parts: tuple[Part, ...]
) -> tuple[np.ndarray, np.ndarray]:
    return jax.device_get(_gradient_errors(Continuous(parts), problem, x, problem.start, rng_key))


@compiled(static_argnums=0)
def _gradient_errors(
    engine: Continuous, problem: Problem, x: jax.Array, u: jax.Array, rng_key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Relative errors of the gradient of the fitted posterior, and whether it is proper, (D,).

    Errors are relative to the largest gradient of each coordinate among three points, since it
    may vanish at one. Propriety is that of the posterior at `x` itself.
    """

    def compare(inputs: tuple) -> tuple[jax.Array, jax.Array]:
        scale, key = inputs
        keys = jax.random.split(key, 3)
        params = problem.constrain(problem.nearby(keys[0], x, scale))
        spread = jax.random.uniform(keys[1], (3, 1), u.dtype, 0.3, 1.5)
        points = u + spread * jax.random.normal(keys[2], (3, *u.shape), u.dtype)

        density = problem.density(params)

        expected = jax.lax.map(jax.grad(density), points)
        posterior = engine.posterior(density, points[0], expected[0])
        found = jax.vmap(jax.grad(posterior.log_density))(points[1:])
        gap = jnp.max(jnp.abs(found - expected[1:]), axis=0)
        error = gap / (jnp.max(jnp.abs(expected), axis=0) + 1e-30)
        proper = jnp.all(jnp.isfinite(posterior.points()), axis=0)
        return jnp.where(jnp.isfinite(error), error, jnp.inf), proper

    scales = jnp.asarray([0.0, 0.3, 0.3, 0.3], x.dtype)
    errors, proper = jax.lax.map(compare, (scales, jax.random.split(rng_key, 4)))
    return jnp.max(errors, axis=0), proper[0]


@compiled
def _curvature_changes(
    problem: Problem, x: jax.Array, u: jax.Array, rng_key: jax.Array
) -> jax.Array:
    """Relative change of Hessian products from point to point, per coordinate, shape (D,).

    Relative to the largest product of the same site.
    """
    sizes = [int(np.prod(site.shape_u)) for site in problem.spec.latents]
    site = np.repeat(np.arange(len(sizes)), sizes)

    def change(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 4)
        params = problem.constrain(problem.nearby(keys[0], x, 0.3))
        direction = jax.random.normal(keys[1], u.shape, u.dtype)
        spread = jax.random.uniform(keys[3], (2, 1), u.dtype, 0.3, 2.0)
        points = u + spread * jax.random.normal(keys[2], (2, *u.shape), u.dtype)

        def product(point: jax.Array) -> jax.Array:
            density = problem.density(params)
            return hessian_product(density, point, direction)

        first, second = product(points[0]), product(points[1])
        largest = jax.ops.segment_max(jnp.abs(first), site, len(sizes))[site]
        gap = jnp.abs(first - second) / (largest + 1e-30)
        return jnp.where(jnp.isfinite(gap), gap, jnp.inf)

    return jnp.max(jax.lax.map(change, jax.random.split(rng_key, 4)), axis=0)
