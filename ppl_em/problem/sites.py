"""The sites of a model and their roles: all that is static about a problem."""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import numpy as np
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import Transform

from ppl_em.discrete import support_of
from ppl_em.params import ParamSpace, Restriction
from ppl_em.problem.arguments import Arguments
from ppl_em.problem.checks import Site, param_constraint
from ppl_em.util import Fingerprint, Static, Step, content_key


@dataclass(frozen=True)
class LatentSite:
    """One continuous latent site.

    `shape` is the site's, `shape_u` that of its unconstrained value, `plates` its plates as
    (name, axis counted from the right of `shape_u`). `support` is None where it changes with
    other latents and has to be read off a run of the model.
    """

    name: str
    support: Static | None
    shape: tuple[int, ...]
    shape_u: tuple[int, ...]
    plates: tuple[tuple[str, int], ...]
    dims: tuple[str, ...]

    @property
    def transform(self) -> Transform:
        """From unconstrained values to those of the site; only where the support is fixed."""
        if self.support is None:
            raise ValueError(f"the support of '{self.name}' moves with other latents")
        return biject_to(self.support.value)


@dataclass(frozen=True)
class DiscreteSite:
    """One discrete latent site, its plate dimensions and its support values."""

    name: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    values: Static
    in_scan: bool


@dataclass(frozen=True)
class ProblemSpec:
    """Everything static about a problem; hashable, so that compiled programs are shared.

    `program` is the fingerprint of what the model is when traced, see `fingerprint.py`: compiled
    programs are looked up by it, not by the function `model`, which may read what has changed.
    `scans` says whether steps of a `scan` are evaluated side by side, see `scans.py`; `idle` marks
    coordinates that touch nothing, shape (D,); `rough` names parameters to which the log-joint
    responds without a gradient; `restrictions` are constraints on functions of the parameters;
    `factors` are the observed `numpyro.factor` sites; `term_slopes` says whether a
    look at the log-joint tells the slopes of its terms too, see `derivatives.look`; `jumps` are
    operations through which the log-joint changes with a latent and its gradient does not;
    `gradients` is how often they can be taken of a model that has no other derivatives.
    """

    model: Callable = field(compare=False)
    arguments: Arguments
    space: ParamSpace
    latents: tuple[LatentSite, ...]
    discrete: tuple[DiscreteSite, ...]
    observed: tuple[str, ...]
    first_available_dim: int
    scans: bool = False
    idle: Static | None = None
    rough: tuple[str, ...] = ()
    restrictions: tuple[Restriction, ...] = ()
    factors: tuple[str, ...] = ()
    term_slopes: bool = False
    program: Fingerprint | None = None
    jumps: tuple[Step, ...] = ()
    gradients: int | None = None

    @property
    def has_moving_supports(self) -> bool:
        """Whether the support of a latent changes with other latents."""
        return any(site.support is None for site in self.latents)


def _latent_site(site: Site, fixed_support: bool) -> LatentSite:
    fn = site["fn"]
    transform = biject_to(fn.support)
    shape = np.shape(site["value"])
    shape_u = jax.eval_shape(transform.inv, site["value"]).shape
    event_u = len(shape_u) - (len(shape) - fn.event_dim)
    frames = sorted((f for f in site["cond_indep_stack"] if f.dim is not None), key=lambda f: f.dim)
    return LatentSite(
        site["name"],
        Static(fn.support, (type(fn.support).__name__, content_key(fn.support)))
        if fixed_support
        else None,
        shape,
        shape_u,
        tuple((f.name, f.dim - event_u) for f in frames),
        site_dims(site, shape),
    )


def _discrete_site(site: Site) -> DiscreteSite:
    shape = np.shape(site["value"])
    values = np.asarray(support_of(site["fn"]))
    return DiscreteSite(
        site["name"],
        shape,
        site_dims(site, shape),
        Static(values),
        "_scan_current_index" in site["infer"],
    )


def site_dims(site: Site, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Name every axis of a site: plates by their names, `time_T` in a scan, else `NAME_dim_i`."""
    names = [f"{site['name']}_dim_{i}" for i in range(len(shape))]
    if shape and "_scan_current_index" in site.get("infer", {}):
        names[0] = f"time_{shape[0]}"
    event = _event_dim(site)
    for frame in site["cond_indep_stack"]:
        axis = len(shape) - event + frame.dim if frame.dim is not None else -1
        if 0 <= axis < len(shape) and shape[axis] == frame.size:
            names[axis] = frame.name
    return tuple(names)


def _event_dim(site: Site) -> int:
    """Axes at the end of a site that no plate is."""
    if site["type"] == "sample":
        return int(site["fn"].event_dim)
    if site["type"] == "param":
        given = site["kwargs"].get("event_dim")
        return int(param_constraint(site).event_dim if given is None else given)
    return 0
