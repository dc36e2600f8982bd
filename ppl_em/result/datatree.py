"""A fit as an xarray.DataTree for ArviZ."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from ppl_em.params import Params
from ppl_em.posterior import WeightedDraws
from ppl_em.problem import Problem, is_factor, site_dims
from ppl_em.result.em_result import EMResult
from ppl_em.result.names import changed, distinct, in_tree
from ppl_em.result.storage import header, leaves
from ppl_em.util import compiled, printable

if TYPE_CHECKING:
    import xarray

CHAINS, DRAWS = 4, 500
"""Shape of the exported draws where the posterior is sampled afresh."""

BUDGET = 20_000_000
"""Exported numbers, at most, per group; larger models get fewer draws."""

Arrays = dict[str, np.ndarray]


def to_datatree(result: EMResult, problem: Problem) -> "xarray.DataTree":
    """Export a fit.

    Groups: `posterior` (latent and deterministic sites, chain x draw), `sample_stats`,
    `log_likelihood` (pointwise, given the latents), `observed_data`, `em_trace` (dim
    `iteration`, and `restart` after several starts), `params`, `uncertainty` (covariance,
    standard and Monte Carlo errors); where there are continuous latents `latent_mean` and
    `latent_sd`; where there are discrete ones `responsibilities`, and `most_probable` if all are.
    """
    import xarray
    from arviz_base import dict_to_dataset

    draws, stats = _draws(result, problem)
    replayed = _replay(problem, result.posterior.params, draws)
    names = in_tree([*draws, *replayed.names, *replayed.plates])
    groups: dict[str, Any] = {}
    posterior = _renamed({**_hide_idle(problem, draws), **replayed.deterministic}, names)
    dims = {names[k]: _dims(k, v, names) for k, v in replayed.dims.items()}
    for name, arrays in (("posterior", posterior), ("sample_stats", stats)):
        groups[name] = dict_to_dataset(arrays, dims=_known(dims, arrays))
    if replayed.log_likelihood:
        pointwise = _renamed(replayed.log_likelihood, names)
        groups["log_likelihood"] = dict_to_dataset(pointwise, dims=_known(dims, pointwise))
    observed = _renamed(replayed.observed, names)
    groups["observed_data"] = dict_to_dataset(
        observed, dims=_known(dims, observed, 0), sample_dims=[]
    )
    groups["em_trace"] = _trace_dataset(result)
    groups["params"] = _params_dataset(result)
    groups["uncertainty"] = _uncertainty_dataset(result)
    if problem.spec.discrete:
        groups["responsibilities"] = _responsibilities(result, problem, names)
    groups |= _summaries(result, problem, names)
    record = header(result) | {"latents": list(draws), "names": changed(names)}
    groups["/"] = xarray.Dataset(attrs={"ppl_em": json.dumps(record)})
    return xarray.DataTree.from_dict(groups)


@dataclass(frozen=True)
class _Replayed:
    deterministic: Arrays
    log_likelihood: Arrays
    observed: Arrays
    dims: dict[str, list[str]]

    @property
    def names(self) -> list[str]:
        """All sites."""
        return [*self.deterministic, *self.observed, *self.dims]

    @property
    def plates(self) -> list[str]:
        """Dimensions with a name of their own."""
        return [d for k, v in self.dims.items() for i, d in enumerate(v) if d != f"{k}_dim_{i}"]


def _draws(result: EMResult, problem: Problem) -> tuple[Arrays, Arrays]:
    """Draws of all latents, (chain, draw, *site_shape), and of the sampler's statistics."""
    latents = result.posterior
    key_draws, key_discrete = jax.random.split(latents.rng_key)
    shapes = [s.shape for s in problem.spec.latents] + [s.shape for s in problem.spec.discrete]
    width = sum(int(np.prod(shape)) for shape in shapes)
    if latents.inner.by_draws:
        own = cast(WeightedDraws, latents.inner)
        chains, draws = own.draws.shape[:2]
        step = max(1, chains * draws * width // BUDGET)
        u = own.draws[:, ::step]
        stats = {k: np.asarray(v[:, ::step]) for k, v in own.stats.items()}
        chains, draws = u.shape[:2]
        flat = u.reshape(-1, u.shape[-1])
        sampled = jax.vmap(lambda v: problem.constrain_latents(result.posterior.params, v))(flat)
        sampled = latents.with_discrete(key_discrete, sampled, len(flat))
    else:
        chains, stats = CHAINS, {}
        draws = max(1, min(DRAWS, BUDGET // (chains * max(width, 1))))
        sampled = latents.sample(key_draws, chains * draws)
    shaped = {k: np.asarray(v).reshape(chains, draws, *v.shape[1:]) for k, v in sampled.items()}
    if not stats:
        stats = {"lp": np.full((chains, draws), result.penalised)}
    if latents.inner.by_draws:
        lp = _log_joints(problem, result.posterior.params, u)
        stats["lp"] = np.asarray(lp)
    return shaped, stats


@compiled
def _log_joints(problem: Problem, params: Params, u: jax.Array) -> jax.Array:
    return jax.vmap(jax.vmap(problem.density(params)))(u)


def _replay(problem: Problem, params: Params, draws: Arrays) -> _Replayed:
    """Run the model at every draw: deterministic sites and pointwise log-likelihoods."""

    def trace(problem: Problem, latents: dict[str, Any]) -> dict[str, Any]:
        program = handlers.substitute(problem.at(params), data=latents)
        arguments = problem.arguments
        return handlers.trace(handlers.seed(program, 0)).get_trace(*arguments[0], **arguments[1])

    first = {name: jnp.asarray(values[0, 0]) for name, values in draws.items()}
    sites = trace(problem, first)
    deterministic = [k for k, s in sites.items() if s["type"] == "deterministic"]
    observed = {k: sites[k] for k in problem.spec.observed if not is_factor(sites[k])}
    size = sum(int(np.prod(np.shape(s["value"]))) for s in observed.values())
    count = next(iter(draws.values())).shape[:2] if draws else (1, 1)
    pointwise = list(observed) if size * np.prod(count) <= BUDGET else []

    @compiled
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
        if site["type"] == "sample" and not is_factor(site):
            dims[name] = list(site_dims(site, np.shape(site["value"])))
    data = {k: np.asarray(site["value"]) for k, site in observed.items()}
    return _Replayed(values, terms, data, dims)


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


def _trace_dataset(result: EMResult) -> Any:
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


def _params_dataset(result: EMResult) -> Any:
    import xarray

    arrays, names = leaves(result.params)
    variables: dict[str, Any] = {
        name: ([f"{name}_dim_{i}" for i in range(np.ndim(leaf))], np.asarray(leaf))
        for name, leaf in zip(names, arrays, strict=True)
    }
    return xarray.Dataset(variables)


def _uncertainty_dataset(result: EMResult) -> Any:
    import xarray

    uncertainty = result.uncertainty
    pair = ["parameter", "parameter_"]
    variables: dict[str, Any] = {}
    variables["covariance"] = (pair, uncertainty.covariance)
    variables["se"] = (["parameter"], np.sqrt(np.diag(uncertainty.covariance)))
    variables["mcse"] = (["parameter"], uncertainty.mcse)
    variables["se_mcse"] = (["parameter"], uncertainty.se_mcse)
    if uncertainty.bounds is not None:
        variables["bounds"] = (["parameter", "end"], uncertainty.bounds)
    return xarray.Dataset(
        variables,
        coords=dict.fromkeys(pair, result.labels),
        attrs={
            "method": uncertainty.method,
            "reason": printable(uncertainty.reason),
            "note": printable(uncertainty.note),
            "active_constraints": json.dumps([list(c) for c in uncertainty.active]),
        },
    )


def _responsibilities(result: EMResult, problem: Problem, names: dict[str, str]) -> Any:
    import xarray

    variables, coords = {}, {}
    for site in problem.spec.discrete:
        probs = result.posterior.probs()[site.name]
        name = names[site.name]
        dims = [*_dims(site.name, site.dims[: probs.ndim - 1], names), f"{name}_state"]
        variables[name] = (dims, probs)
        if site.values.value.ndim == 1:
            coords[f"{name}_state"] = site.values.value
    return xarray.Dataset(variables, coords=coords)


def _summaries(result: EMResult, problem: Problem, to: dict[str, str]) -> dict[str, Any]:
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
            {to[k]: (_dims(k, sites[k][: v.ndim], to), v) for k, v in values.items()}
        )
        for group, values in found.items()
    }


def _renamed(arrays: Arrays, names: dict[str, str]) -> Arrays:
    return {names[name]: values for name, values in arrays.items()}


def _dims(site: str, dims: Sequence[str], names: dict[str, str]) -> list[str]:
    """Dimensions of a site as the tree names them."""
    own = {f"{site}_dim_{i}": f"{names[site]}_dim_{i}" for i in range(len(dims))}
    return [own.get(dim) or names.get(dim, dim) for dim in dims]


def _known(
    dims: dict[str, list[str]], arrays: Arrays, leading: int = 2
) -> dict[Any, Sequence[Any]]:
    """Names of the dimensions after `leading` sample dimensions, where they are known."""
    return {k: dims[k][: np.ndim(v) - leading] for k, v in arrays.items() if k in dims}
