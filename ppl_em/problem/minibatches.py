"""The log-joint estimated from a mini-batch: fresh rows of every sub-sampled plate."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.util import log_density

from ppl_em.discrete import factors, marginalization
from ppl_em.params import Params
from ppl_em.problem.problem import Problem
from ppl_em.problem.subsampling import Indices, NoBatchesError, Plate, Rows, Whole, whole_error
from ppl_em.util import ModelError

logger = logging.getLogger("ppl_em")


class Coordinates(NamedTuple):
    """Unconstrained latents of a batch: where they are in `u` (D,), and how much each counts.

    `places` and `scales` have shape (d,); `shapes` are those of the sites in the batch.
    """

    places: jax.Array
    scales: np.ndarray
    shapes: dict[str, tuple[int, ...]]


def plates_of(problem: Problem) -> tuple[Plate, ...]:
    """The sub-sampled plates of the model."""
    model = problem.spec.model
    return model.plates if isinstance(model, Whole) else ()


def arguments(problem: Problem) -> tuple[tuple, dict[str, Any]]:
    """The model's `(args, kwargs)`, with arrays of NumPy as such that traced rows may index."""

    def indexable(leaf: Any) -> Any:
        numeric = isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fiub"
        return jnp.asarray(leaf) if numeric else leaf

    with jax.ensure_compile_time_eval():
        return jax.tree.map(indexable, problem.arguments)


def draw_rows(rng_key: jax.Array, problem: Problem) -> Indices:
    """Rows of every sub-sampled plate, one from each of B equal stretches of the N rows.

    A row is in the batch B / N times on average, also where B does not divide N: stretches are of
    equal length on a grid of N B points, B to each row.
    """
    indices = {}
    plates = plates_of(problem)
    for key, (name, size, batch) in zip(
        jax.random.split(rng_key, len(plates)), plates, strict=True
    ):
        whole, rest = np.divmod(np.arange(batch) * size, batch)
        point = jax.random.randint(key, (batch,), 0, size, jnp.int32)
        indices[name] = jnp.asarray(whole, int) + (jnp.asarray(rest, jnp.int32) + point) // batch
    return indices


def coordinates(problem: Problem, indices: Indices) -> Coordinates:
    """Which latents a batch has."""
    plates = {plate.name: plate for plate in plates_of(problem)}
    places, scales, shapes = [], [], {}
    offset = 0
    for site in problem.spec.latents:
        count = len(site.shape_u)
        owners = {axis + count: plates[name] for name, axis in site.plates if name in plates}
        grid, scale = jnp.asarray(offset), 1.0
        for axis, size in enumerate(site.shape_u):
            rows = jnp.arange(size)
            if axis in owners and size == owners[axis].size:
                rows, scale = indices[owners[axis].name], scale * owners[axis].scale
            stride = int(np.prod(site.shape_u[axis + 1 :]))
            grid = grid[..., None] + rows * stride
        places.append(jnp.ravel(grid))
        scales.append(np.full(grid.size, scale))
        shapes[site.name] = grid.shape
        offset += int(np.prod(site.shape_u))
    return Coordinates(jnp.concatenate(places), np.concatenate(scales), shapes)


def log_joint_unconstrained(
    problem: Problem, params: Params, u: jax.Array, indices: Indices
) -> jax.Array:
    """An unbiased estimate of `Problem.log_joint_unconstrained`; a scalar.

    Parameters
    ----------
    problem, params
        A problem with sub-sampled plates, and its parameters.
    u
        The latents of the batch, shape (d,), as `coordinates` lays them out.
    indices
        Of the plates.
    """
    places, scales, shapes = coordinates(problem, indices)
    extra = jnp.zeros(())
    if problem.spec.idle is not None:
        full, density = problem.without_idle(jnp.zeros_like(problem.start).at[places].set(u))
        u, extra = full[places], jnp.sum(scales * density[places])
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])[:-1]
    parts = zip(shapes.items(), jnp.split(u, ends), strict=True)
    values = {name: jnp.reshape(part, shape) for (name, shape), part in parts}
    return _estimate(problem, params, {}, values, indices) + extra


def log_joint(
    problem: Problem, params: Params, latents: dict[str, jax.Array], indices: Indices
) -> jax.Array:
    """An unbiased estimate of `Problem.log_joint`; latents have all rows or the batch's."""
    return _estimate(problem, params, latents, {}, indices)


def _estimate(
    problem: Problem,
    params: Params,
    latents: dict[str, jax.Array],
    unconstrained: dict[str, jax.Array],
    indices: Indices,
) -> jax.Array:
    def density(inputs: tuple, data: tuple[Problem, Indices]) -> jax.Array:
        (params, latents, unconstrained), (own, indices) = inputs, data
        spec, plates = own.spec, plates_of(own)
        model = spec.model.model if isinstance(spec.model, Whole) else spec.model
        values = {**params, **own.fixed, **latents}
        discrete = bool(spec.discrete)
        args, kwargs = arguments(own)
        program = Rows(model, plates, indices, values, unconstrained, unscaled=discrete)
        if not discrete:
            return log_density(program, args, kwargs, {})[0] + program.log_jacobian
        tables = factors.log_factors(program, spec.first_available_dim, args, kwargs, {})
        _check_inside(tables.layout, plates)
        scales = {plate.name: plate.scale for plate in plates}
        return jnp.sum(marginalization.log_terms(tables, scales)) + program.log_jacobian

    return problem.smooth(density, (params, latents, unconstrained), (problem, indices))


def _check_inside(layout: factors.Layout, plates: tuple[Plate, ...]) -> None:
    """Raise if a sum over a discrete site reaches across the rows of a plate."""
    variables = dict(layout.variables)
    for _, names in layout.names:
        for name in {*names} & {*variables}:
            for plate in plates:
                if plate.name in names and plate.name not in variables[name].plates:
                    raise NoBatchesError(
                        f"has a discrete site '{name}' that the rows of '{plate.name}' share"
                    )


def check_batches(problem: Problem, bound: Callable[..., jax.Array], params: Params) -> bool:
    """Whether gradients can be estimated from mini-batches of the sub-sampled plates.

    Parameters
    ----------
    problem
        Whose plates it is about.
    bound
        A function of the problem, its parameters and the indices.
    params
        Parameters.

    Raises
    ------
    ModelError
        If the model does not run on a mini-batch.
    """
    plates = plates_of(problem)
    if not plates:
        return False

    def estimate(problem: Problem, params: Params) -> jax.Array:
        return bound(problem, params, draw_rows(jax.random.key(0), problem))

    try:
        jax.eval_shape(estimate, problem, params)
    except NoBatchesError as error:
        logger.warning("Mini-batches are not used, as the model %s: gradients see all rows.", error)
        return False
    except ModelError:
        raise
    except (ValueError, TypeError) as error:
        raise whole_error(plates[0], str(error).split("\n")[0].rstrip(".")) from error
    return True
