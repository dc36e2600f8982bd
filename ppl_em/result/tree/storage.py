"""Fits on disk: what a file holds beside ArviZ's groups, and how it is read back."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ppl_em.params import Boundary, Params
from ppl_em.posterior import LogLikelihood
from ppl_em.result.certificate import Certificate
from ppl_em.result.em_result import EMResult
from ppl_em.result.restarts import Optimum, Restarts
from ppl_em.result.status import Status
from ppl_em.result.tree.header import VERSION, check_shapes, checked_header, stored_params
from ppl_em.result.tree.names import changed, distinct, in_tree
from ppl_em.result.tree.netcdf import read_tree, unreadable
from ppl_em.result.tree.stored import AT_ESTIMATE, StoredParts, StoredPosterior, arrays_of

if TYPE_CHECKING:
    import xarray

Arrays = dict[str, np.ndarray]


def load(path: Any) -> EMResult:
    """Read a fit back from a file written by `EMResult.save`.

    Everything but the model itself comes back: `posterior.sample` resamples the stored draws.

    Raises
    ------
    ModelError
        If the file is not a saved fit.

    Examples
    --------
    With the `result` of the example of `ppl_em.EM`:

    >>> from ppl_em import load
    >>> result.save("fit.nc")
    >>> print(load("fit.nc").log_likelihood)
    -8.319266 (exact)
    """
    tree = read_tree(path)
    try:
        return _result(tree, checked_header(tree.attrs))
    except Exception as error:
        raise unreadable(path, error) from error


def _result(tree: "xarray.DataTree", header: dict[str, Any]) -> EMResult:
    """What the file holds, all of it read and looked at."""
    needed = {"posterior"} | ({AT_ESTIMATE} if header["version"] > 2 else set())
    missing = needed - {*tree.children}
    if missing:
        raise ValueError(f"group '{min(missing)}' is missing")
    params = stored_params(header, tree["params"].to_dataset())
    record, history = header.get("restarts"), tree["em_trace"].to_dataset()
    names = header.get("history", {})
    restarts = None if record is None else _restarts(record, history, params, names)
    if restarts is not None:
        history = history.isel(restart=restarts.best, iteration=slice(header["num_steps"]))
    result = EMResult(
        params=params,
        log_likelihood=LogLikelihood(*header["log_likelihood"]),
        status=Status[header["status"]],
        num_steps=header["num_steps"],
        history=arrays_of(history, names),
        posterior=StoredPosterior(
            tree,
            header.get("latents"),
            header.get("names", {}),
            tuple(header.get("unbounded", ())),
        ),
        e_step=header["e_step"],
        seconds=header["seconds"],
        parts=StoredParts(tree),
        boundary={k: Boundary(*where) for k, where in header.get("boundary", {}).items()},
        penalties=header.get("penalties", {}),
        degeneracy=header.get("degeneracy", ""),
        e_step_reason=header.get("e_step_reason", ""),
        certificate=Certificate.of(header.get("certificate")),
        restarts=restarts,
    )
    check_shapes(result)
    return result


def header(result: EMResult) -> dict[str, Any]:
    """What a file holds beside arrays, as plain JSON."""
    return {
        "version": VERSION,
        "log_likelihood": list(result.log_likelihood),
        "counts": [*result.counts, *result._groups],
        "status": result.status.name,
        "num_steps": result.num_steps,
        "e_step": result.e_step,
        "seconds": result.seconds,
        "boundary": {label: list(where) for label, where in result.boundary.items()},
        "penalties": result.penalties,
        "degeneracy": result.degeneracy,
        "e_step_reason": result.e_step_reason,
        "certificate": None if result.certificate is None else list(result.certificate),
        "restarts": None if result.restarts is None else _record(result.restarts),
        "history": changed(in_tree(result.history)),
        "leaves": leaves(result.params)[1],
        "params": _encode(result.params, iter(range(10**9))),
    }


def _record(restarts: Restarts) -> dict[str, Any]:
    """The table of restarts as plain JSON, parameters flattened; histories are in `em_trace`."""
    names = [f.name for f in fields(Restarts) if f.name not in ("optima", "histories")]
    record = {name: np.asarray(getattr(restarts, name)).tolist() for name in names}
    optima = [
        {**vars(one), "params": np.asarray(ravel_pytree(one.params)[0]).tolist()}
        for one in restarts.optima
    ]
    return {**record, "optima": optima}


def _restarts(
    record: dict[str, Any], traces: "xarray.Dataset", params: Params, names: dict[str, str]
) -> Restarts:
    """The table of restarts that `_record` wrote."""
    arrays = ("log_likelihood", "objective", "cluster", "degenerate", "num_steps", "seconds")
    found = record | {name: np.array(record[name]) for name in arrays}
    found |= {name: tuple(record[name]) for name in ("status", "message")}
    unravel = ravel_pytree(jax.tree.map(jnp.asarray, params))[1]
    found["optima"] = tuple(
        Optimum(
            **one | {"params": unravel(jnp.asarray(one["params"])), "starts": tuple(one["starts"])}
        )
        for one in record["optima"]
    )
    found["histories"] = tuple(
        arrays_of(traces.isel(restart=i, iteration=slice(count)), names)
        for i, count in enumerate(record["num_steps"])
    )
    return Restarts(**found)


def leaves(params: Params) -> tuple[list[Any], list[str]]:
    """The arrays of `params` and a name for each, all different, in flattening order."""
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    names = [
        ".".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path) for path, _ in flat
    ]
    return [leaf for _, leaf in flat], distinct(names)


def _encode(value: Any, counter: Any) -> Any:
    """The structure of nested dicts, lists and tuples, leaves numbered in flattening order."""
    if isinstance(value, dict):
        return {"dict": [[k, _encode(value[k], counter)] for k in sorted(value)]}
    if isinstance(value, list | tuple):
        return {"seq": [_encode(v, counter) for v in value], "tuple": isinstance(value, tuple)}
    return next(counter)
