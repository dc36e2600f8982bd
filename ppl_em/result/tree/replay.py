"""A model run again at draws of its parameters and latents: what its other sites are there."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from ppl_em.params import Params
from ppl_em.problem import Problem, is_factor, site_dims
from ppl_em.util import by_chunks, compiled

BUDGET = 20_000_000
"""Exported numbers, at most, per group; larger models get fewer draws, or have no such group."""

SIDE_BY_SIDE, AT_ONCE = 40, 1_000_000
"""Draws that are looked at side by side, and numbers of their observed sites, at most."""

Arrays = dict[str, np.ndarray]
Site = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Replayed:
    """Sites at n draws: arrays (n, *site_shape), and names of their dimensions.

    `log_likelihood` is pointwise, given parameters and latents; `predictive` are new data. Both are
    empty where they were not asked for or would be too large. `observed` are the data.
    """

    deterministic: Arrays
    log_likelihood: Arrays
    predictive: Arrays
    observed: Arrays
    dims: dict[str, list[str]]

    @property
    def names(self) -> list[str]:
        """All sites."""
        return list(dict.fromkeys([*self.deterministic, *self.observed, *self.dims]))

    @property
    def plates(self) -> dict[str, int]:
        """Dimensions with a name of their own, plates and time, and their sizes."""
        found: dict[str, int] = {}
        for site, dims in self.dims.items():
            value = self.observed.get(site)
            shape = value.shape if value is not None else (0,) * len(dims)
            for i, (dim, size) in enumerate(zip(dims, shape, strict=False)):
                if dim != f"{site}_dim_{i}":
                    found[dim] = max(size, found.get(dim, 0))
        return found


def replay(
    problem: Problem,
    params: Params,
    latents: dict[str, Any],
    rng_key: jax.Array | None = None,
    pointwise: bool = False,
) -> Replayed:
    """Run the model at n draws, leaves of `params` and `latents` (n, ...).

    With a key new data are drawn, given the latents and parameters of the draw; a value that
    depends on an earlier one of its series in a `scan` is drawn given that one in the data.
    """
    count = len(jax.tree.leaves((params, latents))[0])
    sites = _sites(problem, *jax.tree.map(lambda v: jnp.asarray(v[0]), (params, latents)))
    observed = {k: sites[k] for k in problem.spec.observed if not is_factor(sites[k])}
    size = sum(int(np.prod(np.shape(s["value"]))) for s in observed.values())
    fits = tuple(observed) if size * count <= BUDGET else ()
    drawn = fits if rng_key is not None and _can_draw(problem, params, latents, fits) else ()
    named = tuple(k for k, s in sites.items() if s["type"] == "deterministic")
    wanted = named, fits if pointwise else (), drawn
    values: tuple[Arrays, Arrays, Arrays] = {}, {}, {}
    if any(wanted):
        keys = jax.random.split(jax.random.key(0) if rng_key is None else rng_key, count)
        draws = jax.tree.map(np.asarray, (params, latents))
        side = max(1, min(SIDE_BY_SIDE, AT_ONCE // max(size, 1)))
        program = partial(_replayed, *wanted, problem)
        values = by_chunks(program, (draws, keys), side)
    data = {k: np.asarray(site["value"]) for k, site in observed.items()}
    return Replayed(*values, data, _dims_of(sites))


@compiled(static_argnums=(0, 1, 2))
def _replayed(
    deterministic: tuple[str, ...],
    pointwise: tuple[str, ...],
    predicted: tuple[str, ...],
    problem: Problem,
    inputs: tuple[tuple[Params, dict[str, Any]], jax.Array],
) -> tuple[Arrays, Arrays, Arrays]:
    def one(values: tuple[Params, dict[str, Any]], key: jax.Array) -> tuple[Any, Any, Any]:
        params, latents = values
        sites = _sites(problem, params, latents)
        terms = {k: sites[k]["fn"].log_prob(sites[k]["value"]) for k in pointwise}
        new = _predicted(problem, predicted, values, key)
        return {k: sites[k]["value"] for k in deterministic}, terms, new

    found: tuple = jax.vmap(one)(*inputs)
    return found


def _sites(problem: Problem, params: Params, latents: dict[str, Any]) -> dict[str, Site]:
    program = handlers.substitute(problem.at(params), data=latents)
    args, kwargs = problem.arguments
    return handlers.trace(handlers.seed(program, 0)).get_trace(*args, **kwargs)


def _predicted(
    problem: Problem, names: Sequence[str], values: tuple[Params, dict[str, Any]], key: jax.Array
) -> dict[str, jax.Array]:
    """New data of the sites `names`."""
    if not names:
        return {}
    params, latents = values
    program = handlers.substitute(problem.at(params), data=latents)
    args, kwargs = problem.arguments
    trace = handlers.trace(handlers.uncondition(handlers.seed(program, key)))
    sites = trace.get_trace(*args, **kwargs)
    return {name: sites[name]["value"] for name in names}


def _can_draw(
    problem: Problem, params: Params, latents: dict[str, Any], names: Sequence[str]
) -> bool:
    """Whether all laws of the data have a sampler."""
    first = jax.tree.map(lambda v: jnp.asarray(v[0]), (params, latents))
    try:
        jax.eval_shape(partial(_predicted, problem, names), first, jax.random.key(0))
    except NotImplementedError:
        return False
    return True


def _dims_of(sites: dict[str, Site]) -> dict[str, list[str]]:
    """Names of the axes of sample sites, parameters and deterministic values."""
    found = {}
    for name, site in sites.items():
        if site["type"] in ("sample", "deterministic", "param") and not is_factor(site):
            leaves = jax.tree.leaves(site["value"])
            if len(leaves) == 1:
                found[name] = list(site_dims(site, np.shape(leaves[0])))
    return found
