"""A fit as an xarray.DataTree for ArviZ."""

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.params import Params
from ppl_em.posterior import WeightedDraws
from ppl_em.problem import Problem
from ppl_em.result.em_result import EMResult
from ppl_em.result.tree.coordinates import SAMPLE
from ppl_em.result.tree.names import changed, distinct
from ppl_em.result.tree.replay import BUDGET, Arrays, Replayed, replay
from ppl_em.result.tree.storage import header, leaves
from ppl_em.result.tree.stored import AT_ESTIMATE, xarray_tree
from ppl_em.result.tree.tree_groups import (
    constant_group,
    dims_in_tree,
    e_step_group,
    params_group,
    responsibilities_group,
    summary_groups,
    trace_group,
    uncertainty_groups,
)
from ppl_em.util import compiled, printable

if TYPE_CHECKING:
    import xarray

CHAINS, DRAWS = 4, 500
"""Shape of the exported draws where the posterior is sampled afresh."""

Words = dict[str, str]

MARGINAL = "data"
"""Name of the variable in group `marginal_log_likelihood`."""


@dataclass(frozen=True, eq=False)
class JointDraws:
    """n draws of parameters and latents, in chains one after the other.

    Attributes
    ----------
    params
        Leaves (n, ...) on the model's own scale, all parameters.
    told
        The same with those at a bound on it, where the model may not be defined.
    latents
        All sites, (n, *site_shape).
    chains
        Their number.
    stats
        Of each draw, (n,).
    marginal
        Log-likelihoods of independent groups of the data, latents integrated out, (n, G); None if
        they are not known. `groups` names their dimension.
    pointwise
        Whether rows given the latents and parameters may be compared by leave-one-out: the
        parameters vary, the latents are drawn given them, and none is discrete.
    words
        How they were drawn.
    """

    params: Params
    told: Params
    latents: Arrays
    chains: int
    stats: Arrays = field(default_factory=dict)
    marginal: np.ndarray | None = None
    groups: str = "group"
    pointwise: bool = False
    words: Words = field(default_factory=dict)

    def shaped(self, arrays: Arrays) -> Arrays:
        """From (n, ...) to (chain, draw, ...)."""
        return {
            k: np.asarray(v).reshape(self.chains, len(v) // self.chains, *np.shape(v)[1:])
            for k, v in arrays.items()
        }


def to_datatree(
    result: EMResult, problem: Problem, alone: JointDraws, drawn: JointDraws | None = None
) -> "xarray.DataTree":
    """Export a fit, see `EMResult.to_datatree`.

    Group `posterior` is `drawn`; without it, the latents at the fitted parameters, `alone`.
    """
    import xarray
    from arviz_base import dict_to_dataset

    key = jax.random.fold_in(result.posterior.rng_key, 1)
    here = replay(problem, alone.params, alone.latents)
    replayed = here
    if drawn is not None:
        replayed = replay(problem, drawn.params, drawn.latents, key, drawn.pointwise)
    namer = _Namer(result, problem, replayed)
    groups: dict[str, Any] = {}

    def add(name: str, arrays: Arrays, words: Words, leading: int = 2) -> None:
        if arrays:
            dims = namer.dims(arrays, leading)
            shaped = {namer.names[k]: v for k, v in arrays.items()}
            sample_dims = [*SAMPLE[:leading]]
            group = dict_to_dataset(shaped, dims=dims, sample_dims=sample_dims)
            groups[name] = group.assign_attrs(words)

    def latents(of: JointDraws, where: Replayed) -> Arrays:
        return of.shaped({**_hide_idle(problem, of.latents), **where.deterministic})

    if drawn is not None:
        own = drawn.shaped(namer.leaves(drawn.told))
        add("posterior", {**own, **latents(drawn, replayed)}, drawn.words)
        add("posterior_predictive", drawn.shaped(replayed.predictive), drawn.words)
        add("log_likelihood", drawn.shaped(replayed.log_likelihood), drawn.words)
        groups["sample_stats"] = dict_to_dataset(drawn.shaped(drawn.stats))
        groups |= _marginal(drawn, namer)
    estimate = "posterior" if drawn is None else AT_ESTIMATE
    words = {"parameters": "held at their estimates, see group `params`"}
    add(estimate, latents(alone, here), words)
    groups.setdefault(estimate, xarray.Dataset())
    add("observed_data", replayed.observed, {}, 0)
    constant = constant_group(problem, replayed.observed.values(), namer.plates)
    if constant is not None:
        groups["constant_data"] = constant
    groups["em_trace"] = trace_group(result)
    groups["e_step_stats"] = e_step_group(result, alone.shaped(alone.stats))
    groups["params"] = params_group(result)
    groups |= uncertainty_groups(result)
    if problem.spec.discrete:
        groups["responsibilities"] = responsibilities_group(result, problem, namer.names)
    groups |= summary_groups(result, problem, namer.names)
    unbounded = [name for name, one in result.posterior.layouts().items() if one.unbounded]
    record = header(result) | {"latents": list(alone.latents), "names": changed(namer.names)}
    record["unbounded"] = unbounded
    groups["/"] = xarray.Dataset(attrs={"ppl_em": json.dumps(record)})
    for group in groups.values():
        group.attrs |= _versions()
    return xarray_tree(groups)


class _Namer:
    """Names of sites, of leaves of parameters and of dimensions, as the tree has them."""

    def __init__(self, result: EMResult, problem: Problem, replayed: Replayed) -> None:
        latents = [*problem.latent_names, *(site.name for site in problem.spec.discrete)]
        sites = list(dict.fromkeys([*latents, *replayed.names]))
        own = leaves(result.params)[1]
        once = list(dict.fromkeys([*sites, *own, *replayed.plates]))
        self.names = dict(zip(once, distinct(once), strict=True))
        self.own = own
        self.replayed = replayed
        self.plates = {self.names[k]: size for k, size in replayed.plates.items() if size}

    def leaves(self, params: Params) -> Arrays:
        """The leaves of the parameters by name."""
        return dict(zip(self.own, leaves(params)[0], strict=True))

    def dims(self, arrays: Arrays, leading: int) -> dict[Any, Sequence[Any]]:
        """Names of the dimensions after `leading` sample dimensions, where they are known."""
        known = self.replayed.dims
        return {
            self.names[k]: dims_in_tree(k, known[k], self.names)[: np.ndim(v) - leading]
            for k, v in arrays.items()
            if k in known
        }


def _marginal(drawn: JointDraws, namer: _Namer) -> dict[str, Any]:
    """The log-likelihood by group.

    As `log_likelihood` too where rows given their latents have none that is right, or where each
    row is a group: latents that one row alone tells of are no knowledge about it if it is left out.
    """
    from arviz_base import dict_to_dataset

    if drawn.marginal is None:
        return {}
    dim = namer.names.get(drawn.groups, drawn.groups)
    observed = namer.replayed.observed
    rows = [k for k, v in observed.items() if v.shape == drawn.marginal.shape[1:]]
    is_row = len(observed) == len(rows) == 1 and namer.replayed.dims[rows[0]] == [drawn.groups]

    def group(name: str) -> Any:
        values = drawn.shaped({name: cast(np.ndarray, drawn.marginal)})
        return dict_to_dataset(values, dims={name: [dim]}).assign_attrs(drawn.words)

    found = {"marginal_log_likelihood": group(MARGINAL)}
    if is_row or not drawn.pointwise:
        found["log_likelihood"] = group(namer.names[rows[0]] if is_row else MARGINAL)
        found["log_likelihood"].attrs["latents"] = "integrated out, by group of the data"
    return found


def draws_at_estimate(result: EMResult, problem: Problem) -> JointDraws:
    """Draws of all latents at the fitted parameters: those of the E-step, or fresh ones."""
    latents = result.posterior
    key_draws, key_discrete = jax.random.split(latents.rng_key)
    shapes = [s.shape for s in problem.spec.latents] + [s.shape for s in problem.spec.discrete]
    width = sum(int(np.prod(shape)) for shape in shapes)
    if not latents.inner.by_draws:
        draws = max(1, min(DRAWS, BUDGET // (CHAINS * max(width, 1))))
        sampled = latents.sample(key_draws, CHAINS * draws)
        return held(result, sampled, CHAINS, CHAINS * draws)
    own = cast(WeightedDraws, latents.inner)
    chains, draws = own.draws.shape[:2]
    step = max(1, chains * draws * width // BUDGET)
    u = own.draws[:, ::step]
    stats = {k: np.asarray(v[:, ::step]).ravel() for k, v in own.stats.items()}
    stats["lp"] = np.asarray(_log_joints(problem, latents.params, u)).ravel()
    flat = u.reshape(-1, u.shape[-1])
    sampled = jax.vmap(lambda v: problem.constrain_latents(latents.params, v))(flat)
    sampled = latents.with_discrete(key_discrete, sampled, len(flat))
    return held(result, sampled, chains, len(flat), stats)


@compiled
def _log_joints(problem: Problem, params: Params, u: jax.Array) -> jax.Array:
    return jax.vmap(jax.vmap(problem.density(params)))(u)


def held(
    result: EMResult,
    latents: dict[str, Any],
    chains: int,
    size: int,
    stats: Arrays | None = None,
) -> JointDraws:
    """Draws (n, ...) of the latents, with all parameters held at their estimates."""

    def repeated(leaf: Any) -> np.ndarray:
        return np.broadcast_to(leaf, (size, *np.shape(leaf)))

    params, told = (jax.tree.map(repeated, p) for p in (result.posterior.params, result.params))
    values = {name: np.asarray(draws) for name, draws in latents.items()}
    return JointDraws(params, told, values, chains, stats or {})


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


def _versions() -> dict[str, str]:
    """What made the tree, and when."""
    found = {"inference_library": "ppl_em", "created_at": datetime.now(UTC).isoformat()}
    names = {"ppl_em": "inference_library_version", "numpyro": "numpyro", "jax": "jax"}
    for name, key in names.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "unknown"
        found[key if key.endswith("version") else f"{key}_version"] = printable(version)
    return found
