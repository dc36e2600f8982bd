"""Which site and which row of the data have probability zero, in words."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer.util import compute_log_probs

from ppl_em.discrete import LOG_ZERO
from ppl_em.params import Params
from ppl_em.problem.problem import Latents, Problem
from ppl_em.util import brief


def impossible(problem: Problem, params: Params, latents: Latents) -> tuple[str, str] | None:
    """The first site whose log-density is not finite at `params` and `latents`, and the fact.

    Discrete latents have any value: a row counts if it is impossible under all of them. None if
    all is finite.
    """
    program, (args, kwargs) = handlers.seed(problem.at(params), 0), problem.arguments
    values = {**params, **latents}
    if not problem.spec.discrete:
        found, trace = compute_log_probs(program, args, kwargs, latents, sum_log_prob=False)
        tables = {name: np.asarray(table) for name, table in found.items()}
    else:
        if problem.spec.has_moving_supports:
            return None
        tables = _best(problem, params, latents)
        trace = handlers.trace(handlers.substitute(program, data=values)).get_trace(*args, **kwargs)
    for name, table in tables.items():
        bad = np.argwhere(~np.isfinite(table))
        if len(bad):
            return name, _fact(problem, trace.get(name), table, tuple(bad[0].tolist()))
    return _together(problem, params, latents) if problem.spec.discrete else None


def _best(problem: Problem, params: Params, latents: Latents) -> dict[str, np.ndarray]:
    """Tables by site at the most probable value of every discrete latent, over plates alone."""
    factors = problem.log_factors(params, latents)
    variables, found = dict(factors.layout.variables), {}
    for key, names in factors.layout.names:
        plates = [name in dict(factors.layout.plates) for name in names]
        table = np.asarray(factors.tables[key])
        best = table.max(axis=tuple(i for i, plate in enumerate(plates) if not plate))
        if variables:
            found[key] = np.where(best <= LOG_ZERO / 2, -np.inf, best)
    return {key.removesuffix("[0]"): found[key] for key in sorted(found, key=len, reverse=True)}


def _fact(problem: Problem, site: Any, table: np.ndarray, place: tuple[int, ...]) -> str:
    """What is wrong at one `place` of the table of a site."""
    value = table[place]
    fact = f"its log-density at the initial values is {float(value)}"
    if problem.spec.discrete:
        fact += " under every value of the discrete latents"
    if site is None or not site.get("is_observed"):
        return fact
    data = np.asarray(site["value"])
    if not data.size:  # a factor
        return fact
    rows = [i for i, size in zip(place, table.shape, strict=True) if size > 1]
    if len(rows) != len(place) or data.shape[: len(rows)] != table.shape:
        return f"{fact}; its values go from {brief(data.min())} to {brief(data.max())}"
    where = ", ".join(map(str, rows))
    row = f"row {where}" if rows else "its value"
    return f"{fact} at {row}, which is {brief(data[tuple(rows)])}"


def _together(problem: Problem, params: Params, latents: Latents) -> tuple[str, str] | None:
    """Sites that are possible one by one, but not together."""
    if bool(jnp.isfinite(problem.log_joint(params, latents))):
        return None
    return problem.spec.observed[-1], (
        "its data have probability 0 together with the other sites at the initial values: no value "
        "of the discrete latents is possible under all of them"
    )
