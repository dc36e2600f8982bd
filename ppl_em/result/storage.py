"""Fits on disk: what a file holds beside ArviZ's groups, and how it is read back."""

import json
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ppl_em.params import ActiveConstraint, Boundary, Params
from ppl_em.posterior import LogLikelihood
from ppl_em.result.certificate import Certificate
from ppl_em.result.em_result import EMResult
from ppl_em.result.restarts import Optimum, Restarts
from ppl_em.result.status import Status
from ppl_em.result.uncertainty import Uncertainty
from ppl_em.util import ModelError

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
    tree, header, log_likelihood, params = _read(path)
    record, history = header.get("restarts"), tree["em_trace"].to_dataset()
    restarts = None if record is None else _restarts(record, history, params)
    if restarts is not None:
        history = history.isel(restart=restarts.best, iteration=slice(header["num_steps"]))
    return EMResult(
        params=params,
        log_likelihood=log_likelihood,
        status=Status[header["status"]],
        num_steps=header["num_steps"],
        history=_arrays(history),
        posterior=StoredPosterior(tree),
        e_step=header["e_step"],
        seconds=header["seconds"],
        parts=StoredParts(tree),
        boundary={k: Boundary(*where) for k, where in header.get("boundary", {}).items()},
        penalties=header.get("penalties", {}),
        degeneracy=header.get("degeneracy", ""),
        certificate=Certificate.of(header.get("certificate")),
        restarts=restarts,
    )


@dataclass(frozen=True)
class StoredParts:
    """What a loaded result computes from: its file."""

    tree: "xarray.DataTree" = field(repr=False)

    def audit(self, result: "EMResult", rng_key: jax.Array, e_step: Any) -> Any:
        """Refuse: an audit runs the model."""
        raise ModelError(
            "`result.audit`: this fit was loaded from a file, which does not hold the model. Audit "
            "a fit before it is saved, or fit again from `init_params=result.params`."
        )

    def datatree(self, result: "EMResult") -> "xarray.DataTree":
        """The tree that was saved."""
        return self.tree

    def uncertainty(self) -> Uncertainty:
        """The covariance and Monte Carlo errors that were saved."""
        group = self.tree["uncertainty"].to_dataset()
        return Uncertainty(
            group["covariance"].values,
            group["mcse"].values,
            group["se_mcse"].values,
            group.attrs["method"],
            group.attrs["reason"],
            group.attrs.get("note", ""),
            tuple(
                ActiveConstraint(*each)
                for each in json.loads(group.attrs.get("active_constraints", "[]"))
            ),
            group["bounds"].values if "bounds" in group else None,
        )


@dataclass(frozen=True)
class StoredPosterior:
    """The latents' stored draws, (chain, draw, ...), and probabilities, of a loaded result."""

    tree: "xarray.DataTree" = field(repr=False)

    def sample(self, rng_key: jax.Array, num_samples: int) -> Arrays:
        """Resample the stored draws; each site has shape (num_samples, *site_shape)."""
        draws = self._flat()
        count = len(next(iter(draws.values()))) if draws else 0
        picked = np.asarray(jax.random.choice(rng_key, count, (num_samples,)))
        return {name: values[picked] for name, values in draws.items()}

    def mean(self) -> Arrays:
        """Stored means, of the stored draws for discrete sites; each of the site's shape."""
        means = {name: values.mean(axis=0) for name, values in self._flat().items()}
        return means | self._group("latent_mean")

    def sd(self) -> Arrays:
        """Stored standard deviations of continuous sites, each of the site's shape."""
        return self._group("latent_sd")

    def most_probable(self) -> Arrays:
        """Stored most probable values of discrete sites, each of the site's shape."""
        if "most_probable" not in self.tree:
            raise ModelError("`posterior.most_probable()`: not all latents are discrete.")
        return self._group("most_probable")

    def probs(self) -> Arrays:
        """Stored probabilities of discrete sites, (*plates, size of the support)."""
        if "responsibilities" not in self.tree:
            raise ModelError("`posterior.probs()`: the model has no discrete latents.")
        return {str(k): v.values for k, v in self.tree["responsibilities"].data_vars.items()}

    def _group(self, name: str) -> Arrays:
        if name not in self.tree:
            return {}
        return {str(k): v.values for k, v in self.tree[name].data_vars.items()}

    def _flat(self) -> Arrays:
        latents = self.tree["posterior"].attrs["latents"].split(",")
        group = self.tree["posterior"].data_vars
        return {n: group[n].values.reshape(-1, *group[n].shape[2:]) for n in latents if n in group}


def header(result: EMResult) -> dict[str, Any]:
    """What a file holds beside arrays, as plain JSON."""
    return {
        "version": 1,
        "log_likelihood": list(result.log_likelihood),
        "status": result.status.name,
        "num_steps": result.num_steps,
        "e_step": result.e_step,
        "seconds": result.seconds,
        "boundary": {label: list(where) for label, where in result.boundary.items()},
        "penalties": result.penalties,
        "degeneracy": result.degeneracy,
        "certificate": None if result.certificate is None else list(result.certificate),
        "restarts": None if result.restarts is None else _record(result.restarts),
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


def _restarts(record: dict[str, Any], traces: "xarray.Dataset", params: Params) -> Restarts:
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
        _arrays(traces.isel(restart=i, iteration=slice(count)))
        for i, count in enumerate(record["num_steps"])
    )
    return Restarts(**found)


def _arrays(group: "xarray.Dataset") -> Arrays:
    return {str(name): values.values for name, values in group.data_vars.items()}


def leaves(params: Params) -> tuple[list[Any], list[str]]:
    """The arrays of `params` and a name for each, in flattening order."""
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    names = [
        ".".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path) for path, _ in flat
    ]
    return [leaf for _, leaf in flat], names


def _encode(value: Any, counter: Any) -> Any:
    """The structure of nested dicts, lists and tuples, leaves numbered in flattening order."""
    if isinstance(value, dict):
        return {"dict": [[k, _encode(value[k], counter)] for k in sorted(value)]}
    if isinstance(value, list | tuple):
        return {"seq": [_encode(v, counter) for v in value], "tuple": isinstance(value, tuple)}
    return next(counter)


def _decode(node: Any, leaves: list[np.ndarray]) -> Any:
    if isinstance(node, int):
        return leaves[node]
    if "dict" in node:
        return {key: _decode(child, leaves) for key, child in node["dict"]}
    items = [_decode(child, leaves) for child in node["seq"]]
    return tuple(items) if node["tuple"] else items


def _read(path: Any) -> tuple["xarray.DataTree", dict[str, Any], LogLikelihood, Params]:
    """A saved file's tree, header, log-likelihood and parameters."""
    import xarray

    with xarray.open_datatree(path, engine="h5netcdf") as opened:
        tree = opened.load()
    if "ppl_em" not in tree.attrs:
        raise ModelError(f"File '{path}': not a fit saved by ppl_em. Write one with `save`.")
    header = json.loads(tree.attrs["ppl_em"])
    stored = tree["params"].to_dataset()
    leaves = [stored[name].values for name in header["leaves"]]
    params = _decode(header["params"], leaves)
    return tree, header, LogLikelihood(*header["log_likelihood"]), params
