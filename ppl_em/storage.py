"""Fits on disk: what a file holds beside ArviZ's groups, and how it is read back."""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ppl_em.likelihood import LogLikelihood
from ppl_em.params import Params
from ppl_em.result import EMResult
from ppl_em.stopping import Status
from ppl_em.uncertainty import Uncertainty
from ppl_em.validation import ModelError

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
    """
    tree, header, log_likelihood, params = _read(path)
    trace = tree["em_trace"].data_vars
    return EMResult(
        params=params,
        log_likelihood=log_likelihood,
        status=Status[header["status"]],
        num_steps=header["num_steps"],
        history={str(name): values.values for name, values in trace.items()},
        posterior=StoredPosterior(tree),
        e_step=header["e_step"],
        seconds=header["seconds"],
        parts=StoredParts(tree),
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
        "leaves": leaves(result.params)[1],
        "params": _encode(result.params, iter(range(10**9))),
    }


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
