"""Hessians by differences of gradients, taken over lengths that suit the function."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

AIM = 0.2
"""Power of the rounding unit that a difference aims at which was too long or too short.

In units of 1 / sqrt(curvature), which are standard errors if of a log-likelihood: 7e-4.
"""

SHORT = 0.6
"""Power that is too short: few digits are left."""

LONG = 30.0
"""Factor of the aim that is too long: what is further off may be another matter."""

FACTOR = 1e3
"""At most so much shorter at a time."""

MOST = 6e-3
"""At most so long, relative to 1 + |x|, if made longer: near its end a coordinate is flat."""

MAX_PASSES = 5
"""Rounds of differences."""


def hessian(
    gradient: Callable[[jax.Array], jax.Array], x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Hessian at `x` (p,) by central differences of a gradient, symmetric, (p, p); their widths.

    About nine digits in double precision. Next to second derivatives by automatic
    differentiation it compiles in half the time, and stays finite where they do not: at
    structural zeros, such as the density of a detection at an unoccupied site.

    Differences are taken anew where curvatures show that they were too long or too short: the
    coordinates of x may have units.
    """
    found, width = _rounds(gradient, x, jnp.zeros((0, x.size), x.dtype))
    return from_differences(found, width), width


def gradients_and_hessians(
    gradients: Callable[[jax.Array], jax.Array], x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Of several functions at once, (m, p) and (m, p, p); the first says how far to go."""
    found, width = _rounds(gradients, x, x[None])
    return found[-1], jax.vmap(from_differences, in_axes=(1, None))(found[:-1], width)


def _rounds(
    gradient: Callable[[jax.Array], jax.Array], x: jax.Array, more: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradients around `x` (p,), then those at points `more` (k, p); and the widths, (p,)."""

    def look(width: jax.Array) -> jax.Array:
        return jax.lax.map(gradient, jnp.concatenate([points_around(x, width), more]))

    def body(carry: tuple) -> tuple:
        _, _, width, count = carry
        found = look(width)
        around = found[: 2 * x.size].reshape(2 * x.size, -1)[:, : x.size]
        return found, width, suitable_widths(around, width, x), count + 1

    shape = jax.eval_shape(look, x)
    first = first_widths(x)
    start = jnp.zeros(shape.shape, shape.dtype), jnp.zeros_like(x), first, jnp.zeros((), int)
    found, width, _, _ = jax.lax.while_loop(
        lambda carry: jnp.any(carry[1] != carry[2]) & (carry[3] < MAX_PASSES), body, start
    )
    return found, width


def hessian_on_host(
    gradients: Callable[[np.ndarray], np.ndarray], x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same by a function of points (2p, p) to as many gradients; and the widths (p,) taken."""
    better = first_widths(x)
    for _ in range(MAX_PASSES):
        width = better
        found = gradients(points_around(x, width))
        better = suitable_widths(found, width, x)
        if np.all(better == width):
            break
    return from_differences(found, width), width


def units(curvature: Any) -> Any:
    """1 / sqrt(curvature) of each coordinate, (p,), from the diagonal of a Hessian; else 1."""
    xnp = np if isinstance(curvature, np.ndarray) else jnp
    usable = xnp.isfinite(curvature) & (curvature != 0)
    return xnp.where(usable, abs(xnp.where(usable, curvature, 1.0)) ** -0.5, 1.0)


def first_widths(x: Any) -> Any:
    """How far off `x` (p,) gradients are taken at first, (p,). Arrays of JAX or NumPy."""
    return (float(jnp.finfo(x.dtype).eps) ** (1 / 3) * (1 + abs(x))).astype(x.dtype)


def points_around(x: Any, width: Any) -> Any:
    """`x` (p,) moved by `width` (p,) ahead and back in each coordinate, (2p, p)."""
    xnp = np if isinstance(x, np.ndarray) else jnp
    return xnp.concatenate([x + xnp.diag(width), x - xnp.diag(width)])


def from_differences(found: Any, width: Any) -> Any:
    """The Hessian (p, p) from gradients at `points_around`, (2p, p), of JAX or NumPy."""
    matrix = _slopes(found, width)
    return (matrix + matrix.T) / 2


def suitable_widths(found: Any, width: Any, x: Any) -> Any:
    """Better widths (p,), given the gradients (2p, p) that the present ones led to.

    The same where they are good, or cannot be made any better.
    """
    xnp = np if isinstance(x, np.ndarray) else jnp
    slopes, eps = _slopes(found, width), float(jnp.finfo(x.dtype).eps)
    curvature = abs(xnp.diagonal(slopes))
    sane = xnp.all(xnp.isfinite(slopes), axis=1)
    root = xnp.sqrt(xnp.where(sane & (curvature > 0), curvature, 1.0))
    aim = eps**AIM
    good = (width * root > eps**SHORT) & (width * root < LONG * aim)
    most = xnp.maximum(MOST * (1 + abs(x)), width)
    better = xnp.clip(aim / root, width / FACTOR, most)
    better = xnp.where(good | (curvature == 0), width, better)
    return xnp.where(sane, better, width / FACTOR).astype(x.dtype)


def _slopes(found: Any, width: Any) -> Any:
    ahead, behind = found.reshape(2, -1, found.shape[-1])
    with np.errstate(invalid="ignore"):  # what is not finite stays so
        return (ahead - behind) / (2 * width[:, None])
