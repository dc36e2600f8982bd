"""Predictions: draws of the observed sites at other arguments of the model."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.distributions import ImproperUniform
from numpyro.primitives import Messenger

from ppl_em.fit.after.at import Fit, SiteShape, check_names, check_params, shapes, source
from ppl_em.fit.after.param_draws import draw_inside, draw_latents
from ppl_em.params import Params
from ppl_em.problem import Latents, Problem, explained, is_factor, site_dims
from ppl_em.result import EMResult, Options, predictions
from ppl_em.util import ModelError, as_key, at_once, check_call, site_error, split

if TYPE_CHECKING:
    import xarray

OPTIONS = ("groups", "uncertainty", "num_samples")

AT_ONCE = 20
"""Draws made side by side."""


def predict(
    fit: Fit,
    result: EMResult,
    rng_key: jax.Array,
    args: tuple,
    kwargs: dict[str, Any],
    options: Options,
) -> "xarray.DataTree":
    """Draw the observed sites; arguments as of `EMResult.predict`."""
    keys = split(as_key(rng_key), 3)
    problem, model = fit.problem, source(fit.problem).model
    if args or kwargs:
        check_names("predict", model, args, OPTIONS)
        check_call(model, args, kwargs)
    else:
        args, kwargs = problem.arguments
    sites = shapes(problem, result.posterior.params, args, kwargs)
    check_params("predict", problem, problem.constrain(fit.x), sites)
    if options.same:
        _check_latents(problem, sites)
    count = options.num_samples
    xs, latents = _drawn(keys[0], keys[1], fit, result, options)
    with explained(model, args, kwargs):
        found, names = _simulated(keys[2], problem, args, kwargs, xs, latents, count)
    return predictions(found, names)


def _drawn(
    key_params: jax.Array, key_latents: jax.Array, fit: Fit, result: EMResult, options: Options
) -> tuple[jax.Array, Latents]:
    """Parameters (n, p), or (1, p) where they are not drawn, and latents that are held."""
    problem, count = fit.problem, options.num_samples
    if not options.uncertainty:
        held = result.posterior.sample(key_latents, count) if options.same else {}
        return fit.x[None], held
    covariance, reason = fit.covariance_x()
    if reason or not np.all(np.isfinite(covariance)):
        why = reason or "their covariance is not finite"
        raise ModelError(
            f"`result.predict`: the parameters have no law to be drawn from: {why}. Pass "
            f"`uncertainty=False` for predictions at the estimates."
        )
    if fit.at is not None:
        free = ~fit.at.held
        covariance = np.where(free & free[:, None], covariance, 0.0)
    xs = draw_inside(key_params, problem, fit.x, covariance, count)
    if not options.same:
        return xs, {}
    return xs, draw_latents(key_latents, problem, fit.e_step, fit.e_state, xs)


def _check_latents(problem: Problem, sites: dict[str, SiteShape]) -> None:
    """Raise if a latent has another shape than in the fit; chains may go on."""
    latents: list[Any] = [*problem.spec.latents, *problem.spec.discrete]
    for site in latents:
        if site.name not in sites or sites[site.name].is_observed:
            continue
        here = sites[site.name]
        (shape,) = here.shapes
        goes_on = here.in_scan and shape[1:] == site.shape[1:] and shape[0] > site.shape[0]
        if shape != site.shape and not goes_on:
            raise site_error(
                site.name,
                f"the latents have shape {site.shape} in the fit and {shape} in this call of "
                f"`predict`, so they are not those of the same groups",
                "Pass arguments with the groups of the fit, or `groups='new'`",
            )


class _Draw(Messenger):
    """Run a program with its observed sites drawn, whatever they are given."""

    def process_message(self, msg: dict[str, Any]) -> None:
        """Forget what was observed; see to the bodies of scans."""
        if msg["type"] == "control_flow" and callable(msg["args"][0]):
            body, *rest = msg["args"]
            msg["args"] = (_Draw(body), *rest)
        if msg["type"] != "sample" or is_factor(msg):
            return
        if msg["is_observed"]:
            msg["is_observed"], msg["value"] = False, None
        elif msg["value"] is None and _is_improper(msg["fn"]):
            raise site_error(
                msg["name"],
                "its prior is improper, so that it cannot be drawn",
                "Hold it with `groups='same'`, or give it a proper prior",
            )


def _is_improper(law: Any) -> bool:
    while hasattr(law, "base_dist"):
        law = law.base_dist
    return isinstance(law, ImproperUniform)


def _simulated(
    rng_key: jax.Array,
    problem: Problem,
    args: tuple,
    kwargs: dict[str, Any],
    xs: jax.Array,
    latents: Latents,
    count: int,
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Draws (n, *site_shape) of sites that are no latents of the fit, and names of their axes.

    All draws by one program.
    """
    dims: dict[str, list[str]] = {}
    latent: list[Any] = [*problem.spec.latents, *problem.spec.discrete]
    known = {*(site.name for site in latent), *problem.space.names, *problem.fixed}
    keys = jax.random.split(rng_key, count)

    def one(inputs: tuple[jax.Array, jax.Array, Latents]) -> dict[str, jax.Array]:
        key, x, held = inputs
        sites = _run(problem, problem.constrain(x), held, key, args, kwargs)
        found = {}
        for name, site in sites.items():
            drawn = site["type"] == "sample" and name not in known and not is_factor(site)
            if drawn or site["type"] == "deterministic":
                found[name] = jnp.asarray(site["value"])
            if drawn:
                dims[name] = list(site_dims(site, jnp.shape(site["value"])))
        return found

    def run() -> dict[str, jax.Array]:
        each = jnp.broadcast_to(xs, (count, xs.shape[1]))
        return jax.lax.map(one, (keys, each, latents), batch_size=AT_ONCE)

    found = jax.device_get(at_once(run))
    for name in dims:
        gaps = np.isnan(found[name].astype(float))
        if np.any(gaps.any(axis=0) & ~gaps.all(axis=0)):
            raise site_error(
                name,
                "some of its draws are not numbers, as the law of the parameters reaches to where "
                "the model is not defined",
                "Pass `uncertainty=False`, or give the parameters constraints",
            )
    return found, dims


def _run(
    problem: Problem, params: Params, held: Latents, key: jax.Array, args: tuple, kwargs: dict
) -> dict[str, Any]:
    """All sites of the program at its parameters and at the latents that are held."""
    program: Callable = handlers.substitute(problem.at(params), data=held)
    program = handlers.seed(_Draw(program), key)
    found: dict[str, Any] = handlers.trace(program).get_trace(*args, **kwargs)
    return found
