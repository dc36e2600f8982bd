"""A fit as an xarray.DataTree for ArviZ, and to disk and back."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import distributions as dist
from numpyro import handlers

from ppl_em.inspection import site_dims
from ppl_em.likelihood import LogLikelihood
from ppl_em.params import Params
from ppl_em.posterior import WeightedDraws
from ppl_em.problem import Problem
from ppl_em.uncertainty import Uncertainty
from ppl_em.validation import ModelError

if TYPE_CHECKING:
    import xarray

    from ppl_em.result import EMResult

CHAINS, DRAWS = 4, 500
"""Shape of the exported draws where the posterior is sampled afresh."""

BUDGET = 20_000_000
"""Exported numbers, at most, per group; larger models get fewer draws."""

Arrays = dict[str, np.ndarray]


def to_datatree(result: "EMResult", problem: Problem) -> "xarray.DataTree":
    """Export a fit.

    Groups: `posterior` (latent and deterministic sites, chain x draw), `sample_stats`,
    `log_likelihood` (pointwise, given the latents), `observed_data`, `em_trace` (dim
    `iteration`), `params` (estimates, standard errors, Monte Carlo errors, covariance), and
    `responsibilities` where there are discrete latents.
    """
    import xarray
    from arviz_base import dict_to_dataset

    draws, stats = _draws(result, problem)
    replayed = _replay(problem, result.params, draws)
    groups: dict[str, Any] = {}
    posterior = {**_hide_idle(problem, draws), **replayed.deterministic}
    dims = replayed.dims
    for name, arrays in (("posterior", posterior), ("sample_stats", stats)):
        groups[name] = dict_to_dataset(arrays, dims=_known(dims, arrays))
    if replayed.log_likelihood:
        pointwise = replayed.log_likelihood
        groups["log_likelihood"] = dict_to_dataset(pointwise, dims=_known(dims, pointwise))
    observed = replayed.observed
    groups["observed_data"] = dict_to_dataset(
        observed, dims=_known(dims, observed, 0), sample_dims=[]
    )
    groups["em_trace"] = _trace_dataset(result)
    groups["params"] = _params_dataset(result)
    if problem.spec.discrete:
        groups["responsibilities"] = _responsibilities(result, problem)
    groups["posterior"].attrs["latents"] = ",".join(draws)
    groups["/"] = xarray.Dataset(attrs={"ppl_em": json.dumps(_header(result))})
    return xarray.DataTree.from_dict(groups)


def save(result: "EMResult", path: Any) -> None:
    """Write the DataTree of `result` to a netCDF file."""
    result.to_datatree().to_netcdf(path, engine="h5netcdf")


@dataclass(frozen=True)
class StoredParts:
    """What a loaded result computes from: its file."""

    tree: "xarray.DataTree" = field(repr=False)

    def datatree(self, result: "EMResult") -> "xarray.DataTree":
        """The tree that was saved."""
        return self.tree

    def uncertainty(self) -> Uncertainty:
        """The covariance and Monte Carlo errors that were saved."""
        group = self.tree["params"].to_dataset()
        return Uncertainty(
            group["covariance"].values,
            group["mcse"].values,
            group.attrs["method"],
            group.attrs["reason"],
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
        """Means of the stored draws, each of the site's shape."""
        return {name: values.mean(axis=0) for name, values in self._flat().items()}

    def probs(self) -> Arrays:
        """Stored probabilities of discrete sites, (*plates, size of the support)."""
        if "responsibilities" not in self.tree:
            raise ModelError("`posterior.probs()`: the model has no discrete latents.")
        return {str(k): v.values for k, v in self.tree["responsibilities"].data_vars.items()}

    def _flat(self) -> Arrays:
        latents = self.tree["posterior"].attrs["latents"].split(",")
        group = self.tree["posterior"].data_vars
        return {n: group[n].values.reshape(-1, *group[n].shape[2:]) for n in latents if n in group}


def read(path: Any) -> tuple["xarray.DataTree", dict[str, Any], LogLikelihood, Params]:
    """Read a file written by `save`: its tree, header, log-likelihood and parameters.

    Raises
    ------
    ModelError
        If the file is not a saved fit.
    """
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


@dataclass(frozen=True)
class _Replayed:
    deterministic: Arrays
    log_likelihood: Arrays
    observed: Arrays
    dims: dict[str, list[str]]


