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
from ppl_em.result.header import VERSION, check_shapes, checked_header, stored_params
from ppl_em.result.latents_table import Layout
from ppl_em.result.names import changed, distinct, in_tree
from ppl_em.result.netcdf import read_tree, unreadable
from ppl_em.result.restarts import Optimum, Restarts
from ppl_em.result.status import Status
from ppl_em.result.uncertainty import Uncertainty, Unconstrained
from ppl_em.util import ModelError, as_key, check_option, whole

if TYPE_CHECKING:
    import xarray

Arrays = dict[str, np.ndarray]

AT_ESTIMATE = "posterior_at_estimate"
"""Group of draws of the latents with all parameters at their estimates."""

BY_LAW = (
    AT_ESTIMATE,
    "posterior_predictive",
    "sample_stats",
    "log_likelihood",
    "marginal_log_likelihood",
)
"""Groups that a tree of latents at the estimates has not."""


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
        history=_arrays(history, names),
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

    def datatree(self, result: "EMResult", at_estimate: bool = False) -> "xarray.DataTree":
        """The tree that was saved, or what of it has latents at the estimates."""
        groups = {name: node.to_dataset() for name, node in self.tree.children.items()}
        groups["/"] = self.tree.to_dataset()
        if AT_ESTIMATE not in groups:  # files of version 2 have nothing else
            groups.pop("log_likelihood", None)  # that of latents at the estimates misleads `loo`
        elif at_estimate:
            groups["posterior"] = groups[AT_ESTIMATE]
            groups = {name: group for name, group in groups.items() if name not in BY_LAW}
        return xarray_tree(groups)

    def uncertainty(self) -> Uncertainty:
        """The covariance and Monte Carlo errors that were saved."""
        group = self.tree["uncertainty"].to_dataset()
        free = None
        if "observed_information" in self.tree:
            known = self.tree["observed_information"].to_dataset()
            names = ("estimate", "covariance", "information", "score")
            labels = tuple(map(str, known["coordinate"].values))
            free = Unconstrained(labels, *(known[name].values for name in names))
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
            free,
            group["repeated"].values.astype(bool) if "repeated" in group else None,
        )


@dataclass(frozen=True)
class StoredPosterior:
    """The latents' stored draws, (chain, draw, ...), and probabilities, of a loaded result."""

    tree: "xarray.DataTree" = field(repr=False)
    latents: list[str] | None = None
    names: dict[str, str] = field(default_factory=dict, repr=False)
    unbounded: tuple[str, ...] = ()

    def sample(self, rng_key: jax.Array, num_samples: int) -> Arrays:
        """Resample the stored draws; each site has shape (num_samples, *site_shape)."""
        check_option("num_samples", num_samples, whole())
        rng_key = as_key(rng_key)
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
        return self._group("responsibilities")

    def layouts(self) -> dict[str, Layout]:
        """Axes, labels and kind of every site."""
        where = AT_ESTIMATE if AT_ESTIMATE in self.tree else "posterior"
        group, found = self.tree[where].to_dataset(), {}
        there = {name: tree_name for tree_name, name in self.names.items()}
        for site in self._names():
            array = group[there.get(site, site)]
            dims = tuple(map(str, array.dims[2:]))
            labels = tuple(array[dim].values for dim in dims)  # 0, 1, ... where there are none
            found[site] = Layout(dims, labels, site in self.unbounded, self._support(site))
        return found

    def _support(self, site: str) -> np.ndarray | None:
        """The values of a discrete site; None for others."""
        if "responsibilities" not in self.tree:
            return None
        there = {name: tree_name for tree_name, name in self.names.items()}.get(site, site)
        group = self.tree["responsibilities"].to_dataset()
        return group[f"{there}_state"].values if there in group else None

    def _group(self, name: str) -> Arrays:
        if name not in self.tree:
            return {}
        return _arrays(self.tree[name], self.names)

    def _flat(self) -> Arrays:
        group = self._group(AT_ESTIMATE if AT_ESTIMATE in self.tree else "posterior")
        return {n: group[n].reshape(-1, *group[n].shape[2:]) for n in self._names()}

    def _names(self) -> list[str]:
        """The latent sites."""
        latents = self.latents
        if latents is None:  # files of version 1
            latents = self.tree["posterior"].attrs["latents"].split(",")
        return [*filter(None, latents)]


def header(result: EMResult) -> dict[str, Any]:
    """What a file holds beside arrays, as plain JSON."""
    return {
        "version": VERSION,
        "log_likelihood": list(result.log_likelihood),
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
        _arrays(traces.isel(restart=i, iteration=slice(count)), names)
        for i, count in enumerate(record["num_steps"])
    )
    return Restarts(**found)


def xarray_tree(groups: dict[str, "xarray.Dataset"]) -> "xarray.DataTree":
    """A tree of these groups."""
    import xarray

    return xarray.DataTree.from_dict(groups)


def _arrays(group: Any, names: dict[str, str]) -> Arrays:
    """The variables of a group, under the names that they had before they came into a tree."""
    return {names.get(str(k), str(k)): values.values for k, values in group.data_vars.items()}


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
