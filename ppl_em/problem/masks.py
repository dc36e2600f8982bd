"""Masks and scales: masked arrays, masked discrete latents that data see, weights of rows."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ppl_em.discrete import mask_of, partly_scaled, reached, scaled
from ppl_em.params import Params
from ppl_em.problem.arguments import named_leaves
from ppl_em.problem.checks import Site, Trace
from ppl_em.problem.problem import Problem
from ppl_em.util import ModelError, site_error

AROUND = (0.0, 0.5, 1.0)
"""Distances from the start, unconstrained, at which dependence is looked for."""


def check_masked_arrays(model: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raise if an argument is a NumPy masked array that masks something: JAX would not see it."""
    for name, leaf in named_leaves(model, args, kwargs):
        if _hides(leaf):
            raise ModelError(
                f"Argument '{name}': it is a NumPy masked array of which {_hides(leaf)} entries "
                f"are masked, and JAX does not see such masks. Pass `a.filled(0)` and "
                f"`~numpy.ma.getmaskarray(a)`, and put the observed site in "
                f"`numpyro.handlers.mask(mask=...)` with the latter."
            )


def check_masked_values(trace: Trace) -> None:
    """Raise if an observed site was given such an array from elsewhere."""
    for name, site in trace.items():
        if site["type"] == "sample" and site["is_observed"] and _hides(site["value"]):
            raise site_error(
                name,
                f"its `obs` is a NumPy masked array of which {_hides(site['value'])} entries are "
                f"masked, and JAX does not see such masks",
                "Use `a.filled(0)`, and put the site in `numpyro.handlers.mask(mask=...)`",
            )


def is_masked(site: Site) -> bool:
    """Whether a site has cells that are masked."""
    mask = mask_of(site["fn"])
    return mask is not True and not bool(np.all(mask))


def check_masks(problem: Problem, values: Params, trace: Trace) -> None:
    """Raise if a masked cell of a discrete latent reaches a density that is not masked.

    What is in no density at all is a fact of the tables; it is looked for at several parameters
    and continuous latents, as a dependence may vanish at one.
    """
    if not any(is_masked(trace[site.name]) for site in problem.spec.discrete):
        return
    found = first_found(problem, values, reached)
    if found is not None:
        raise site_error(
            found[0],
            f"some of its cells are masked, but the log-density of site '{found[1]}', which is "
            f"not masked there, depends on their values. A masked latent has no distribution that "
            f"they could be summed by",
            "Leave the latent unmasked and mask the observed site only; or give what is known of "
            "it as probabilities of 0 and 1, as `numpyro.factor` with -inf, or as `dist.Delta`; "
            "or put known and unknown cells in two plates",
        )


def first_found(
    problem: Problem, values: Params, search: Callable[..., tuple[str, str] | None]
) -> tuple[str, str] | None:
    """What `search` finds in the tables at the start, or near it."""
    args, kwargs = problem.arguments
    x, rng = problem.unconstrain(values), np.random.default_rng(0)
    for distance in AROUND:
        away = distance * rng.normal(size=x.shape)
        params = problem.constrain(x + away.astype(x.dtype))
        u = problem.start + distance * rng.normal(size=problem.start.shape)
        known = {**params, **problem.constrain_latents(params, u.astype(problem.start.dtype))}
        dim = problem.spec.first_available_dim
        found = search(problem.spec.model, dim, args, kwargs, known)
        if found is not None:
            return found
    return None


def _hides(leaf: Any) -> int:
    return int(np.sum(np.ma.getmaskarray(leaf))) if isinstance(leaf, np.ma.MaskedArray) else 0


def is_weighted(site: Site) -> bool:
    """Whether a `numpyro.handlers.scale` that is not 1 is around a site."""
    return scaled(site) and not bool(np.all(np.asarray(site["scale"]) == 1))


def check_scales(problem: Problem, values: Params, trace: Trace) -> None:
    """Raise if a scale is over a latent and does not weight its marginal density.

    Over a discrete latent and all that hangs on it, it does: `elimination.weighted`.
    """
    for latent in problem.spec.latents:
        if is_weighted(trace[latent.name]):
            raise site_error(
                latent.name,
                "a `numpyro.handlers.scale` is around this continuous latent, which would be a "
                "power inside of its integral, not a weight",
                "Repeat the rows or groups as often as they count (`numpy.repeat`); or scale the "
                "observed sites alone, if a power of their density is meant",
            )
    if not any(scaled(trace[site.name]) for site in problem.spec.discrete):
        return
    found = first_found(problem, values, partly_scaled)
    if found is None:
        return
    site, other = found
    if site == other:
        fact = (
            "the `numpyro.handlers.scale` around it changes along its `scan`, or is over part of it"
        )
    else:
        fact = f"the `numpyro.handlers.scale` around it is not that of site '{other}', which hangs "
        fact += "together with it"
    raise site_error(
        site,
        f"{fact}, so it weights no marginal density",
        "Put one `scale` around the latent and all that depends on it, constant within each cell "
        "of the latent's plates; or repeat the rows (`numpy.repeat`)",
    )
