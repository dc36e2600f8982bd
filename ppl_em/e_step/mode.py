"""The mode of the log-joint in the latents, and the Gaussian law there.

Newton's method with the structure of the Hessian: linear in groups and in time. Where the Hessian
is not negative definite or a step does not gain, its diagonal is raised (Levenberg-Marquardt).

References
----------
Nocedal & Wright (2006), Numerical Optimization, section 10.3. Kristensen et al. (2016), TMB,
Journal of Statistical Software 70(5), for the nested use of it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.e_step.exact.gaussian_part import LAWS
from ppl_em.params import Params
from ppl_em.posterior import GaussianLaw
from ppl_em.problem import Problem
from ppl_em.structure import Density, Structure, compressed_hessian, site_names
from ppl_em.util import ModelError, compiled, moved_by, split

MAX_STEPS = 200
"""Newton steps, refused ones included, before the search is given up."""

CLOSE = 1e-14
"""Squared Newton step, in standard deviations and per latent, after which one more is the last."""

RANDOM_STARTS = 5
"""Starts that are tried before the search for a first mode is given up."""

NEAR_MODE = 1e-6
"""Squared length of the step still to go, per latent, that counts as a failure."""


class Mode(NamedTuple):
    """Where the search ended.

    `law` is the Gaussian law at `u` (D,), `slope` the length of the gradient there in posterior
    standard deviations, `num_steps` the steps it took. `law` is NaN if the Hessian at `u` is not
    negative definite.
    """

    u: jax.Array
    law: GaussianLaw
    slope: jax.Array
    num_steps: jax.Array

    @property
    def found(self) -> jax.Array:
        """Whether this is a maximum, up to rounding."""
        return self.slope**2 < NEAR_MODE * self.u.size


class _Search(NamedTuple):
    """`products` (colors, D) are those of minus the Hessian; `damping` scales its diagonal."""

    u: jax.Array
    value: jax.Array
    gradient: jax.Array
    products: jax.Array
    damping: jax.Array
    num_steps: jax.Array
    done: jax.Array


def find_mode(structure: Structure, density: Density, u: jax.Array, enough: float = 0.0) -> Mode:
    """Climb from `u` (D,) to a maximum of `density`, whose Hessian has the given structure.

    With `enough`, only until the squared step left, in standard deviations and per latent, is
    below it; `u` itself may do.
    """
    law_of: Any = LAWS[type(structure)]
    colors = jnp.asarray(structure.colors)
    diagonal = colors == jnp.arange(structure.num_colors)[:, None]

    def look(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.grad(density)(u), -compressed_hessian(structure, density, u)

    def law_at(u: jax.Array, gradient: jax.Array, products: jax.Array) -> GaussianLaw:
        return law_of.around(structure, structure.unpack(products), u, gradient)

    def step(search: _Search) -> _Search:
        size = jnp.sum(jnp.where(diagonal, jnp.abs(search.products), 0.0), axis=0)
        size = jnp.maximum(size, jnp.abs(search.gradient))  # else steps longer than 1 / damping
        size = jnp.maximum(size, 1e-6 * jnp.mean(size))
        raised = search.products + jnp.where(diagonal, search.damping * size, 0.0)
        new = law_at(search.u, search.gradient, raised).center
        promised = search.gradient @ (new - search.u)
        value = density(new)
        noise = 8 * jnp.finfo(u.dtype).eps * (1 + jnp.abs(search.value))
        close = (search.damping == 0) & (promised < max(CLOSE, enough) * u.size)
        good = (promised >= 0) & jnp.isfinite(value)
        good &= close | (value >= search.value + 1e-4 * promised - noise)
        gradient, products = jax.lax.cond(
            good, look, lambda _: (search.gradient, search.products), new
        )
        lower = jnp.where(search.damping > 1e-3, search.damping / 10, 0.0)
        return _Search(
            jnp.where(good, new, search.u),
            jnp.where(good, value, search.value),
            gradient,
            products,
            jnp.where(good, lower, jnp.maximum(10 * search.damping, 0.1)),
            search.num_steps + 1,
            (good & close) | (search.damping > 1e12),
        )

    gradient, products = look(u)
    left = gradient @ (law_at(u, gradient, products).center - u) if enough else jnp.inf
    done = jnp.asarray((left >= 0) & (left < enough * u.size))
    zero = jnp.zeros((), u.dtype)
    start = _Search(u, density(u), gradient, products, zero, jnp.zeros((), int), done)
    end = jax.lax.while_loop(lambda s: ~s.done & (s.num_steps < MAX_STEPS), step, start)
    law = law_at(end.u, end.gradient, end.products)
    rest = end.gradient @ (law.center - end.u)
    slope = jnp.where(rest >= 0, jnp.sqrt(jnp.abs(rest)), jnp.nan)
    return Mode(end.u, law, slope, end.num_steps)


def law_near(structure: Structure, density: Density, mode: Mode) -> Any:
    """The Gaussian law at the mode of `density`, differentiable once in what that depends on.

    The mode follows by one Newton step from `mode`, the precision is minus the Hessian there.
    """
    moved = mode.u + mode.law.solve(jax.grad(density)(mode.u))
    precision = structure.unpack(-compressed_hessian(structure, density, moved))
    return LAWS[type(structure)].around(structure, precision, moved, jnp.zeros_like(moved))


@compiled(static_argnums=0)
def mode_of(
    structure: Structure, problem: Problem, params: Params, u: jax.Array
) -> tuple[Mode, jax.Array, jax.Array]:
    """The mode found from `u` (D,), the log-joint there, and its gradient, (D,); compiled."""

    density = problem.density(params)

    mode = find_mode(structure, density, u)
    return mode, density(mode.u), jax.grad(density)(mode.u)


def first_mode(
    flag: str,
    rng_key: jax.Array,
    structure: Structure,
    problem: Problem,
    params: Params,
    num_starts: int = 1,
) -> Mode:
    """The highest of the modes found from the problem's start and from `num_starts` - 1 others.

    If there is none, a few more random starts are tried.

    Raises
    ------
    ModelError
        If none is found: the site where the gradient is largest.
    """
    best, height = None, -np.inf
    for count, key in enumerate(split(rng_key, max(num_starts, RANDOM_STARTS))):
        if count >= num_starts and best is not None:
            break
        start = problem.start
        if count:
            start = moved_by(start, jax.random.normal(key, start.shape, start.dtype))
        mode, value, gradient = mode_of(structure, problem, params, start)
        if jax.device_get(mode).found and float(value) > height:
            best, height = mode, float(value)
    if best is not None:
        return best
    worst = int(np.argmax(np.nan_to_num(np.abs(np.asarray(gradient)), nan=np.inf)))
    raise ModelError(
        f"Site '{site_names(problem)[worst]}': no mode of the latents was found at the initial "
        f"parameters, which e_step='{flag}' needs: the log-joint may grow without bound, or start "
        f"too far away. Use `init_params`, or e_step='nuts'."
    )
