"""Latents whose support moves with other latents; with parameters it may not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints

from ppl_em.params import Params, ParamSpace
from ppl_em.problem.checks import Site, is_latent
from ppl_em.problem.trace import run_model
from ppl_em.util import compiled, content_key, site_error


@compiled(static_argnums=0)
def _shifted(space: ParamSpace, values: Params) -> Params:
    """Other valid values of the parameters, near the initial ones."""
    x = space.unconstrain(values)
    return space.constrain(x + 0.1 * (1 + jnp.arange(x.size) / (1 + x.size)))


def _support_key(site: Site) -> Any:
    support = site["fn"].support
    return (type(support).__name__, content_key(support), np.shape(site["value"]))


def _moving_supports(
    model, rng_key, args, kwargs, trace, space: ParamSpace, values: Params, fixed, continuous
) -> set[str]:
    """Latents whose support moves with other latents; raise if it moves with parameters."""
    supports = [trace[k]["fn"].support for k in continuous]
    supports += [s.constraint for s in space.sites if s.is_sample]
    if all(_has_no_numbers(support) for support in supports):
        return set()
    shifted = _shifted(space, values)
    at_same_latents = {k: s["value"] for k, s in trace.items() if is_latent(s) and k not in values}
    other = run_model(model, rng_key, args, kwargs, {**at_same_latents, **shifted, **fixed})
    moved = {k: _moved(s) for k, s in continuous.items()}
    drawn = run_model(model, rng_key, args, kwargs, {**at_same_latents, **moved, **values, **fixed})
    moving = set()
    for name in [*continuous, *(s.name for s in space.sites if s.is_sample)]:
        key = _support_key(trace[name])
        if name not in other or key != _support_key(other[name]):
            raise site_error(
                name,
                f"its support {trace[name]['fn'].support} or its shape changes with the parameters",
                "Rescale it: give the latent a fixed support (a unit interval, say) and apply the "
                "parameter afterwards",
            )
        if name in drawn and key != _support_key(drawn[name]):
            if name in space.names:
                raise site_error(
                    name,
                    "its support changes with other sites, so it cannot be in `map_sites`",
                    "Rescale it to a fixed support",
                )
            moving.add(name)
    return moving


def _has_no_numbers(support: Any) -> bool:
    """Whether a support is one of NumPyro's own, or has no bounds that a model could compute."""
    named = any(support is known for known in vars(constraints).values())
    return named or not jax.tree.leaves(support)


def _moved(site: Site) -> jax.Array:
    """Another value of a continuous site, inside its support."""
    transform = biject_to(site["fn"].support)
    return transform(transform.inv(jnp.asarray(site["value"])) + 0.3)
