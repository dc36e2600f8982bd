"""Groups of a fit's DataTree that belong to the estimates: traces, errors, means, the data."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ppl_em.problem import Problem, named_leaves
from ppl_em.result.em_result import EMResult
from ppl_em.result.tree.names import distinct
from ppl_em.result.tree.storage import leaves
from ppl_em.util import printable

if TYPE_CHECKING:
    import xarray

Arrays = dict[str, np.ndarray]


def dims_in_tree(site: str, dims: Sequence[str], names: dict[str, str]) -> list[str]:
    """Dimensions of a site as the tree names them."""
    own = {f"{site}_dim_{i}": f"{names[site]}_dim_{i}" for i in range(len(dims))}
    return [own.get(dim) or names.get(dim, dim) for dim in dims]


def trace_group(result: EMResult) -> "xarray.Dataset":
    """Histories: dim `iteration`, and `restart` after several starts."""
    import xarray

    dims, coords = ["iteration"], {"iteration": np.arange(1, result.num_steps + 1)}
    history = result.history
    if result.restarts is not None:
        length = max(result.restarts.num_steps)
        dims = ["restart", *dims]
        coords = {"restart": np.arange(len(result.restarts.status))}
        coords["iteration"] = np.arange(1, length + 1)
        traces = result.restarts.histories
        history = {
            name: np.stack([_padded(trace.get(name), values, length) for trace in traces])
            for name, values in history.items()
        }
    variables = {}
    for name, values in zip(distinct(list(history)), history.values(), strict=True):
        extra = [f"{name}_dim_{i}" for i in range(values.ndim - len(dims))]
        variables[name] = ([*dims, *extra], values)
    return xarray.Dataset(variables, coords=coords)


def _padded(values: np.ndarray | None, like: np.ndarray, length: int) -> np.ndarray:
    """A history with its first axis filled up to `length` by NaN, or by empty words."""
    blank = "" if like.dtype.kind == "U" else np.nan
    known = like[:0] if values is None else values
    rest = np.full((length - len(known), *like.shape[1:]), blank)
    return np.concatenate([known, rest])


def params_group(result: EMResult) -> "xarray.Dataset":
    """The estimates."""
    import xarray

    arrays, names = leaves(result.params)
    variables: dict[str, Any] = {
        name: ([f"{name}_dim_{i}" for i in range(np.ndim(leaf))], np.asarray(leaf))
        for name, leaf in zip(names, arrays, strict=True)
    }
    return xarray.Dataset(variables)


def uncertainty_groups(result: EMResult) -> dict[str, "xarray.Dataset"]:
    """Covariance and errors of the estimates; on the unconstrained scale, the information."""
    import xarray

    uncertainty = result.uncertainty
    pair = ["parameter", "parameter_"]
    variables: dict[str, Any] = {}
    variables["covariance"] = (pair, uncertainty.covariance)
    variables["se"] = (["parameter"], np.sqrt(np.diag(uncertainty.covariance)))
    variables["mcse"] = (["parameter"], uncertainty.mcse)
    variables["se_mcse"] = (["parameter"], uncertainty.se_mcse)
    if uncertainty.repeated is not None:
        variables["repeated"] = (["parameter"], uncertainty.repeated)
    if uncertainty.bounds is not None:
        variables["bounds"] = (["parameter", "end"], uncertainty.bounds)
    words = {
        "method": uncertainty.method,
        "reason": printable(uncertainty.reason),
        "note": printable(uncertainty.note),
        "active_constraints": json.dumps([list(c) for c in uncertainty.active]),
    }
    coords = dict.fromkeys(pair, result.labels)
    found = {"uncertainty": xarray.Dataset(variables, coords=coords, attrs=words)}
    free = uncertainty.free
    if free is not None:
        pair = ["coordinate", "coordinate_"]
        found["observed_information"] = xarray.Dataset(
            {
                "information": (pair, free.information),
                "covariance": (pair, free.covariance),
                "estimate": (pair[:1], free.x),
                "score": (pair[:1], free.score),
            },
            coords={dim: list(free.labels) for dim in pair},
            attrs={"scale": "unconstrained", "method": uncertainty.method},
        )
    return found


def responsibilities_group(
    result: EMResult, problem: Problem, names: dict[str, str]
) -> "xarray.Dataset":
    """Probabilities of every discrete site at the estimates."""
    import xarray

    variables, coords = {}, {}
    for site in problem.spec.discrete:
        probs = result.posterior.probs()[site.name]
        name = names[site.name]
        dims = [*dims_in_tree(site.name, site.dims[: probs.ndim - 1], names), f"{name}_state"]
        variables[name] = (dims, probs)
        if site.values.value.ndim == 1:
            coords[f"{name}_state"] = site.values.value
    return xarray.Dataset(variables, coords=coords)


def summary_groups(
    result: EMResult, problem: Problem, to: dict[str, str]
) -> dict[str, "xarray.Dataset"]:
    """Means and standard deviations of continuous sites; jointly most probable discrete values."""
    import xarray

    found: dict[str, Any] = {}
    sites = {site.name: site.dims for site in problem.spec.latents}
    sites |= {site.name: site.dims for site in problem.spec.discrete}
    names = [site.name for site in problem.spec.latents]
    if names:
        found["latent_mean"] = {k: result.posterior.mean()[k] for k in names}
        found["latent_sd"] = {k: result.posterior.sd()[k] for k in names}
    elif problem.spec.discrete:
        found["most_probable"] = result.posterior.most_probable()
    return {
        group: xarray.Dataset(
            {to[k]: (dims_in_tree(k, sites[k][: v.ndim], to), v) for k, v in values.items()}
        )
        for group, values in found.items()
    }


def e_step_group(result: EMResult, stats: Arrays) -> "xarray.Dataset":
    """What the E-step says at the estimates: the sampler of each draw, others of themselves."""
    import xarray

    common = {*result.params, "phase", "verdict", "decision", "seconds"}
    known = {k: v for k, v in result.history.items() if k not in common and np.ndim(v) == 1}
    variables: dict[str, Any] = {}
    for name, values in known.items():
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        if len(finite):  # Newton steps at the end say less than EM steps
            variables[name] = ([], finite[-1])
    variables |= {k: (["chain", "draw"], v) for k, v in stats.items()}
    return xarray.Dataset(variables, attrs={"e_step": result.e_step})


def constant_group(
    problem: Problem, observed: Iterable[np.ndarray], plates: dict[str, int]
) -> "xarray.Dataset | None":
    """The model's array arguments that are not observed, by name; None if there are none.

    An axis is called as the plate is that has its size, if one alone has.
    """
    import xarray

    known = [np.asarray(value) for value in observed]
    found = {}
    for name, leaf in named_leaves(problem.spec.model, *problem.arguments):
        if (
            not isinstance(leaf, jax.Array | np.ndarray)
            or np.asarray(leaf).dtype.kind not in "fiub"
        ):
            continue
        value = np.asarray(leaf)
        if value.size and not any(_same(value, other) for other in known):
            found[re.sub(r"\['?|\.", ".", name).replace("']", "").replace("]", "")] = value
    if not found:
        return None
    sizes = list(plates.values())
    only = {size: name for name, size in plates.items() if sizes.count(size) == 1}
    variables = {}
    for name, value in zip(distinct(list(found)), found.values(), strict=True):
        dims = [f"{name}_dim_{i}" for i in range(value.ndim)]
        for i, size in enumerate(value.shape):
            if only.get(size) and only[size] not in dims:
                dims[i] = only[size]
        variables[name] = (dims, value)
    return xarray.Dataset(variables)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(
        np.all((one == other) | ((one != one) & (other != other)))
    )
