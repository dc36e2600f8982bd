"""Scales over latents: weights of rows, or what is refused."""

import numpy as np

from ppl_em.discrete import partly_scaled, scaled
from ppl_em.params import Params
from ppl_em.problem.checks import Site, Trace
from ppl_em.problem.masks import first_found
from ppl_em.problem.problem import Problem
from ppl_em.util import site_error


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
