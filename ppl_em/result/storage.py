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
from ppl_em.result.likelihood_ratio import Counts
from ppl_em.result.names import changed, distinct, in_tree
from ppl_em.result.netcdf import read_tree, unreadable
from ppl_em.result.restarts import Optimum, Restarts
from ppl_em.result.status import Status
from ppl_em.result.uncertainty import Uncertainty
from ppl_em.util import ModelError, as_key, check_option, whole

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
        posterior=StoredPosterior(tree, header.get("latents"), header.get("names", {})),
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
        raise _without_model("audit")

    def evaluated(self, result: "EMResult", *options: Any) -> Any:
        """Refuse: it runs the model."""
        raise _without_model("at")

    def predict(self, result: "EMResult", *options: Any) -> Any:
        """Refuse: it runs the model."""
        raise _without_model("predict")

    def model(self) -> None:
        """It is not there."""

    def inquiry(self, what: str) -> Any:
        """Refuse: what is asked for runs the model."""
        raise ModelError(
            f"`result.{what}`: this fit was loaded from a file, which does not hold the model. Ask "
            f"a fit before it is saved, or fit again from `init_params=result.params`."
        )

    def counts(self) -> Counts:
        """The numbers that were saved."""
        return Counts(*self._counted[:3])

    def num_groups(self) -> tuple[int, str]:
        """The number that was saved, and why it is not known."""
        number, why = self._counted[3:]
        return number, why

    @property
    def _counted(self) -> list[Any]:
        found = json.loads(self.tree.attrs["ppl_em"]).get("counts")
        if found is None:
            raise ModelError(
                "`result.counts`: the file was written by an older ppl_em, which kept no numbers "
                "of parameters and observations. Fit again from `init_params=result.params`."
            )
        return list(found)

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


def _without_model(method: str) -> ModelError:
    return ModelError(
        f"`result.{method}`: this fit was loaded from a file, which does not hold the model. Ask "
        f"a fit before it is saved, or fit again from `init_params=result.params`."
    )


@dataclass(frozen=True)
class StoredPosterior:
    """The latents' stored draws, (chain, draw, ...), and probabilities, of a loaded result."""

    tree: "xarray.DataTree" = field(repr=False)
    latents: list[str] | None = None
    names: dict[str, str] = field(default_factory=dict, repr=False)

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

    def _group(self, name: str) -> Arrays:
        if name not in self.tree:
            return {}
        return _arrays(self.tree[name], self.names)

    def _flat(self) -> Arrays:
        latents = self.latents
        if latents is None:  # files of version 1
            latents = self.tree["posterior"].attrs["latents"].split(",")
        group = self._group("posterior")
        return {n: group[n].reshape(-1, *group[n].shape[2:]) for n in filter(None, latents)}


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
        _arrays(traces.isel(restart=i, iteration=slice(count)), names)
        for i, count in enumerate(record["num_steps"])
    )
    return Restarts(**found)


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