def _draws(result: "EMResult", problem: Problem) -> tuple[Arrays, Arrays]:
    """Draws of all latents, (chain, draw, *site_shape), and of the sampler's statistics."""
    latents = result.posterior
    key_draws, key_discrete = jax.random.split(latents.rng_key)
    shapes = [s.shape for s in problem.spec.latents] + [s.shape for s in problem.spec.discrete]
    width = sum(int(np.prod(shape)) for shape in shapes)
    if isinstance(latents.inner, WeightedDraws):
        chains, draws = latents.inner.draws.shape[:2]
        step = max(1, chains * draws * width // BUDGET)
        u = latents.inner.draws[:, ::step]
        stats = {k: np.asarray(v[:, ::step]) for k, v in latents.inner.stats.items()}
        chains, draws = u.shape[:2]
        flat = u.reshape(-1, u.shape[-1])
        sampled = jax.vmap(lambda v: problem.constrain_latents(result.params, v))(flat)
        sampled = latents.with_discrete(key_discrete, sampled, len(flat))
    else:
        chains, stats = CHAINS, {}
        draws = max(1, min(DRAWS, BUDGET // (chains * max(width, 1))))
        sampled = latents.sample(key_draws, chains * draws)
    shaped = {k: np.asarray(v).reshape(chains, draws, *v.shape[1:]) for k, v in sampled.items()}
    if not stats:
        stats = {"lp": np.full((chains, draws), result.log_likelihood.value)}
    if isinstance(latents.inner, WeightedDraws):
        lp = _log_joints(problem, result.params, u)
        stats["lp"] = np.asarray(lp)
    return shaped, stats


@jax.jit
def _log_joints(problem: Problem, params: Params, u: jax.Array) -> jax.Array:
    return jax.vmap(jax.vmap(lambda v: problem.log_joint_unconstrained(params, v)))(u)


def _replay(problem: Problem, params: Params, draws: Arrays) -> _Replayed:
    """Run the model at every draw: deterministic sites and pointwise log-likelihoods."""

    def trace(problem: Problem, latents: dict[str, Any]) -> dict[str, Any]:
        program = handlers.substitute(problem.at(params), data=latents)
        arguments = problem.arguments
        return handlers.trace(handlers.seed(program, 0)).get_trace(*arguments[0], **arguments[1])

    first = {name: jnp.asarray(values[0, 0]) for name, values in draws.items()}
    sites = trace(problem, first)
    deterministic = [k for k, s in sites.items() if s["type"] == "deterministic"]
    observed = {k: sites[k] for k in problem.spec.observed if not _is_factor(sites[k])}
    size = sum(int(np.prod(np.shape(s["value"]))) for s in observed.values())
    count = next(iter(draws.values())).shape[:2] if draws else (1, 1)
    pointwise = list(observed) if size * np.prod(count) <= BUDGET else []

    @jax.jit
    def replay(problem: Problem, latents: Arrays) -> tuple[Arrays, Arrays]:
        def one(latents: dict[str, Any]) -> tuple[dict, dict]:
            sites = trace(problem, latents)
            terms = {k: sites[k]["fn"].log_prob(sites[k]["value"]) for k in pointwise}
            return {k: sites[k]["value"] for k in deterministic}, terms

        if not draws:
            return jax.tree.map(lambda v: v[None, None], one({}))
        return jax.vmap(jax.vmap(one))(latents)

    values, terms = jax.device_get(replay(problem, {k: jnp.asarray(v) for k, v in draws.items()}))
    dims = {}
    for name, site in sites.items():
        if site["type"] == "sample" and not _is_factor(site):
            dims[name] = list(site_dims(site, np.shape(site["value"])))
    data = {k: np.asarray(site["value"]) for k, site in observed.items()}
    return _Replayed(values, terms, data, dims)


def _is_factor(site: dict[str, Any]) -> bool:
    fn = site["fn"]
    return isinstance(getattr(fn, "base_dist", fn), dist.Unit)


def _hide_idle(problem: Problem, draws: Arrays) -> Arrays:
    """Put NaN where a latent coordinate stands for nothing (imputation where observed)."""
    if problem.spec.idle is None:
        return draws
    idle = problem.unravel(jnp.asarray(problem.spec.idle.value))
    hidden = dict(draws)
    for site in problem.spec.latents:
        if site.shape == site.shape_u:
            hidden[site.name] = np.where(np.asarray(idle[site.name]), np.nan, draws[site.name])
    return hidden


def _trace_dataset(result: "EMResult") -> Any:
    import xarray

    iterations = np.arange(1, result.num_steps + 1)
    variables = {}
    for name, values in result.history.items():
        extra = [f"{name}_dim_{i}" for i in range(values.ndim - 1)]
        variables[name] = (["iteration", *extra], values)
    return xarray.Dataset(variables, coords={"iteration": iterations})


def _params_dataset(result: "EMResult") -> Any:
    import xarray

    leaves, names = _leaves(result.params)
    variables: dict[str, Any] = {
        name: ([f"{name}_dim_{i}" for i in range(np.ndim(leaf))], np.asarray(leaf))
        for name, leaf in zip(names, leaves, strict=True)
    }
    uncertainty = result.uncertainty
    pair = ["parameter", "parameter_"]
    variables["covariance"] = (pair, uncertainty.covariance)
    variables["se"] = (["parameter"], np.sqrt(np.diag(uncertainty.covariance)))
    variables["mcse"] = (["parameter"], uncertainty.mcse)
    return xarray.Dataset(
        variables,
        coords=dict.fromkeys(pair, result.labels),
        attrs={"method": uncertainty.method, "reason": uncertainty.reason},
    )


def _responsibilities(result: "EMResult", problem: Problem) -> Any:
    import xarray

    variables, coords = {}, {}
    for site in problem.spec.discrete:
        probs = result.posterior.probs()[site.name]
        dims = [*site.dims[: probs.ndim - 1], f"{site.name}_state"]
        variables[site.name] = (dims, probs)
        if site.values.value.ndim == 1:
            coords[f"{site.name}_state"] = site.values.value
    return xarray.Dataset(variables, coords=coords)


def _header(result: "EMResult") -> dict[str, Any]:
    return {
        "version": 1,
        "log_likelihood": list(result.log_likelihood),
        "status": result.status.name,
        "num_steps": result.num_steps,
        "e_step": result.e_step,
        "seconds": result.seconds,
        "leaves": _leaves(result.params)[1],
        "params": _encode(result.params, iter(range(10**9))),
    }


def _leaves(params: Params) -> tuple[list[Any], list[str]]:
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


def _known(
    dims: dict[str, list[str]], arrays: Arrays, leading: int = 2
) -> dict[Any, Sequence[Any]]:
    """Names of the dimensions after `leading` sample dimensions, where they are known."""
    return {k: dims[k][: np.ndim(v) - leading] for k, v in arrays.items() if k in dims}
